"""float8 and sharded weights: scored from copies with the same values, one at a time, or refused with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import Formula, score_model
from fec_fast.scoring import model_scores
from fec_fast.utils.weights import FLOAT8_DTYPES, plain_copy

FORMULAS = [Formula(), Formula("rms", axis="channels"), Formula("none", "softmax", "channels", 0.5)]


def network(dtype: torch.dtype | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 4, 1)).eval()
    for layer in (model[0], model[2]) if dtype is not None else ():
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return model


def in_float32(model: nn.Sequential) -> nn.Sequential:
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().float(), requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_float16_holds_every_float8_number(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    assert torch.equal(plain_copy(every).float().nan_to_num(7.0, 8.0, 9.0), every.float().nan_to_num(7.0, 8.0, 9.0))
    assert plain_copy(every).dtype == torch.float16 and plain_copy(every).float().isfinite().sum() >= 240


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_float8_weights_have_the_scores_of_their_values(dtype: torch.dtype, formula: Formula) -> None:
    scores = score_model(network(dtype), formula=formula)
    expected = score_model(in_float32(network(dtype)), formula=formula)
    assert list(scores) == ["0", "2", "3"] == list(expected) and scores.layers == expected.layers
    for name in scores:
        torch.testing.assert_close(scores[name], expected[name], rtol=0, atol=2e-6)
    different = score_model(network(), formula=formula)
    assert not torch.allclose(scores["0"], different["0"], rtol=0, atol=1e-4), "the rounding to float8 counts"


def test_a_float8_weight_with_nan_is_named() -> None:
    model = network(torch.float8_e5m2)
    model[2].weight[1, 2, 0, 1] = float("nan")
    with pytest.raises(fec_fast.WeightError, match=r"'2'.* nan at \[1, 2, 0, 1\]"):
        score_model(model)


def test_copies_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[torch.dtype]] = []
    compute = model_scores.ops.entropies_of_checked

    def seen(weights: list[Tensor], *arguments: Any) -> list[Tensor]:
        calls.append([weight.dtype for weight in weights])
        return compute(weights, *arguments)

    monkeypatch.setattr(model_scores.ops, "entropies_of_checked", seen)
    score_model(network(torch.float8_e4m3fn))
    assert calls == [[torch.float32], [torch.float16], [torch.float16]]


def test_a_float8_weight_with_a_scale_is_refused() -> None:
    model = network(torch.float8_e4m3fn)
    model[2].register_buffer("weight_scale_inv", torch.ones(6))
    words = r"'2' \(ConvTranspose2d\).*float8_e4m3fn with a scale of its own, 'weight_scale_inv'.*multiply.*bfloat16"
    with pytest.raises(fec_fast.WeightError, match=words) as caught:
        score_model(model)
    assert caught.value.layer == "2"


def test_pruning_refuses_float8_with_the_way_out() -> None:
    with pytest.raises(fec_fast.WeightError, match=r"^0\.weight is float8_e5m2: convert the model to one of float32"):
        fec_fast.prune(network(torch.float8_e5m2), torch.randn(1, 3, 8, 8), recover=None)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("original_parameters", [False, True])
def test_fsdp_1_is_refused(group: None, whole: bool, original_parameters: bool) -> None:
    """Its flat parameters leave a process parts of weights, which look like weights."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    options = {"device_id": torch.device("cpu"), "use_orig_params": original_parameters}
    model: nn.Module = network()
    if whole:
        model = fsdp.FullyShardedDataParallel(model, **options)
    else:
        model[2] = fsdp.FullyShardedDataParallel(model[2], **options)
    subject = "the model" if whole else "layer '2'"
    words = f"{subject} is sharded by FullyShardedDataParallel.*score the plain model.*fully_shard"
    with pytest.raises(fec_fast.WeightError, match=words) as caught:
        score_model(model)
    assert caught.value.layer == ("" if whole else "2")
