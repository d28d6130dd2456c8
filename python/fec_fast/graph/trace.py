"""The trace of a model: one run, watched operator by operator, that gives every weight axis its channel labels."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.compat import ConvolutionBase, base_of, storage_id
from ..utils.computed_weights import computed_attributes, weight_parts
from ..utils.critical_section import put_back_by, surely_left
from ..utils.errors import InputError
from ..utils.forward import (
    call_model,
    copied_inputs,
    plain_operators,
    restored_attributes,
    restored_buffers,
    restored_parameters,
)
from ..utils.model_index import ModelIndex
from ..utils.outputs import named_tensors_in
from ..utils.precision import without_autocast
from .activation_memory import Allocation
from .channel_statistics import ChannelStatistics
from .cuts import Cut
from .dispatch_mode import OperatorCost, TracedOperator, TracingMode
from .held_sizes import HeldSize
from .label_sets import LabelPartition, Pin
from .label_tracker import LabelTracker
from .rules.registry import DataDependentError
from .scale_probe import computed_scales
from .shape_only import ShapeOnlyRun, ValueAccess, block_value_access, call_with_values
from .weight_labels import WeightUse

OUTPUTS = "its channels are outputs of the model"


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run showed of a model. Nothing in it is changed after it is made.

    Attributes:
        partition: Which labels are removed together, and which must be kept.
        axes: For each parameter or buffer (first name) and axis, one label per index, int64.
        weight_uses: The first convolution or linear operation of each weight, by the name of the weight.
        further_uses: The first of each other way in which such a weight is used: transposed, or in other groups.
        unreached: Convolution and linear layers that the example inputs did not reach.
        unseen_training: Why the run in training mode stopped before its end, where layers are reached in that mode
            alone; ``None`` if it did not.
        notes: What was not understood and what follows from it, for the user.
        operators: The operators of the run in evaluation mode, in order.
        training_operators: Those of the run in training mode; ``None`` if there was none.
        cuts: The operators in evaluation mode that divide channels, or shape a tensor with channels.
        training_cuts: The same of the run in training mode.
        lines: The lines of the model's code that cuts are in, as far as they are known.
        sizes: Attributes of modules that are known to hold numbers of channels; they change with the widths.
        norms: What happens to channels that statistics are taken over, as given.
        statistics: Statistics over channels that may go.
        believed: The channels of operators without a rule that act within each channel on trial, with the operator and
            the module.
        costs: The multiply-accumulates of that run, for each operator that is counted.
        allocations: The memory that its results took.
        needs_values: Whether evaluation mode cannot be run for its shapes alone, because the code reads values.
    """

    partition: LabelPartition
    axes: Mapping[tuple[str, int], np.ndarray]
    weight_uses: Mapping[str, WeightUse]
    further_uses: tuple[WeightUse, ...]
    unreached: tuple[str, ...]
    unseen_training: str | None
    notes: tuple[str, ...]
    operators: tuple[TracedOperator, ...]
    training_operators: tuple[TracedOperator, ...] | None
    cuts: tuple[Cut, ...]
    training_cuts: tuple[Cut, ...]
    lines: Mapping[Cut, str]
    sizes: tuple[HeldSize, ...]
    norms: str
    statistics: tuple[ChannelStatistics, ...]
    believed: tuple[tuple[np.ndarray, str], ...]
    costs: tuple[OperatorCost, ...]
    allocations: tuple[Allocation, ...]
    needs_values: bool

    @property
    def scored_uses(self) -> list[WeightUse]:
        """The operations whose weights have elements; some layers have no inputs, or no filters."""
        return [use for use in self.weight_uses.values() if len(use.inputs) and len(use.outputs)]

    def macs_by_layer(self) -> dict[str, int]:
        """Adds up the multiply-accumulates of the run by layer.

        Returns:
            For each layer in whose code an operator with a cost ran, its multiply-accumulates.
        """
        return add_up_by_layer((cost.layer, cost.macs) for cost in self.costs)


