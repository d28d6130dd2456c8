"""A trace sees every tensor that leaves a model and what its code writes to, in both modes; later it is not changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph.cuts import Cut
from fec_fast.graph.groups import couple_channels
from fec_fast.graph.hardcoded_widths import find_hardcoded_width
from fec_fast.graph.recorded_run import can_run
from fec_fast.graph.trace import Trace, trace_model
from fec_fast.pruning.context import build_context
from fec_fast.utils.model_index import ModelIndex
from helpers.results import Boxes, Named, Pair, Slots

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
        items = value.items()
        return {key.number if isinstance(key, Cut) else key: as_data(item) for key, item in items}
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
    assert not pinned.sets and pinned.pinned["second"].startswith(pin.reason) and pinned.notes[-1] == pin.note
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
    result = fec_fast.prune(Two().eval(), IMAGE, ratio=0.5, recover=None)
    assert [record["name"] for record in result.plan.sets] == ["c"]
    wanted = [note for note in result.plan.notes if "the model's code asks for" in note]
    assert len(wanted) == 2 and "[1, 6, 8, 8]" in wanted[0] and "[1, 8, 64]" in wanted[1]
    assert {"a", "b"} <= set(result.plan.pinned)


LEFT: list[Any] = []
LEAVING: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "dataclass": lambda model, y: Boxes(y),
    "slots": lambda model, y: Slots(y),
    "namespace in a list": lambda model, y: [SimpleNamespace(inner=(y,))],
    "class of dictionaries": lambda model, y: Named(boxes=y),
    "named tuple": lambda model, y: Pair(y, None),
    "array": lambda model, y: y.numpy(),
    "array in an object": lambda model, y: SimpleNamespace(boxes=np.asarray(y)),
    "list of numbers": lambda model, y: y.tolist(),
    "attribute": lambda model, y: setattr(model, "found", y),
    "attribute in a list": lambda model, y: setattr(model, "found", [y]),
    "global": lambda model, y: LEFT.append(y),
}


class Leaves(nn.Module):
    """Its boxes leave in some way, beside the classes or alone."""

    def __init__(self, way: str, *, alone: bool) -> None:
        super().__init__()
        self.way, self.alone = way, alone
        self.body, self.classes, self.boxes = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 10, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.body(x))
        if self.alone:
            return LEAVING[self.way](self, self.boxes(y))
        return self.classes(y), LEAVING[self.way](self, self.boxes(y))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("way", LEAVING)
def test_channels_that_leave_in_any_way_are_outputs(way: str, verify: bool) -> None:
    torch.manual_seed(0)
    model = Leaves(way, alone=False).eval()
    result = fec_fast.prune(model, IMAGE, ratio=0.5, verify=verify, recover=None)
    assert (result.model.boxes.out_channels, result.model.classes.out_channels) == (4, 10)
    assert result.model.body.out_channels == 8
    LEFT.clear()
    alone = Leaves(way, alone=True).eval()
    del alone.classes
    result = fec_fast.prune(alone, IMAGE, ratio=0.5, verify=verify, recover=None)
    assert (result.model.boxes.out_channels, result.model.body.out_channels) == (4, 8)
    LEFT.clear()


def test_a_tensor_that_a_hook_keeps_is_an_output() -> None:
    torch.manual_seed(0)
    model = Leaves("dataclass", alone=False).eval()
    kept = []
    model.body.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with pytest.raises(fec_fast.LayerError, match="its channels outlive the run"):
        fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)


@pytest.mark.parametrize("grid", [False, True])
def test_a_tensor_in_a_cycle_of_references_is_no_output(grid: bool) -> None:
    """Also where a tensor that a module keeps, such as a detector's grid, would outlive the run anyway."""

    class Cycle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            features = self.first(x)
            if grid:
                self.grid = torch.arange(x.shape[-1]).reshape(1, -1).transpose(0, 1)
            garbage: list[object] = [features]
            garbage.append(garbage)
            return self.second(features)

    torch.manual_seed(0)
    result = fec_fast.prune(Cycle().eval(), IMAGE, ratio=0.5, recover=None)
    assert (result.model.first.out_channels, result.model.second.out_channels) == (4, 4)


