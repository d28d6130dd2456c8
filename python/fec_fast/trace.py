"""One run of the model, watched operator by operator, that gives every weight axis its channel labels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import labels as lb
from .inputs import call_model, undisturbed
from .rules import apply_rule
from .tracer import Tracer, Use


@dataclass
class Trace:
    """What a run told about the model.

    Attributes:
        sets: Which labels stand or fall together, and which must stay.
        axes: For each parameter or buffer (first name) and axis, one label an index.
        uses: Each weight's convolution or linear operation, by weight name.
        unreached: Convolution and linear layers that the example inputs did not reach.
        notes: Operators that were not understood, in words for the user.
        history: The operators of the run in evaluation mode, with the planes that went into each.
    """

    sets: lb.LabelSets
    axes: dict[tuple[str, int], list[int]]
    uses: dict[str, Use]
    unreached: list[str]
    notes: list[str]
    history: list[tuple[str, list[Tensor]]]


def trace(model: nn.Module, example_inputs: Any) -> Trace:
    """Runs the model on example inputs and labels every channel.

    Layers that evaluation mode does not reach (auxiliary heads) are looked for in a second run, in training mode, with
    the labels of the first.

    Args:
        model: The model; left as it was.
        example_inputs: See :func:`fec_fast.inputs.call_model`.

    Returns:
        The labels of every axis and what was not understood.

    Raises:
        InputError: The model cannot be run on these inputs.
    """
    tracer = Tracer(model, apply_rule)
    _run(model, example_inputs, tracer, training=False)
    history = list(tracer.history)
    if _unreached(model, tracer):
        try:
            _run(model, example_inputs, tracer, training=True)
        except Exception as error:
            tracer.notes[f"training mode could not be traced: {error}"] = None
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and (f"{name}.in_proj_weight", 0) not in tracer.axes:
            tracer.notes[f"{name}: attention was not traced and keeps its width"] = None
    return Trace(tracer.sets, tracer.axes, tracer.uses, _unreached(model, tracer), list(tracer.notes), history)


def _run(model: nn.Module, example_inputs: Any, tracer: Tracer, *, training: bool) -> None:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator would hide the layers inside it
    try:
        with undisturbed(model, training=training), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with tracer:
                outputs = call_model(model, example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    tracer.pin(outputs, "its channels are outputs of the model")


def _unreached(model: nn.Module, tracer: Tracer) -> list[str]:
    seen = {name for name, _ in tracer.axes}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        and first_names[id(module.weight)] not in seen
    ]
