"""Targets: what is kept of a run of the original, and what is not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast
from fec_fast.recovery.layer_calls import LayerCall
from fec_fast.recovery.targets import TargetMode
from fec_fast.utils.model_index import ModelIndex
from helpers.networks import chain

BEHIND = {"ReLU": (nn.ReLU(),), "batch norm": (nn.BatchNorm2d(8), nn.ReLU()), "SiLU": (nn.SiLU(),)}


class InputsSeen(TargetMode):
    """Remembers the inputs of layers without holding them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.inputs: list[weakref.ref[Tensor]] = []

    def before_layer(self, call: LayerCall) -> None:
        super().before_layer(call)
        self.inputs.append(weakref.ref(call.input))


@pytest.mark.parametrize("behind", BEHIND)
def test_no_input_of_a_layer_is_kept(behind: str) -> None:
    torch.manual_seed(0)
    layers = [layer for width in (3, 8, 8, 8) for layer in (nn.Conv2d(width, 8, 3), *BEHIND[behind])]
    model, images = chain(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 5))().eval(), torch.randn(4, 3, 12, 12)
    plan = fec_fast.prune(model, images, ratio=0.5, recover=None).plan
    mode = InputsSeen(ModelIndex.of(model), plan, 2**30)
    mode.begin(0, 100, 1.0, torch.zeros(0, dtype=torch.int64))
    with mode, torch.no_grad():
        mode.end(model(images))
    gc.collect()
    assert len(mode.targets) == 4 and len(mode.inputs) == 5
    assert [of_layer() is None for of_layer in mode.inputs] == [False, True, True, True, True]  # the first is ours


class TiedAutoencoder(nn.Module):
    """The decoder uses the weights of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(self.first(x).relu()).relu()
        return self.last(functional.conv_transpose2d(hidden, self.first.weight, None, 2, 1, 1).relu())


class TiedLinear(nn.Module):
    """A second layer has the first one's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(self.stem(x.flatten(1)[:, :12]).relu()).relu()
        return self.last(functional.linear(hidden, self.first.weight.T).relu())


class OtherGroups(nn.Module):
    """A weight reads eight channels in two groups, and four channels in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.middle, self.last = nn.Conv2d(8, 4, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(self.stem(x).relu()).relu()).relu()
        return self.last(functional.conv2d(x, self.first.weight, padding=1).relu().mean((2, 3)))


@pytest.mark.parametrize("criterion", ["fec_l1", "reconstruction"])
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (TiedAutoencoder, "in several ways: as a convolution and as a transposed convolution"),
        (TiedLinear, "by 'T' too"),
        (OtherGroups, "in several ways: as a convolution of 2 groups and as a convolution"),
    ],
)
def test_a_weight_that_is_used_in_several_ways_is_left_and_the_others_are_fitted(
    build: Callable[[], nn.Module], reason: str, criterion: str
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.einsum("nk,kcij->ncij", torch.randn(160, 6), torch.randn(6, 3, 8, 8))
    images, others = images[:96], images[96:]
    options: dict[str, Any] = {"criterion": criterion, "ratio": 0.4}
    if criterion == "reconstruction":
        options["calibration"] = images
    bare = fec_fast.prune(model, images[:2], recover=None, **options)
    before = bare.model.first.weight.detach().clone()
    with pytest.warns(fec_fast.FecWarning, match="images are few"):
        done = fec_fast.compensate(model, bare.model, bare.plan, images, progress=False)
    assert done.left == {"first": f"its weight is used {reason}"} and done.layers
    assert torch.equal(bare.model.first.weight, before)
    plain = fec_fast.prune(model, images[:2], recover=None, **options).model
    with torch.no_grad():
        errors = [float((network(others) - model(others)).square().sum()) for network in (bare.model, plain)]
    assert errors[0] < errors[1]


def test_calls_with_other_strides_are_fitted_together() -> None:
    class Strides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.stem(x).relu()).relu()
            x = functional.conv2d(x, self.twice.weight, self.twice.bias, 2, 2, 2).relu()
            return self.last(x.mean((2, 3)))

    torch.manual_seed(0)
    model, images = Strides().eval(), torch.randn(64, 3, 10, 10)
    result = fec_fast.prune(model, images[:2], ratio=0.4, recover=None)
    with torch.no_grad():
        before = float((result.model(images) - model(images)).square().sum())
        done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
        after = float((result.model(images) - model(images)).square().sum())
    assert not done.left and [layer.layer for layer in done.layers] == ["twice", "last"] and after < 0.5 * before
