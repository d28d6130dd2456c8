"""An exception at every line of what changes a model in place: the model is as it was, and so is what cannot be set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.plan import checkpoint, optimizer_state, surgery
from fec_fast.recovery import batch_norm, layer_fits
from fec_fast.utils import undo
from fec_fast.vision import weights
from helpers.everything import of_model
from helpers.interruptions import Interrupted, raise_at
from helpers.networks import SharedWeight

FILES = {module.__file__ for module in (surgery, checkpoint, undo, weights, optimizer_state, layer_fits, batch_norm)}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
# Thinned out in the fast part: the steps of one layer repeat those of another.
STRIDES = [11, pytest.param(1, marks=(pytest.mark.slow, pytest.mark.sweep))]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = SharedWeight().train()
    model.norm.running_mean.normal_()
    model(IMAGES).square().sum().backward()
    return model


@pytest.fixture(scope="module")
def result() -> fec_fast.PruneResult:
    return fec_fast.prune(network(1), IMAGES, ratio=0.5, criterion="l1", recover=None)


def assert_unchanged_at_every_step(
    model: nn.Module, call: Callable[[nn.Module], Any], stride: int, of: Callable[[nn.Module], Any] = of_model
) -> None:
    """Raises at the steps of a call, each time on the same model, which is thereby compared with what it was first."""
    # The last four steps leave functions, after all changes.
    pristine = copy.deepcopy(model)
    steps = raise_at(lambda: call(copy.deepcopy(model)), None, FILES) - 4
    before, ignored = of(model), 0
    for at in [*range(1, steps - 40, stride), *range(max(1, steps - 40), steps + 1)]:
        try:
            raise_at(functools.partial(call, model), at, FILES)
        except Interrupted as error:
            where = f"step {at} of {steps}: {error}"
        else:  # Python ignores what is raised while it drops a generator: the call went on to its end
            ignored += 1
            where = f"step {at} of {steps}"
            assert of(model) != before, where
            model = copy.deepcopy(pristine)
            before = of(model)
        assert of(model) == before and torch.is_grad_enabled(), where
    assert ignored <= 2
    call(model)
    assert of(model) != before
    print(f"{steps} steps: 0 changed")


@pytest.mark.parametrize("stride", STRIDES)
def test_apply_plan(result: fec_fast.PruneResult, stride: int) -> None:
    assert_unchanged_at_every_step(network(), lambda model: fec_fast.apply_plan(model, result.plan), stride)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_load(result: fec_fast.PruneResult, tmp_path: Path, stride: int, dtype: torch.dtype) -> None:
    path = fec_fast.save(copy.deepcopy(result.model).to(dtype), result.plan, tmp_path / "saved")
    assert_unchanged_at_every_step(network(), lambda model: fec_fast.load(model, path), stride)


@pytest.mark.parametrize("stride", STRIDES)
def test_load_weights(tmp_path: Path, stride: int) -> None:
    torch.save(network(3).state_dict(), tmp_path / "weights.pth")
    assert_unchanged_at_every_step(
        network(), lambda model: weights.load_weights(model, tmp_path / "weights.pth"), stride
    )


@pytest.mark.parametrize("stride", STRIDES)
def test_recalibrate(stride: int) -> None:
    images = [torch.randn(8, 3, 8, 8)] * 2
    assert_unchanged_at_every_step(network(), lambda model: fec_fast.recalibrate(model, images), stride)


@pytest.mark.parametrize("stride", STRIDES)
def test_remap_optimizer(result: fec_fast.PruneResult, stride: int) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    fec_fast.apply_plan(model, result.plan)

    def states() -> list[Any]:
        return [
            (key, id(value), tuple(value.shape)) for state in optimizer.state.values() for key, value in state.items()
        ]

    before, at = states(), 1
    while True:
        try:
            raise_at(lambda: fec_fast.remap_optimizer(optimizer, result.plan, model), at, FILES)
            break  # it has fewer steps than that
        except Interrupted as error:
            if " return" in str(error) and states() != before:
                break  # the returns after all changes
            assert states() == before, f"step {at}: {error}"
            at += stride
    assert at > 100 and states() != before


class ReadOnly(nn.Conv2d):
    """A convolution whose number of channels is written once."""

    @property
    def out_channels(self) -> int:
        return self._written

    @out_channels.setter
    def out_channels(self, value: int) -> None:
        if hasattr(self, "_written"):
            raise AttributeError("read only")
        self._written = value


class Mirrored(nn.Conv2d):
    """A convolution that writes a second attribute with each, and refuses a number of channels that it had before."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "out_channels" and "out_channels" in vars(self) and value >= self.out_channels:
            raise ValueError("it only shrinks")
        super().__setattr__(name, value)
        if name == "out_channels":
            super().__setattr__("mirror", value)


class Last(nn.Conv2d):
    """A convolution that refuses every new number of input channels, after others have taken theirs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "in_channels" and "in_channels" in vars(self):
            raise TypeError("no other number")
        super().__setattr__(name, value)


@pytest.mark.parametrize("refusing", [[ReadOnly, nn.Conv2d], [Mirrored, Last]])
@pytest.mark.parametrize("how", ["apply_plan", "load"])
def test_an_attribute_that_refuses_does_not_stop_the_undoing(how: str, refusing: list[Any], tmp_path: Path) -> None:
    def chain(first: Any, last: Any) -> nn.Module:
        torch.manual_seed(0)
        layers = [first(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), last(8, 4, 1)]
        return nn.Sequential(*layers)

    result = fec_fast.prune(chain(nn.Conv2d, nn.Conv2d), IMAGES, ratio=0.5, recover=None)
    path = fec_fast.save(result, tmp_path / "saved")
    model = chain(*refusing)
    before = of_model(model)
    with pytest.raises((AttributeError, TypeError)) as caught:
        fec_fast.load(model, path) if how == "load" else fec_fast.apply_plan(model, result.plan)
    assert of_model(model) == before
    assert not getattr(caught.value, "__notes__", [])


def test_a_value_that_cannot_be_put_back_is_noted_and_everything_else_is() -> None:
    class Broken(nn.Conv2d):
        @property
        def out_channels(self) -> int:
            return Broken.number

        @out_channels.setter
        def out_channels(self, value: int) -> None:
            if Broken.number == 4:
                raise RuntimeError("stuck")
            Broken.number = value

    Broken.number = 0
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    plan = fec_fast.prune(plain, IMAGES, ratio=0.5, recover=None).plan
    model = nn.Sequential(Broken(3, 8, 3), nn.ReLU(), Last(8, 4, 1))
    before = [tensor.clone() for tensor in model.parameters()]
    with pytest.raises(TypeError, match="no other number") as caught:
        fec_fast.apply_plan(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert caught.value.__notes__ == ["out_channels of Broken could not be put back: RuntimeError: stuck"]


def test_ctrl_c_in_the_middle_of_the_undoing_waits(result: fec_fast.PruneResult) -> None:
    import signal

    from helpers.interruptions import keyboard

    model = network()

    class Pressing(nn.Conv2d):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "in_channels" and "in_channels" in vars(self):
                signal.raise_signal(signal.SIGINT)
                raise ValueError("and it fails")
            super().__setattr__(name, value)

    model.outer = Pressing(6, 8, 1)
    before = of_model(model)
    with keyboard(), pytest.raises((KeyboardInterrupt, ValueError)) as caught:
        fec_fast.apply_plan(model, result.plan)
    assert isinstance(caught.value, KeyboardInterrupt) and of_model(model) == before
