"""Functions that keep their results: called anew in runs of ours, and as before outside of them."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.utils.cached_functions import uncached

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def ramp(height: int, width: int) -> Tensor:
    return torch.linspace(-1, 1, height * width).reshape(1, 1, height, width)


@functools.cache
def positions_of(model: Any, height: int, width: int) -> Tensor:
    return model.position(ramp(height, width))


class Positions(nn.Module):
    """Adds to its features what a layer makes of their positions; classes below keep that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.position, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.second(torch.relu(x + self.positions(*x.shape[-2:]))).mean((2, 3)))

    def positions(self, height: int, width: int) -> Tensor:
        raise NotImplementedError


class ByMethod(Positions):
    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033
    def positions(self, height: int, width: int) -> Tensor:
        return self.position(ramp(height, width))


class UnderADecorator(Positions):
    @torch.no_grad()
    @functools.cache  # noqa: B019
    def positions(self, height: int, width: int) -> Tensor:
        return self.position(ramp(height, width))


class ByFunction(Positions):
    def positions(self, height: int, width: int) -> Tensor:
        return positions_of(self, height, width)


class ByStaticMethod(Positions):
    @staticmethod
    @functools.cache
    def kept(model: Any, height: int, width: int) -> Tensor:
        return model.position(ramp(height, width))

    def positions(self, height: int, width: int) -> Tensor:
        return self.kept(self, height, width)


class ByProperty(Positions):
    @property
    @functools.cache  # noqa: B019
    def kept(self) -> Tensor:
        return self.position(ramp(8, 8))

    def positions(self, height: int, width: int) -> Tensor:
        return self.kept


KINDS = [ByMethod, UnderADecorator, ByFunction, ByStaticMethod, ByProperty]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.filterwarnings("ignore:.*calibration images are few")
def test_a_network_whose_code_keeps_results_is_pruned_and_keeps_its_own(kind: Any, warm: bool) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    if warm:
        with torch.no_grad():
            model(IMAGES)
    with torch.no_grad():
        expected = model.head(model.second(torch.relu(model.first(IMAGES) + model.position(ramp(8, 8)))).mean((2, 3)))
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=IMAGES)
    assert result.model.first.out_channels == 4
    assert result.proof is not None and result.recovery is not None and len(result.recovery.layers) >= 2
    small = result.model
    with torch.no_grad():
        assert torch.equal(model(IMAGES), expected)  # no zeros of a run for the shapes were kept
        made = small.head(small.second(torch.relu(small.first(IMAGES) + small.position(ramp(8, 8)))).mean((2, 3)))
        assert torch.equal(small(IMAGES), made)  # nor what the weights before the recovery made


def test_copies_are_not_kept_alive() -> None:
    alive = weakref.WeakSet[nn.Module]()

    class Counted(ByMethod):
        def __setstate__(self, state: Any) -> None:
            super().__setstate__(state)
            alive.add(self)

    result = fec_fast.prune(Counted().eval(), IMAGES[:2], ratio=0.5, recover=None)
    gc.collect()
    assert list(alive) == [result.model]


def test_caches_are_as_before_after_an_error() -> None:
    ByMethod.positions.cache_clear()
    positions_of.cache_clear()
    model, other = ByMethod(), ByFunction()
    model(IMAGES)
    other(IMAGES)
    method, function = ByMethod.positions, positions_of
    with pytest.raises(ZeroDivisionError), uncached(model, other):
        first, second = (each.positions(8, 8) for each in (model, model))
        assert first is not second
        assert other.positions(8, 8) is not other.positions(8, 8)
        raise ZeroDivisionError
    assert ByMethod.positions is method and positions_of is function
    assert method.cache_info()[:2] == function.cache_info()[:2] == (0, 1)
    assert model.positions(8, 8) is model.positions(8, 8)
