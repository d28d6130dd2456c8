"""The trace of a model: one run, watched operator by operator, that gives every weight axis its channel labels."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..utils.compat import ConvolutionBase
from ..utils.errors import InputError
from ..utils.forward import call_model, undisturbed
from ..utils.model_index import ModelIndex
from .activation_memory import Allocation
from .dispatch_mode import OperatorCost, TracedOperator, TracingMode
from .label_sets import LabelPartition
from .label_tracker import LabelTracker, WeightUse
from .shape_only import BlockValueAccess, call_shape_only


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run showed of a model. Nothing in it is changed after it is made.

    Attributes:
        partition: Which labels are removed together, and which must be kept.
        axes: For each parameter or buffer (first name) and axis, one label per index, int64.
        weight_uses: The convolution or linear operation of each weight, by the name of the weight.
        unreached: Convolution and linear layers that the example inputs did not reach.
        notes: What was not understood and what follows from it, for the user.
        operators: The operators of the run in evaluation mode, in order.
        costs: The multiply-accumulates of that run, for each operator that is counted.
        allocations: The memory that its results took.
    """

    partition: LabelPartition
    axes: Mapping[tuple[str, int], np.ndarray]
    weight_uses: Mapping[str, WeightUse]
    unreached: tuple[str, ...]
    notes: tuple[str, ...]
    operators: tuple[TracedOperator, ...]
    costs: tuple[OperatorCost, ...]
    allocations: tuple[Allocation, ...]

    def macs_by_layer(self) -> dict[str, int]:
        """Adds up the multiply-accumulates of the run by layer.

        Returns:
            For each layer in whose code an operator with a cost ran, its multiply-accumulates.
        """
        return add_up_by_layer((cost.layer, cost.macs) for cost in self.costs)


def trace_model(index: ModelIndex, example_inputs: Any) -> Trace:
    """Runs a model on example inputs and labels every channel.

    Layers that evaluation mode does not reach (auxiliary heads) are looked for in a second run, in training mode, with
    the labels of the first.

    Args:
        index: The index of the model, which is left as it was.
        example_inputs: See :func:`fec_fast.utils.forward.call_model`.

    Returns:
        The labels of every axis, the costs, and notes on what was not understood.

    Raises:
        InputError: The model cannot be run on these inputs.
    """
    for evaluate in (call_shape_only, _call):
        mode = TracingMode(index, evaluate)
        try:
            _run(index, example_inputs, mode, training=False)
            break
        except InputError:  # its code depends on values, or it cannot be run at all
            if evaluate is _call:
                raise
    assert mode.allocations is not None
    operators, costs, allocations = tuple(mode.operators), tuple(mode.costs), mode.allocations.finish()
    mode.allocations = None
    tracker = mode.tracker
    if _unreached(index, tracker):
        for evaluate in (call_shape_only, _call):
            mode.evaluate = evaluate
            try:
                _run(index, example_inputs, mode, training=True)
                break
            except Exception as error:
                if evaluate is _call:
                    tracker.notes[f"training mode could not be traced: {error}"] = None
    for name, module in index.modules.items():
        if isinstance(module, nn.MultiheadAttention) and (f"{name}.in_proj_weight", 0) not in tracker.axes:
            tracker.notes[f"{name}: attention was not traced and keeps its width"] = None
    for labels in tracker.axes.values():
        labels.flags.writeable = False
    return Trace(
        tracker.sets.partition(),
        MappingProxyType(tracker.axes),
        MappingProxyType(tracker.weight_uses),
        _unreached(index, tracker),
        tuple(tracker.notes),
        operators,
        costs,
        allocations,
    )


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


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _run(index: ModelIndex, example_inputs: Any, mode: TracingMode, *, training: bool) -> None:
    with undisturbed(index, training=training), unfused_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        values = BlockValueAccess() if mode.evaluate is call_shape_only else contextlib.nullcontext()
        with mode.watching(), values:
            outputs = call_model(index.model, example_inputs)
    mode.tracker.pin(outputs, "its channels are outputs of the model")


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Computes attention by matrix products: a fused operator would hide the layers, or the products, inside it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _unreached(index: ModelIndex, tracker: LabelTracker) -> tuple[str, ...]:
    """The convolution and linear layers whose weight has no labels."""
    reached = {name for name, _ in tracker.axes}
    unreached = []
    for name, module in index.modules.items():
        if isinstance(module, nn.Linear | ConvolutionBase):
            view = tracker.parameter_view(getattr(module, "weight", None))
            if view is not None and view.name not in reached:
                unreached.append(name)
    return tuple(unreached)