def trace_model(index: ModelIndex, example_inputs: Any, *, training: bool = False, norms: str = "exact") -> Trace:
    """Runs a model on example inputs and labels every channel.

    Layers that evaluation mode does not reach (auxiliary heads) are looked for in a second run, in training mode, with
    the labels of the first.

    Args:
        index: The index of the model, which is left as it was.
        example_inputs: See :func:`fec_fast.utils.forward.call_model`.
        training: Whether to make the second run even where evaluation mode reaches every layer.
        norms: What happens to channels that statistics are taken over: one of
            :data:`fec_fast.graph.channel_statistics.NORMS`.

    Returns:
        The labels of every axis, the costs, and notes on what was not understood.

    Raises:
        InputError: The model cannot be run on these inputs.
    """
    mode = _choose_heads(index, example_inputs, _trace_evaluation(index, example_inputs, norms, {}), norms)
    assert mode.allocations is not None
    operators, costs, allocations = tuple(mode.operators), tuple(mode.costs), mode.allocations.finish()
    mode.allocations = None
    tracker, unseen_training, training_operators = mode.tracker, None, None
    cuts, training_cuts = tuple(tracker.cuts), tuple[Cut, ...]()
    if training or _unreached(index, tracker):
        unseen_training = _trace_training(index, example_inputs, mode)
        training_operators, training_cuts = tuple(mode.operators), tuple(tracker.cuts)
    for name, module in index.modules.items():
        if isinstance(module, nn.MultiheadAttention) and (f"{name}.in_proj_weight", 0) not in tracker.axes:
            tracker.notes[f"{name}: attention was not traced and keeps its width"] = None
    tracker.notes.update(dict.fromkeys(tracker.weights.notes()))
    unreached = _unreached(index, tracker)
    heads = _pins_for_heads(index, tracker, unreached)
    tracker.notes.update(dict.fromkeys(pin.note for pin in heads))
    for labels in tracker.axes.values():
        labels.flags.writeable = False
    return Trace(
        tracker.sets.partition().with_pins(heads),
        MappingProxyType(tracker.axes),
        MappingProxyType(tracker.weight_uses),
        tuple(tracker.further_uses),
        unreached,
        unseen_training,
        tuple(tracker.notes),
        operators,
        training_operators,
        cuts,
        training_cuts,
        MappingProxyType(tracker.lines),
        tuple(tracker.sizes.values()),
        norms,
        tuple(tracker.statistics.places.values()),
        tuple(tracker.believed),
        costs,
        allocations,
        mode.needs_values,
    )


def _choose_heads(index: ModelIndex, example_inputs: Any, mode: TracingMode, norms: str) -> TracingMode:
    """Traces a model again, if it multiplies activations, and can lose more channels as whole heads."""
    heads = mode.tracker.heads
    if not heads.has_products:
        return mode
    scales = heads.scales()
    computed = computed_scales(index, example_inputs, scales) if scales else set[str]()
    whole, needs_values = heads.whole(index.modules, computed), mode.needs_values
    if whole:
        mode = _trace_evaluation(index, example_inputs, norms, whole, needs_values=needs_values)
    more = mode.tracker.heads.pinned(index.modules, mode.tracker.sets.partition())
    if more:
        other = _trace_evaluation(index, example_inputs, norms, {**whole, **more}, needs_values=needs_values)
        mode = other if _removable(other.tracker) > _removable(mode.tracker) else mode
    return mode


def _removable(tracker: LabelTracker) -> int:
    """How many filters may be removed."""
    pinned = tracker.sets.partition().pinned
    return sum(int(np.count_nonzero(~pinned[use.outputs])) for use in tracker.weight_uses.values())