def test_a_model_whose_results_are_not_found_is_refused() -> None:
    class Silent(nn.Sequential):
        def forward(self, x: Tensor) -> str:
            super().forward(x)
            return "done"

    model = Silent(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    for call in (fec_fast.prune, fec_fast.couplings):
        with pytest.raises(fec_fast.InputError, match="returns a str in which no tensor is found"):
            call(model, IMAGE)


def test_inputs_that_the_model_writes_to_are_left_as_they_were() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x *= 255.0
            return super().forward(x) / 255.0

    torch.manual_seed(0)
    model, image = Scaled(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.rand(1, 3, 8, 8)
    before = image.clone()
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    assert torch.equal(image, before) and result.model[0].out_channels == 4


WRITING: dict[str, Callable[[nn.Module], None]] = {
    "in place": lambda conv: conv.weight.mul_(0.5),
    "through data": lambda conv: conv.weight.data.mul_(0.5),
    "other memory": lambda conv: setattr(conv.weight, "data", conv.weight.data * 0.5),
    "other parameter": lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight * 0.5)),
}


@pytest.mark.parametrize("way", WRITING)
def test_weights_that_the_model_writes_to_are_left_as_they_were_and_keep_their_shape(way: str) -> None:
    class Writing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                WRITING[way](self[1])
            return super().forward(x)

    torch.manual_seed(0)
    model = Writing(*(nn.Conv2d(*sides, 1) for sides in ((3, 8), (8, 8), (8, 8), (8, 2)))).eval()
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    after = model.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert all(left is right for left, right in zip(model.parameters(), parameters, strict=True))
    assert [layer.out_channels for layer in result.model] == [8, 8, 4, 2]
    assert any("the model's code writes to 1.weight" in note for note in result.plan.notes)


def test_a_view_that_was_written_to_is_not_zero_when_masked() -> None:
    """A sum over channels may not take the removed ones for zeros, after ones were added through a view."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            y[:, :, 0] += 1.0
            return y.sum(1), self.last(y)

    with pytest.raises(fec_fast.LayerError, match="nothing to prune"):
        fec_fast.prune(Written().eval(), IMAGE, ratio=0.5, recover=None)


class Auxiliary(nn.Module):
    """In training mode it has a second head, whose run may fail half way."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.body, self.side = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.end, self.inner, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        y = self.head(torch.relu(self.inner(x)))
        if not self.training:
            return y
        side = self.side(x)
        if self.fails:
            raise ValueError("too small")
        return y, self.end(side)


def test_a_training_run_that_fails_half_way_leaves_what_it_touched_whole() -> None:
    torch.manual_seed(0)
    model = Auxiliary(fails=True).eval()
    with pytest.warns(UserWarning, match=r"training mode was not seen.*too small"):
        result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.model.body.out_channels == 16 and result.model.inner.out_channels == 6
    result.model.fails = False
    assert [tuple(output.shape) for output in result.model.train()(IMAGE)] == [(1, 5, 8, 8), (1, 4, 8, 8)]
    assert fec_fast.prune(Auxiliary(fails=False).eval(), IMAGE, ratio=0.5, recover=None).model.side.out_channels == 4


class Tasks(nn.Module):
    """Two heads of which an argument chooses one."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.body, self.middle, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), first, second

    def forward(self, x: Tensor, second: bool = False) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.body(x))))
        return self.second(x) if second else self.first(x)


def test_the_head_of_another_task_still_fits() -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(Tasks(nn.Conv2d(16, 4, 1), nn.Conv2d(16, 7, 1)).eval(), IMAGE, ratio=0.5, recover=None)
    assert result.model.body.out_channels == 4 and result.model(IMAGE, True).shape[1] == 7
    assert any(note.startswith("second: not reached") for note in result.plan.notes)


def test_a_layer_of_another_kind_that_was_not_reached_is_warned_of() -> None:
    torch.manual_seed(0)
    second = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))
    with pytest.warns(UserWarning, match=r"not reached by the example inputs.*second\.2"):
        result = fec_fast.prune(Tasks(nn.Conv2d(16, 4, 1), second).eval(), IMAGE, ratio=0.5, recover=None)
    assert result.model.middle.out_channels == 8


@pytest.mark.parametrize("fails", [True, False])
def test_a_width_that_training_mode_alone_wants_is_kept(fails: bool) -> None:
    """The reshape fails for another width, or it goes through and means something else."""

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.middle, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.middle(torch.relu(self.body(x))))
            y = self.head(x)
            return (y, x.view(1, 16, 64 if fails else -1).mean(2).pow(2).mean()) if self.training else y

    torch.manual_seed(0)
    result = fec_fast.prune(Trained().eval(), IMAGE, ratio=0.5, recover=None)
    assert (result.model.body.out_channels, result.model.middle.out_channels) == (4, 16)
    result.model.train()(IMAGE)
