"""Networks whose channels are divided, through everything that runs pruned copies: recovery, latency, sensitivity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.pruning.allocation.allocate import AllocationRequest
from fec_fast.pruning.context import build_context
from helpers.divided import divided_network

IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """With statistics of batch norms that are those of the images."""
    torch.manual_seed(0)
    model = divided_network(name)
    fec_fast.recalibrate(model, [IMAGES])
    return model.eval()


def error(model: nn.Module, original: nn.Module) -> float:
    with torch.no_grad():
        expected = original(IMAGES)
        return float((model(IMAGES) - expected).square().mean() / expected.var())


@pytest.mark.parametrize("name", ["C2f by split", "Res2Net by slices", "FasterNet", "ShuffleNet"])
@pytest.mark.parametrize("recover", [IMAGES, "data-free"], ids=["images", "data-free"])
def test_recovery_brings_a_divided_network_nearer_to_the_original(name: str, recover: Any) -> None:
    model = network(name)
    options: dict[str, Any] = {"ratio": 0.5, "criterion": "l1"}
    plain = fec_fast.prune(model, IMAGES[:2], **options, recover=None)
    recovered = fec_fast.prune(model, IMAGES[:2], recover=recover, **options)
    assert plain.plan.keep == recovered.plan.keep and plain.plan.sizes == recovered.plan.sizes
    assert recovered.recovery is not None
    assert error(recovered.model, model) < error(plain.model, model)


@pytest.mark.parametrize("name", ["C2f by split", "DPN"])
def test_recovery_chooses_the_channels_of_a_divided_network(name: str, tmp_path: Any) -> None:
    model = network(name)
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=IMAGES)
    assert result.plan.criterion == "reconstruction" and result.plan.sizes
    assert error(result.model, model) < error(fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=None).model, model)
    fec_fast.save(result, tmp_path / "recovered")
    with torch.no_grad():
        assert torch.equal(fec_fast.load(divided_network(name), tmp_path / "recovered")(IMAGES), result.model(IMAGES))


class Classifier(nn.Module):
    """Scores of 3 classes by a network of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network("C2f by split")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).mean((2, 3))


def test_measurements_run_copies_whose_sizes_have_changed() -> None:
    model = Classifier().eval()
    loader = [(IMAGES, torch.arange(48) % 3)]
    sensitivity = fec_fast.measure_sensitivity(model, IMAGES[:2], loader, at=(0.5,))
    budget = fec_fast.Budget(params=0.5)
    by_values = fec_fast.prune(model, IMAGES[:2], budget=budget, ratios=sensitivity, recover=None)
    anew = fec_fast.prune(model, IMAGES[:2], budget=budget, ratios="sensitivity", calibration=loader, recover=None)
    assert by_values.plan.sizes and anew.plan.sizes


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_settled_context_makes_copies_that_run(share: float) -> None:
    assert AllocationRequest(budget=fec_fast.Budget(latency_ms=1.0)).runs_pruned_networks
    model = Classifier().eval()
    context = build_context(model, IMAGES[:2], "l1", None, "both", ()).settled()
    assert [(size.module, size.attribute) for size in context.sizes] == [("network.block", "c")]
    counts = [int(share * len(coupled.units)) for coupled in context.coupling.sets]
    with torch.no_grad():
        assert context.pruned_copy(counts)(IMAGES).shape == (48, 3)
