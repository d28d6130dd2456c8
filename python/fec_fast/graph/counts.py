"""Counts: parameters and multiply-accumulates of a model, in total and by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..utils.compat import own_parameters
from ..utils.model_index import ModelIndex
from ..utils.text import change, counted, text_table
from .trace import trace_model


@dataclass(frozen=True)
class LayerCount:
    """Size of one layer, without its children.

    Attributes:
        parameters: The number of elements in its parameters.
        macs: Its multiply-accumulates in one call of the model.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Size of a model.

    Attributes:
        parameters: The number of elements in its parameters; a parameter shared by several layers counts once.
        macs: Multiply-accumulates of one call on the example inputs: half the floating-point operations that torch's
            counter gives (convolutions and matrix products; additions, activations and norms are not counted).
        by_layer: Both by layer, in the order of the model, for layers that have either; ``""`` is the model itself.
            The layers add up to the totals.
    """

    parameters: int
    macs: int
    by_layer: dict[str, LayerCount] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"<Counts: {self.parameters:,} parameters, {self.macs:,} MACs, {counted(len(self.by_layer), 'layer')}>"


def count(model: nn.Module, example_inputs: Any) -> Counts:
    """Counts parameters and multiply-accumulates of one call in evaluation mode.

    Args:
        model: The model; it is left as it was.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.

    Returns:
        The counts.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    index = ModelIndex.of(model)
    return counts_of(index, trace_model(index, example_inputs).macs_by_layer())


def counts_of(index: ModelIndex, macs: Mapping[str, int]) -> Counts:
    """Counts the parameters of a model and puts its multiply-accumulates beside them.

    Args:
        index: The index of the model.
        macs: The multiply-accumulates of each layer that has some, as :meth:`Trace.macs_by_layer` or
            :meth:`SizeModel.macs_by_layer` returns them.

    Returns:
        The counts.
    """
    parameters: dict[str, int] = defaultdict(int)
    seen: set[int] = set()
    for name, module in index.modules.items():
        for parameter in own_parameters(module).values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                parameters[name] += parameter.numel()
    by_layer = {
        name: LayerCount(parameters[name], macs.get(name, 0))
        for name in index.modules
        if parameters[name] or macs.get(name, 0)
    }
    return Counts(sum(parameters.values()), sum(macs.values()), by_layer)


def comparison_table(before: Counts, after: Counts) -> str:
    """Compares two counts in a table by layer, with the totals in the last row.

    Args:
        before: The counts of the original.
        after: The counts of the pruned model.

    Returns:
        Lines of text: layer; parameters before, after, and their change; MACs before, after, and their change.
    """
    nothing = LayerCount(0, 0)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*before.by_layer, *after.by_layer]):
        old, new = before.by_layer.get(name, nothing), after.by_layer.get(name, nothing)
        rows.append(_row(name or "(model)", old, new))
    rows.append(
        _row("total", LayerCount(before.parameters, before.macs), LayerCount(after.parameters, after.macs)),
    )
    header = ("layer", "parameters", "after", "change", "MACs", "after", "change")
    return text_table(header, rows, "lrrrrrr", totals=True)


def _row(name: str, old: LayerCount, new: LayerCount) -> tuple[str, ...]:
    return (
        name,
        f"{old.parameters:,}",
        f"{new.parameters:,}",
        change(old.parameters, new.parameters),
        f"{old.macs:,}",
        f"{new.macs:,}",
        change(old.macs, new.macs),
    )
