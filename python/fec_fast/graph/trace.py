"""One run of the model, watched operator by operator, that gives every weight axis its channel labels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..utils.compat import ConvolutionBase
from ..utils.errors import InputError
from ..utils.forward import call_model, undisturbed
from . import labels as lb
from . import shape_only as hollow
from .activation_memory import Allocation
from .dispatch_mode import Cost, Tracer, Use
from .rules.operators import apply_rule


@dataclass
class Trace:
    """What a run told about the model.

    Attributes:
        sets: Which labels stand or fall together, and which must stay.
        axes: For each parameter or buffer (first name) and axis, one label an index, int64.
        uses: Each weight's convolution or linear operation, by weight name.
        unreached: Convolution and linear layers that the example inputs did not reach.
        notes: Operators that were not understood, in words for the user.
        history: The operators of the run in evaluation mode, with the planes that went into each.
        costs: The multiply-accumulates of that run, operator by operator.
        allocations: The memory that its results took.
    """

    sets: lb.LabelSets
    axes: dict[tuple[str, int], np.ndarray]
    uses: dict[str, Use]
    unreached: list[str]
    notes: list[str]
    history: list[tuple[Any, list[lb.Plane]]]
    costs: list[Cost]
    allocations: list[Allocation]


def trace(model: nn.Module, example_inputs: Any) -> Trace:
    """Runs the model on example inputs and labels every channel.

    Layers that evaluation mode does not reach (auxiliary heads) are looked for in a second run, in training mode, with
    the labels of the first.

    Args:
        model: The model; left as it was.
        example_inputs: See :func:`fec_fast.utils.forward.call_model`.

    Returns:
        The labels of every axis and what was not understood.

    Raises:
        InputError: The model cannot be run on these inputs.
    """
    for evaluate in (hollow.evaluate, _as_it_is):
        tracer = Tracer(model, apply_rule, evaluate)
        try:
            _run(model, example_inputs, tracer, training=False)
            break
        except InputError:  # it looks at numbers, or it cannot be run at all
            if evaluate is _as_it_is:
                raise
    assert tracer.allocations is not None
    history, costs, allocations = list(tracer.history), list(tracer.costs), tracer.allocations.end()
    tracer.allocations = None
    if _unreached(tracer):
        for evaluate in (hollow.evaluate, _as_it_is):
            tracer.evaluate = evaluate
            try:
                _run(model, example_inputs, tracer, training=True)
                break
            except Exception as error:
                if evaluate is _as_it_is:
                    tracer.notes[f"training mode could not be traced: {error}"] = None
    for name, module in tracer.modules.items():
        if isinstance(module, nn.MultiheadAttention) and (f"{name}.in_proj_weight", 0) not in tracer.axes:
            tracer.notes[f"{name}: attention was not traced and keeps its width"] = None
    notes = list(tracer.notes)
    return Trace(tracer.sets, tracer.axes, tracer.uses, _unreached(tracer), notes, history, costs, allocations)


def _as_it_is(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _run(model: nn.Module, example_inputs: Any, tracer: Tracer, *, training: bool) -> None:
    with undisturbed(model, training=training), unfused_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reading = hollow.ReadingRefused() if tracer.evaluate is hollow.evaluate else contextlib.nullcontext()
        with tracer.following(), reading:
            outputs = call_model(model, example_inputs)
    tracer.pin(outputs, "its channels are outputs of the model")


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Has attention computed by matrix products: a fused operator would hide the layers, or the products, inside it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _unreached(tracer: Tracer) -> list[str]:
    seen = {name for name, _ in tracer.axes}
    unreached = []
    for name, module in tracer.modules.items():
        if isinstance(module, nn.Linear | ConvolutionBase):
            owned = tracer.owned(getattr(module, "weight", None))
            if owned is not None and owned.name not in seen:
                unreached.append(name)
    return unreached
