"""Pruning, recovery, training and storage of a model on a GPU: as on the CPU. Skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.utils.timing import measure_latency
from fec_fast.vision.networks import resnet20_cifar
from helpers.states import relative_error, state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
IMAGES = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A residual network with batch norms as if they were trained."""
    torch.manual_seed(0)
    model = resnet20_cifar().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, 3, 32, 32))
    return model.eval().to(dtype)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).cpu()


@pytest.mark.parametrize("criterion", ["fec_l1", "l1", "fpgm", "reconstruction"])
def test_a_model_is_pruned_as_on_the_cpu(criterion: str) -> None:
    model, images = network(torch.float64), IMAGES.double()
    options = {"criterion": criterion, "ratio": 0.4}
    given = {"calibration": images} if criterion == "reconstruction" else {}
    there = {name: tensor.cuda() for name, tensor in given.items()}
    on_cpu = fec_fast.prune(model, images[:1], **options, **given, recover=None)
    on_gpu = fec_fast.prune(copy.deepcopy(model).cuda(), images[:1].cuda(), **options, **there, recover=None)
    assert on_gpu.plan.keep == on_cpu.plan.keep
    assert on_gpu.proof is not None and next(on_gpu.model.parameters()).is_cuda
    assert relative_error(outputs(on_cpu.model, images), outputs(on_gpu.model, images.cuda())) < 1e-9


@pytest.mark.parametrize("images_given", [True, False])
def test_recovery_equals_that_on_the_cpu(images_given: bool) -> None:
    model, images = network(torch.float64), IMAGES.double()
    result = fec_fast.prune(model, images[:1], ratio=0.4, recover=None)
    recovered = {}
    for device in ("cpu", "cuda"):
        original, pruned = copy.deepcopy(model).to(device), copy.deepcopy(result.model).to(device)
        given = {"calibration": images} if images_given else {"example_inputs": images[:1]}
        done = fec_fast.compensate(original, pruned, result.plan, progress=False, **given)
        assert done.layers
        recovered[device] = outputs(pruned, images.to(device))
    assert relative_error(recovered["cpu"], recovered["cuda"]) < 1e-6


def test_a_recovered_model_is_nearer_to_the_original() -> None:
    model, images = network().cuda(), IMAGES.cuda()
    cut = fec_fast.prune(model, images[:1], ratio=0.4, recover=None)
    recovered = fec_fast.prune(model, images[:1], ratio=0.4, recover=IMAGES)  # which lie on the CPU
    wanted = outputs(model, images)
    assert relative_error(wanted, outputs(recovered.model, images)) < relative_error(wanted, outputs(cut.model, images))


def test_training_storage_and_latency(tmp_path: Path) -> None:
    model = network().cuda()
    result = fec_fast.prune(model, IMAGES[:1].cuda(), ratio=0.4, recover=IMAGES)
    loader = [(IMAGES[start : start + 16], torch.arange(16) % 10) for start in range(0, 64, 16)]
    fec_fast.recalibrate(result.model, loader)
    fec_fast.finetune(result.model, loader, epochs=1, lr=0.01, progress=False)
    fec_fast.save(result.model, result.plan, tmp_path / "kept")
    loaded = fec_fast.load(network(), tmp_path / "kept")
    assert {name: tensor.cpu() for name, tensor in state(result.model).items()}.keys() == state(loaded).keys()
    for name, tensor in state(result.model).items():
        assert torch.equal(tensor.cpu(), state(loaded)[name].cpu()), name
    assert measure_latency(result.model.cuda(), IMAGES[:1].cuda(), min_run_time=0.1) > 0


def test_scores_equal_those_of_the_cpu() -> None:
    model = network(torch.float64)
    on_gpu, on_cpu = fec_fast.score_model(copy.deepcopy(model).cuda()), fec_fast.score_model(model)
    assert on_gpu.backend != "cpu"
    for name, scores in on_cpu.items():
        assert torch.allclose(on_gpu[name].cpu(), scores, rtol=1e-9, atol=1e-12), name
