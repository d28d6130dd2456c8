"""Float32 products: full precision while a block runs, and the user's settings before and behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.utils.precision import full_float32, without_autocast
from helpers.comparison import same_weights
from helpers.networks import chain

MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn
HAS_NEWER = hasattr(MATMUL, "fp32_precision")


def settings() -> list[Any]:
    """All settings, as far as they can be read."""
    read: list[Callable[[], Any]] = [torch.get_float32_matmul_precision, lambda: CUDNN.allow_tf32]
    if HAS_NEWER:
        owners = (MATMUL, CUDNN.conv, CUDNN.rnn, torch.backends.mkldnn.matmul)
        read += [lambda owner=owner: owner.fp32_precision for owner in owners]
    values = []
    for each in read:
        try:
            values.append(each())
        except RuntimeError:
            values.append("contradictory")
    return values


def set_newer() -> None:
    MATMUL.fp32_precision = "tf32"


CHOICES: dict[str, Callable[[], None]] = {
    "default": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32 in convolutions": lambda: setattr(CUDNN, "allow_tf32", False),
    "newer setting": set_newer,
}


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    if HAS_NEWER:
        MATMUL.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    if HAS_NEWER:
        MATMUL.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("choice", [name for name in CHOICES if HAS_NEWER or name != "newer setting"])
def test_settings_are_those_of_the_user_again_behind_the_block(choice: str) -> None:
    CHOICES[choice]()
    before = settings()
    with pytest.raises(KeyError), full_float32():
        if HAS_NEWER:
            assert {MATMUL.fp32_precision, CUDNN.conv.fp32_precision} == {"ieee"}
        if choice != "newer setting":
            assert (torch.get_float32_matmul_precision(), CUDNN.allow_tf32) == ("highest", False)
        raise KeyError
    assert settings() == before


def test_recovery_and_its_criterion_compute_in_float32() -> None:
    seen = []

    class Watched(nn.Module):
        """Notes the settings that its runs see."""

        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_float32_matmul_precision(), CUDNN.allow_tf32))
            return x.relu()

    model = chain(nn.Conv2d(3, 8, 3), Watched(), nn.Conv2d(8, 4, 3))().eval()
    torch.set_float32_matmul_precision("medium")
    images = torch.rand(8, 3, 7, 7)
    result = fec_fast.prune(model, images[:1], ratio=0.5, criterion="reconstruction", calibration=images, recover=None)
    assert ("highest", False) in seen
    seen.clear()
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert set(seen) == {("highest", False)}
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_callers_autocast_changes_nothing_and_is_on_again() -> None:
    model = chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))()
    model.eval()
    images = torch.rand(16, 3, 9, 9)

    def pruned() -> fec_fast.PruneResult:
        return fec_fast.prune(model, images[:1], remove=0.5, recover=images)

    expected, sets = pruned(), fec_fast.couplings(model, images[:1])
    with torch.autocast("cpu", torch.bfloat16):
        model(images)  # the cache holds its weights now
        found = pruned()
        assert str(fec_fast.couplings(model, images[:1])) == str(sets)
        assert model(images).dtype == torch.bfloat16 and torch.is_autocast_cache_enabled()
    assert found.plan.keep == expected.plan.keep and same_weights(found.model, expected.model)
    assert model(images).dtype == torch.float32


def test_the_block_is_without_autocast_and_its_cache() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyError), without_autocast():
            assert not torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
            raise KeyError
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("device", ["cuda", "xpu", "mtia", "privateuseone"])
def test_autocast_is_off_on_every_kind_of_device(device: str) -> None:
    torch.set_autocast_enabled(device, True)
    try:
        with without_autocast():
            assert not torch.is_autocast_enabled(device)
        assert torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, False)
