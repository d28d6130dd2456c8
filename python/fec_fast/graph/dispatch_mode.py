"""The dispatch mode that watches a run: labels, costs and memory, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.compat import TorchDispatchMode
from ..utils.critical_section import surely_closed
from ..utils.model_index import ModelIndex
from ..utils.running_module import RunningModule
from .activation_memory import AllocationTracker
from .label_tracker import LabelTracker
from .labels import LabelMap
from .operator_call import OperatorCall
from .parameter_guard import ParameterGuard
from .plain_numbers import numbers_in
from .rules.lookup import rule_of
from .rules.weights import label_weights
from .weight_labels import ProductWidths, WeightUse

Evaluate = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """The multiply-accumulates of one operator.

    Attributes:
        layer: The module in whose code it ran.
        macs: How many.
        weight: The name of the weight in :attr:`Trace.weight_uses` whose widths it grows with; ``None`` for another
            operator.
        channels: The channels that another operator grows with, at most two vectors of labels; the others are pinned.
    """

    layer: str
    macs: int
    weight: str | None
    channels: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TracedOperator:
    """One operator of the run.

    Attributes:
        operator: The ATen operator.
        inputs: The labels of its operands, of those that an operator of the run made.
        layer: The module in whose code it ran.
        numbers: The plain numbers that it computes with.
    """

    operator: Any
    inputs: tuple[LabelMap, ...]
    layer: str
    numbers: tuple[float, ...]


class TracingMode(TorchDispatchMode):
    """Applies the rule of every operator of a run.

    Attributes:
        evaluate: Calls an operator with positional and keyword arguments; of one run, and to be set before it.
        tracker: The labels.
        operators: The operators so far.
        costs: The multiply-accumulates of those that have some.
        allocations: The memory of the results; ``None`` to leave it out.
        guard: Keeps the parameters that the model's code writes to.
        running: The module whose code is running.
        values_read: Whether the code reads values of a tensor out of torch.
        needs_values: Whether a run for the shapes alone was stopped, because the code reads values.
    """

    evaluate: Evaluate

    def __init__(self, index: ModelIndex, norms: str = "exact", heads: Mapping[str, int] | None = None) -> None:
        """Starts with nothing recorded.

        Args:
            index: The index of the model that will be run.
            norms: What happens to channels that statistics are taken over: one of
                :data:`fec_fast.graph.channel_statistics.NORMS`.
            heads: See :class:`fec_fast.graph.head_choice.HeadChoice`.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = LabelTracker(index, norms, heads)
        self.operators: list[TracedOperator] = []
        self.costs: list[OperatorCost] = []
        self.allocations: AllocationTracker | None = AllocationTracker(index.tensors.values())
        self.guard, self.values_read, self.needs_values = ParameterGuard(index), False, False
        self.running = RunningModule(index.modules)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator, then applies its rule."""
        kwargs = kwargs or {}
        # Looked up before the call, which overwrites the old strides.
        same_elements = func is torch.ops.aten.as_strided_.default and _shows_the_same_elements(*args)
        written = self.guard.before(func, args, kwargs)
        result = self.evaluate(func, args, kwargs)
        layer, place = self.running.name, (self.running.count(func), self.running.inputs)
        call = OperatorCall(func, args, kwargs, result, len(self.operators), layer, *place)
        inputs = self.tracker.known_label_maps(call.operands)
        self.operators.append(TracedOperator(func, inputs, layer, numbers_in(func, args, kwargs)))
        rule, use = rule_of(func), None
        if call.operands and not same_elements:  # an operator without operands makes a new tensor, without labels
            use = None if label_weights(self.tracker, call) else rule.labels(self.tracker, call)
        self.tracker.note_lines()
        for tensor in written:
            self.tracker.note_write(tensor)
        if not written:
            self.tracker.note_new_memory(call)
        self.values_read |= call.name == "_local_scalar_dense"
        if rule.macs is not None:
            weight = use.weight if isinstance(use, WeightUse) else None
            channels = use.channels if isinstance(use, ProductWidths) else ()
            self.costs.append(OperatorCost(layer, rule.macs(call), weight, channels))
        if self.allocations is not None:
            self.allocations.record(call.results, call.operands, self.tracker.extent_of)
        return call.result

    @surely_closed
    def watching(self) -> Iterator[None]:
        """Watches a run on this thread: the operators, and in which module each of them is."""
        with self.running.watching(), self:
            yield


def _shows_the_same_elements(
    tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> bool:
    """Whether new strides differ in dimensions of size 1 alone, as pooling sets them for a channels-last input."""
    strides = zip(size, stride, tensor.stride(), strict=False)
    return (
        tuple(size) == tuple(tensor.shape)
        and offset in (None, tensor.storage_offset())
        and all(new == old for length, new, old in strides if length > 1)
    )
