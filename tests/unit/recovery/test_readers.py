"""Readers: the way of a layer's output through a batch norm and a sum to an activation, in several forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fec_fast.plan.plan import Plan
from fec_fast.recovery.readers import Reader
from fec_fast.recovery.targets import TargetMode
from fec_fast.utils.model_index import ModelIndex

INFINITE = float("inf")


class Layer(nn.Module):
    """One convolution and its batch norm, and a function that goes on with them."""

    def __init__(self, rest: Callable[[Layer, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.rest = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.conv(x), x)


def two_readers(layer: Layer, z: Tensor, x: Tensor) -> Tensor:
    return functional.relu(layer.norm(z)) + z


def several_readers(total: Tensor) -> Tensor:
    return total.sigmoid() + total.tanh()


def in_place(layer: Layer, z: Tensor, x: Tensor) -> Tensor:
    out = layer.norm(z)
    out += x
    return functional.relu(out, inplace=True) * 2


# What follows the convolution: whether the norm alone reads it, the interval, whether there is an addend, one chain.
FORMS: dict[str, tuple[Callable[[Layer, Tensor, Tensor], Tensor], bool, tuple[float, float] | None, bool, bool]] = {
    "norm, relu": (lambda m, z, x: torch.relu(m.norm(z)), True, (0, INFINITE), False, True),
    "relu": (lambda m, z, x: functional.relu(z), False, (0, INFINITE), False, True),
    "relu in place": (lambda m, z, x: z.relu_(), False, (0, INFINITE), False, True),
    "relu6": (lambda m, z, x: nn.ReLU6()(m.norm(z)), True, (0, 6), False, True),
    "clamp": (lambda m, z, x: m.norm(z).clamp(min=0, max=6), True, (0, 6), False, True),
    "norm, sum, relu": (lambda m, z, x: torch.relu(m.norm(z) + x), True, (0, INFINITE), True, True),
    "the other order": (lambda m, z, x: torch.relu(torch.add(x, m.norm(z))), True, (0, INFINITE), True, True),
    "sum in place": (in_place, True, (0, INFINITE), True, True),
    "sum without activation": (lambda m, z, x: m.norm(z) + x, True, None, True, True),
    "sum that several read": (lambda m, z, x: several_readers(m.norm(z) + x), True, None, True, True),
    "sum of what another reads": (lambda m, z, x: m.norm(z) + x + z, False, None, True, False),
    "silu": (lambda m, z, x: functional.silu(m.norm(z)), True, None, False, True),
    "a question about the shape": (lambda m, z, x: m.norm(z).view(len(z), -1), True, None, False, True),
    "two readers": (two_readers, False, (0, INFINITE), False, False),
    "the output itself": (lambda m, z, x: z, False, None, False, True),
    "norm in training mode": (lambda m, z, x: torch.relu(m.norm.train()(z)), False, None, False, True),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_chain_behind_a_layer(form: str) -> None:
    rest, norm_only, interval, has_addend, chain = FORMS[form]
    model = Layer(rest).eval()
    keep = {"conv.weight": {"1": [0, 1]}}
    mode = TargetMode(ModelIndex.of(model), plan_that_keeps(keep), 2**20)
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad(), mode:
        mode.begin(0, 1000, 1.0, torch.arange(4))
        mode.end(model(x))
    reader: Reader = mode.targets["conv.weight"].readers()[0]
    assert reader.feeds_norm_only == norm_only
    assert reader.interval == interval
    assert reader.is_chain == chain
    assert (reader.addend is not None) == has_addend
    if reader.addend is not None:
        torch.testing.assert_close(reader.addend.mean(0), x.mean((0, 2, 3)))
    rectifier = mode.targets["conv.weight"].rectifier(100, None, torch.float32)
    assert (rectifier is not None) == (interval is not None and chain)
    if has_addend:  # if it is known what the pruned model adds, a sum without activation is of use too
        assert (mode.targets["conv.weight"].rectifier(100, reader.addend, torch.float32) is not None) == chain
    if rectifier is not None:  # behind scale, shift and addend the activation gives what the model gives
        wanted = mode.targets["conv.weight"].calls[0][0].rows
        given = rectifier.given(wanted).clamp(rectifier.low, rectifier.high)
        with torch.no_grad():
            expected = model(x) / (2 if form == "sum in place" else 1)
        torch.testing.assert_close(given.mean(0), expected.mean((0, 2, 3)))


def plan_that_keeps(keep: dict[str, dict[str, list[int]]]) -> Plan:
    plan = object.__new__(Plan)
    object.__setattr__(plan, "keep", keep)
    return plan
