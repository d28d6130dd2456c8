"""A trace is not changed after it is made."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph.groups import couple_channels
from fec_fast.graph.hardcoded_widths import can_run, find_hardcoded_width
from fec_fast.graph.trace import Trace, trace_model
from fec_fast.pruning.context import build_context
from fec_fast.utils.model_index import ModelIndex

IMAGE = torch.randn(1, 3, 8, 8)


class HardCodedWidth(nn.Module):
    """Its second convolution feeds a reshape to a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.last(x.reshape(-1, 8, 8, 8).mean((2, 3)))


def as_data(value: Any) -> Any:
    """A trace as nested lists, tuples and dictionaries that can be compared."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [as_data(item) for item in value]
    if hasattr(value, "items"):
        return {key: as_data(item) for key, item in value.items()}
    return value if isinstance(value, int | str | None) else str(value)


def traced(model: nn.Module) -> Trace:
    return trace_model(ModelIndex.of(model), IMAGE)


def test_coupling_and_trial_runs_leave_the_trace_as_it_was() -> None:
    torch.manual_seed(0)
    model = HardCodedWidth().eval()
    trace = traced(model)
    before = copy.deepcopy(as_data(trace))
    free = couple_channels(trace)
    ignored = couple_channels(trace, ["first"])
    assert [coupled.name for coupled in free.sets] == ["first", "second"]
    assert [coupled.name for coupled in ignored.sets] == ["second"] and "first" in ignored.pinned

    pruned = ModelIndex.of(build_context(model, IMAGE, "l1", None, "both", ["first"]).pruned_copy([4]))
    assert not can_run(pruned, IMAGE)
    pin = find_hardcoded_width(pruned, IMAGE, trace, ignored.partition)
    pinned = couple_channels(trace, ["first"], [pin])
    assert not pinned.sets and pinned.pinned["second"] == pin.reason and pinned.notes[-1] == pin.note
    # Neither the trace nor the couplings made before know of the pin.
    assert as_data(trace) == before == as_data(traced(model))
    assert [coupled.name for coupled in couple_channels(trace).sets] == ["first", "second"]
    assert ignored.partition.reason(int(trace.weight_uses["second.weight"].outputs[0])) is None
    with pytest.raises(fec_fast.InputError, match="its code wants a width that was pruned"):
        find_hardcoded_width(pruned, IMAGE, trace, pinned.partition)  # nothing is left to pin


def test_a_trace_cannot_be_written_to() -> None:
    trace = traced(HardCodedWidth().eval())
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.notes = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        trace.weight_uses["first.weight"] = None  # type: ignore[index]
    for vector in (trace.partition.roots, trace.partition.reason_numbers, *trace.axes.values()):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1
    for use in trace.weight_uses.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            use.groups = 2  # type: ignore[misc]


def test_hard_coded_widths_are_found_one_after_another() -> None:
    """Several trial runs: each pin adds to those before, and the plan has the notes of all."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 12, 1)
            self.last = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).reshape(-1, 6, 8, 8)
            x = self.c(torch.relu(self.b(x)).view(-1, 8, 64).reshape(-1, 8, 8, 8))
            return self.last(x.mean((2, 3)))

    torch.manual_seed(0)
    result = fec_fast.prune(Two().eval(), IMAGE, ratio=0.5)
    assert [record["name"] for record in result.plan.sets] == ["c"]
    wanted = [note for note in result.plan.notes if "wants the width" in note]
    assert len(wanted) == 2 and wanted[0] != wanted[1]
    assert {"a", "b"} <= set(result.plan.pinned)