def _trace_evaluation(
    index: ModelIndex, example_inputs: Any, norms: str, heads: Mapping[str, int], *, needs_values: bool = False
) -> TracingMode:
    """Runs the model in evaluation mode, for its shapes alone where that is possible."""
    if not needs_values:
        mode = TracingMode(index, norms, heads)
        try:
            _run(index, example_inputs, mode, training=False, for_shapes=True)
            return mode
        except InputError as error:  # its code depends on values, or it cannot be run at all
            needs_values = isinstance(error.__cause__, DataDependentError)
    mode = TracingMode(index, norms, heads)
    mode.needs_values = needs_values
    try:
        _run(index, example_inputs, mode, training=False, for_shapes=False)
        return mode
    except InputError as error:
        scripted = [name for name, module in index.modules.items() if isinstance(module, torch.jit.ScriptModule)]
        if not scripted:
            raise
        raise InputError(
            f"{error}\nIts module {scripted[0]!r} is TorchScript; if it cannot be traced, give the module that "
            "torch.jit.script or trace was called on, and script the result"
        ) from error


def _pins_for_heads(index: ModelIndex, tracker: LabelTracker, unreached: Sequence[str]) -> list[Pin]:
    """Keeps what the model's last layers read, if a layer that was not reached can only be another of them.

    It is of their kind, no other layer reads as many channels, and none reads as many as it makes: it may be the head
    of another task, which the model's code chooses by an argument.
    """
    partition, pins = tracker.sets.partition(), []
    widths_read = {input_width(index, layer) for layer in unreached}
    widths_read.update(len(use.inputs) for use in tracker.weight_uses.values())
    for layer in unreached:
        module = index.modules[layer]
        if getattr(module, "out_features", getattr(module, "out_channels", None)) in widths_read:
            continue
        readers = [use for use in tracker.weight_uses.values() if len(use.inputs) == input_width(index, layer)]
        linear = isinstance(module, nn.Linear)
        if all(
            partition.reason(int(use.outputs[0])) == OUTPUTS
            and isinstance(index.modules.get(use.layer), nn.Linear) == linear
            for use in readers
        ):
            for use in readers:
                reason = f"{layer} was not reached by the example inputs, and may read it as {use.layer} does"
                note = f"{layer}: not reached by the example inputs; what {use.layer} reads is kept, as it may read it"
                pins.append(Pin(use.inputs, reason, note))
    return pins


def input_width(index: ModelIndex, layer: str) -> int:
    """The number of channels that a convolution or linear layer reads, as its attributes say.

    Args:
        index: The index of the model.
        layer: The name of the layer.
    """
    module = index.modules[layer]
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)  # type: ignore[arg-type]


