"""The trace of a model: one run, watched operator by operator, that gives every weight axis its channel labels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
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
from .dispatch_mode import OperatorCost, TracedOperator, Tracer, WeightUse
from .labels import LabelPartition
from .rules.operators import apply_rule
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
        tracer = Tracer(index, apply_rule, evaluate)
        try:
            _run(index.model, example_inputs, tracer, training=False)
            break
        except InputError:  # its code depends on values, or it cannot be run at all
            if evaluate is _call:
                raise
    assert tracer.allocations is not None
    operators, costs, allocations = tuple(tracer.operators), tuple(tracer.costs), tracer.allocations.finish()
    tracer.allocations = None
    if _unreached(index, tracer):
        for evaluate in (call_shape_only, _call):
            tracer.evaluate = evaluate
            try:
                _run(index.model, example_inputs, tracer, training=True)
                break
            except Exception as error:
                if evaluate is _call:
                    tracer.notes[f"training mode could not be traced: {error}"] = None
    for name, module in index.modules.items():
        if isinstance(module, nn.MultiheadAttention) and (f"{name}.in_proj_weight", 0) not in tracer.axes:
            tracer.notes[f"{name}: attention was not traced and keeps its width"] = None
    for labels in tracer.axes.values():
        labels.flags.writeable = False
    return Trace(
        tracer.sets.partition(),
        MappingProxyType(tracer.axes),
        MappingProxyType(tracer.weight_uses),
        _unreached(index, tracer),
        tuple(tracer.notes),
        operators,
        costs,
        allocations,
    )


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _run(model: nn.Module, example_inputs: Any, tracer: Tracer, *, training: bool) -> None:
    with undisturbed(model, training=training), unfused_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reading = BlockValueAccess() if tracer.evaluate is call_shape_only else contextlib.nullcontext()
        with tracer.following(), reading:
            outputs = call_model(model, example_inputs)
    tracer.pin(outputs, "its channels are outputs of the model")


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


def _unreached(index: ModelIndex, tracer: Tracer) -> tuple[str, ...]:
    reached = {name for name, _ in tracer.axes}
    unreached = []
    for name, module in index.modules.items():
        if isinstance(module, nn.Linear | ConvolutionBase):
            owned = tracer.owned(getattr(module, "weight", None))
            if owned is not None and owned.name not in reached:
                unreached.append(name)
    return tuple(unreached)
