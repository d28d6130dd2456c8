"""One entry supports an operator: its labels, its shape in shape-only runs, and its cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph.counts import count
from fec_fast.graph.label_tracker import LabelTracker
from fec_fast.graph.operator_call import OperatorCall
from fec_fast.graph.rules.lookup import rule_of
from fec_fast.graph.rules.registry import RULES, operator

NAME = "fec_fast_tests::double"
calls: list[str] = []


@torch.library.custom_op(NAME, mutates_args=())
def double(x: Tensor) -> Tensor:
    calls.append("double")
    return 2 * x


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(double(self.a(x)))


@pytest.fixture
def _registry_as_it_was() -> Iterator[None]:
    yield
    RULES.pop(NAME, None)


@pytest.mark.usefixtures("_registry_as_it_was")
def test_one_entry_supports_an_operator() -> None:
    model, image = Doubles().eval(), torch.randn(1, 3, 4, 4)
    before = fec_fast.couplings(model, image)
    assert [coupled.name for coupled in before.sets] == ["a"]
    tried = "it was tried on drawn numbers, and acts within each channel"
    assert before.notes == (f"{NAME.replace('::', '.')}.default has no rule: {tried}",)
    macs = count(model, image).macs

    @operator(NAME, shape=torch.zeros_like, macs=lambda call: call.result.numel())
    def elementwise(tracker: LabelTracker, call: OperatorCall) -> None:
        tracker.set_label_map(call.result, *tracker.label_map(call.args[0]))

    calls.clear()  # the rule counts at once, although the operator was met without it before
    after = fec_fast.couplings(model, image)
    assert [coupled.name for coupled in after.sets] == ["a"] and not after.notes
    assert count(model, image).macs == macs + 8 * 16
    assert not calls  # the shape is enough
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    assert result.model.a.out_channels == 4 and result.difference is not None


@pytest.mark.usefixtures("_registry_as_it_was")
def test_an_operator_is_registered_once() -> None:
    with pytest.raises(AssertionError, match="cat is registered twice"):
        operator("cat")(lambda tracker, call: None)


def test_shape_and_cost_hold_for_the_overload_that_was_registered() -> None:
    aten = torch.ops.aten
    assert rule_of(aten.mm.default).shape is not None and rule_of(aten.mm.out).shape is None
    assert rule_of(aten.mm.out).labels is rule_of(aten.mm.default).labels
    assert rule_of(aten.add.Tensor).labels is rule_of(aten.relu.default).labels  # by torch's tag