def add_up_by_layer(macs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Adds up numbers by layer.

    Args:
        macs: For each operator the name of its layer and its multiply-accumulates.

    Returns:
        For each layer the sum, in the order in which the layers first come.
    """
    sums: dict[str, int] = defaultdict(int)
    for layer, number in macs:
        sums[layer] += number
    return dict(sums)


def _trace_training(index: ModelIndex, example_inputs: Any, mode: TracingMode) -> str | None:
    """Runs the model once more, in training mode; what a run that stops half way has touched is kept whole.

    Returns:
        Why the run stopped before its end; ``None`` if it did not.
    """
    tracker, seen, cuts = mode.tracker, set(mode.tracker.axes), mode.tracker.cuts
    failure = ""
    for for_shapes in (True, False):
        mode.operators, tracker.cuts = [], []
        try:
            _run(index, example_inputs, mode, training=True, for_shapes=for_shapes)
            return None
        except Exception as error:
            failure = str(error.__cause__ or error).strip().partition("\n")[0][:160]
    reason = f"training mode could not be traced ({failure})"
    for key in tracker.axes.keys() - seen:
        tracker.sets.pin(tracker.axes[key], f"{reason}, and it was reached in that mode alone")
    for cut in tracker.cuts:
        if cut.divides and not any(cut.is_like(other) for other in cuts):
            tracker.sets.pin(cut.channels, f"{reason}, and {cut.operator} divides its channels in that mode alone")
    tracker.notes[f"{reason}: layers that only training reaches, and what they read, keep their width"] = None
    return failure


def _run(index: ModelIndex, example_inputs: Any, mode: TracingMode, *, training: bool, for_shapes: bool) -> None:
    with restored_attributes(index):  # outside: what the code leaves on its modules is an output, and is looked for
        _watch(index, example_inputs, mode, training, for_shapes)


def _watch(index: ModelIndex, example_inputs: Any, mode: TracingMode, training: bool, for_shapes: bool) -> None:
    tracker = mode.tracker

    def pin_read(tensor: Tensor, method: str) -> None:
        mode.values_read = True
        tracker.pin(tensor, f"its values leave the model by {method}")

    with (
        without_autocast(),
        restored_buffers(index, training=training),
        plain_operators(index),
        surely_left(warnings.catch_warnings()),
        restored_parameters(index) as replaced,
    ):
        warnings.simplefilter("ignore", UserWarning)
        given = copied_inputs(example_inputs)
        mode.evaluate = ShapeOnlyRun(given) if for_shapes else call_with_values
        values = block_value_access() if for_shapes else ValueAccess(pin_read)
        with put_back_by(mode.guard.restore):
            with mode.watching(), values:
                outputs = call_model(index.model, given)
            written = dict.fromkeys((*replaced(), *mode.guard.written))
    returned = [tensor for _, tensor in named_tensors_in(outputs)]
    tracker.pin(returned, OUTPUTS)
    left_behind = _pin_outliving(tracker, returned)
    for name in written:
        view = tracker.parameter_view(index.tensors[name])
        assert view is not None
        for axis in range(index.tensors[name].dim()):
            tracker.pin_axis(view, axis, f"the model's code writes to {name}")
        tracker.notes[f"the model's code writes to {name} in a run: it keeps its shape"] = None
    if not (returned or left_behind or mode.values_read):
        raise InputError(
            f"{type(index.model).__name__} returns a {type(outputs).__name__} in which no tensor is found, and leaves "
            "none behind: which channels are its outputs is not known; let forward return tensors, in containers or as "
            "attributes of an object"
        )


def _pin_outliving(tracker: LabelTracker, returned: Sequence[Tensor]) -> bool:
    """Pins the channels of every tensor that outlives the run, wherever the model's code has left it.

    Args:
        tracker: The labels.
        returned: What the model returned.

    Returns:
        Whether there was any besides the memory that the model returned.
    """
    # What a hook of torch has left in an attribute is computed anew in every run: it is no output.
    modules = tracker.modules.values()
    hooked = {id(tensor) for module in modules for tensor in computed_attributes(module).values()}
    memory = {storage_id(tensor) for tensor in returned}
    if any(storage_id(tensor) not in memory for tensor in tracker.outliving()):
        # Only a cycle of references may hold it. Collecting takes long, and frees nothing that the model refers to.
        held = itertools.chain(returned, *map(_held_by, modules))
        referred = {id(each) for tensor in held if isinstance(tensor, Tensor) for each in (tensor, base_of(tensor))}
        if any(id(tensor) not in referred for tensor in tracker.outliving()):
            gc.collect()
    tensors = [tensor for tensor in tracker.outliving() if id(tensor) not in hooked]
    tracker.pin(tensors, "its channels outlive the run: an attribute, a hook or a closure refers to them")
    return any(storage_id(tensor) not in memory for tensor in tensors)


def _held_by(module: nn.Module) -> Iterator[Any]:
    """The attributes of a module, and the elements of those that are lists, tuples or dictionaries."""
    for value in vars(module).values():
        yield value
        if isinstance(value, list | tuple | dict):
            yield from value.values() if isinstance(value, dict) else value


def _unreached(index: ModelIndex, tracker: LabelTracker) -> tuple[str, ...]:
    """The convolution and linear layers whose weight has no labels."""
    reached = {name for name, _ in tracker.axes}
    unreached = []
    for name, module in index.modules.items():
        if isinstance(module, nn.Linear | ConvolutionBase):
            parts = [index.first_names[id(tensor)] for tensor in weight_parts(module).values()]
            if parts and not reached.intersection(parts):
                unreached.append(name)
    return tuple(unreached)
