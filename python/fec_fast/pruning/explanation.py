"""``explain``: why each filter of a layer was removed or kept, from the records of a plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..plan.plan import Plan, check_plan, expect_plan
from ..scoring import reference
from ..scoring.formula import Formula
from ..scoring.layers import TRANSPOSED, read_weight
from ..utils.errors import ArgumentError, LayerError, nearest
from ..utils.html import html_panel
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.text import counted


@dataclass(frozen=True)
class FilterExplanation:
    """What was decided on one filter, and by which score.

    Attributes:
        index: The position of the filter in the layer, before pruning.
        removed: Whether it was removed.
        set_name: The coupled set it belongs to; ``None`` for a filter that belongs to none and is therefore kept.
        round: The round of pruning in which it was decided on (last), from 1; 0 for a filter of no set.
        score: Its score in that round; units with the lowest scores are removed first. ``None`` for a filter of no set.
        rank: The rank of that score in the set, from 1 for the lowest; equal scores rank by position. ``None`` for a
            filter of no set.
        of: The number of units of the set; ``None`` for a filter of no set.
        neighbours: Index and Euclidean distance of the nearest other filters of the layer, nearest first; empty unless
            the model was given.
    """

    index: int
    removed: bool
    set_name: str | None
    round: int
    score: float | None
    rank: int | None
    of: int | None
    neighbours: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        """One line."""
        state = "removed" if self.removed else "kept   "
        if self.set_name is None:
            text = f"filter {self.index}: {state}  it belongs to no coupled set"
        else:
            text = f"filter {self.index}: {state}  score {self.score:.6g}, rank {self.rank} of {self.of}"
            text += f", round {self.round}" if self.round > 1 else ""
        if self.neighbours:
            text += "; nearest: " + ", ".join(f"{index} at {distance:.4g}" for index, distance in self.neighbours)
        return text


@dataclass(frozen=True)
class LayerExplanation:
    """What was decided on the filters of a layer.

    Attributes:
        layer: The name of the layer.
        criterion: The name of the criterion, and the sides it was applied to.
        coupled: For each coupled set the layer belongs to (by name), the other layers that lose the same channels.
        pinned: For a layer none of whose filters could be removed, the reason; else ``None``.
        filters: One entry per filter; empty for a pinned layer unless the model was given.
        notes: The plan's notes on the layer, and on norms that run over the kept channels alone.
    """

    layer: str
    criterion: str
    coupled: dict[str, tuple[str, ...]]
    pinned: str | None
    filters: tuple[FilterExplanation, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """One line; ``str()`` gives all filters."""
        removed, total = sum(entry.removed for entry in self.filters), counted(len(self.filters), "filter")
        return f"<LayerExplanation {self.layer!r}: {removed} of {total} removed, by {self.criterion}>"

    def _repr_html_(self) -> str:
        """For notebooks: one row per filter, the lowest score first."""
        ranked = sorted(self.filters, key=lambda entry: (entry.rank is None, entry.rank))
        rows = [
            (
                str(entry.index),
                "removed" if entry.removed else "kept",
                "" if entry.score is None else f"{entry.score:.6g}",
                "" if entry.rank is None else f"{entry.rank} of {entry.of}",
            )
            for entry in ranked
        ]
        title, *facts = self.heading().splitlines()
        return html_panel(title, facts, ("filter", "", "score", "rank"), rows, "rlrr")

    def heading(self) -> str:
        """What holds for the whole layer.

        Returns:
            Text of a few lines: how many filters were removed and by which criterion, or why none could be; the coupled
            sets; the notes.
        """
        if self.pinned is not None:
            lines = [f"{self.layer}: kept all its filters: {self.pinned}"]
        else:
            removed = sum(entry.removed for entry in self.filters)
            lines = [f"{self.layer}: {removed} of {len(self.filters)} filters removed, by {self.criterion}"]
        for name, layers in self.coupled.items():
            others = f"coupled with {', '.join(layers)}" if layers else "coupled with no other layer's filters"
            lines.append(f"set {name}: {others}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        """The heading, then one line per filter."""
        return "\n".join([self.heading(), *map(str, self.filters)])


@interruptible
def explain(plan: Plan, layer: str, model: nn.Module | None = None, *, neighbours: int = 3) -> LayerExplanation:
    """Explains which filters of a layer were removed, and by which scores.

    Args:
        plan: The plan.
        layer: The name of a convolution or linear layer in the original model.
        model: The model before pruning, with its weights. If given, each filter's nearest neighbours are reported, by
            Euclidean distances between filters, compressed as by the plan's formula if that compares filters, else as
            they are. ``None`` reports no neighbours.
        neighbours: The number of neighbours per filter, at least 1; 3 by default.

    Returns:
        The explanation; ``str()`` gives it as text.

    Raises:
        LayerError: The plan has no filters of such a layer; the nearest names are in the message.
        PlanError: The plan is for another model.
        WeightError: The layer's weight cannot be read.
        ArgumentError: An argument of the wrong kind.
    """
    expect_plan(plan)
    if not isinstance(layer, str):
        raise ArgumentError(f"layer={layer!r:.80}: give the name of a layer")
    if type(neighbours) is not int or neighbours < 1:
        raise ArgumentError(f"neighbours={neighbours!r}: give a whole number of at least 1")
    records = [record for record in plan.sets if layer in record["filters"]]
    pinned = None if records else plan.pinned.get(layer)
    if not records and pinned is None:
        names = dict.fromkeys([name for record in plan.sets for name in record["layers"]] + list(plan.pinned))
        is_narrowed = any(name.rpartition(".")[0] == layer for name in plan.keep)
        problem = (
            f"layer {layer!r} has no filters of its own in the plan"
            if is_narrowed
            else f"no layer {layer!r} in the plan"
        )
        raise LayerError(f"{problem}; {nearest(layer, names)}")
    neighbours_of = {} if model is None else _neighbours(plan, layer, model, neighbours)
    width = len(records[0]["filters"][layer]) if records else len(neighbours_of)
    entries = [FilterExplanation(index, False, None, 0, None, None, None) for index in range(width)]
    coupled: dict[str, tuple[str, ...]] = {}
    # In the order of rounds: a filter that was kept in one round is decided on again in the next.
    for record in sorted(records, key=lambda record: int(record["round"])):
        coupled[record["name"]] = tuple(name for name in record["layers"] if name != layer)
        scores, removed = record["scores"], set(record["removed"])
        order = sorted(range(len(scores)), key=lambda unit: (scores[unit], unit))
        ranks = {unit: rank for rank, unit in enumerate(order, 1)}
        for index, unit in enumerate(record["filters"][layer]):
            if unit is not None:
                entries[index] = FilterExplanation(
                    index, unit in removed, record["name"], record["round"], scores[unit], ranks[unit], len(scores)
                )
    entries = [dataclasses.replace(entry, neighbours=neighbours_of.get(entry.index, ())) for entry in entries]
    of_layer = [note for note in plan.notes if layer in note.partition(":")[0].split(", ")]
    notes = tuple([*of_layer, *(note for note in plan.notes if note.startswith("norms="))])
    return LayerExplanation(layer, f"{plan.criterion}, sides {plan.sides}", coupled, pinned, tuple(entries), notes)


def _neighbours(plan: Plan, layer: str, model: nn.Module, number: int) -> dict[int, tuple[tuple[int, float], ...]]:
    """For each filter the nearest other filters of the layer, with their distances."""
    index = ModelIndex.of(model)
    check_plan(plan, index)
    module = index.model.get_submodule(layer)
    if not hasattr(module, "weight"):
        raise LayerError(f"layer {layer!r} is a {type(module).__name__} without a weight of its own to compare")
    weight = read_weight(layer, module)
    formula = Formula.from_dict(plan.formula) if plan.formula else None
    compress = formula.compress if formula is not None and formula.axis == "filters" else "none"
    axis, groups = (1, module.groups) if isinstance(module, TRANSPOSED) else (0, 1)
    matrix: Tensor = reference.distances(weight, Formula(compress, axis="filters"), axis=axis, groups=groups)[0]
    matrix.fill_diagonal_(torch.inf)  # a filter is not its own neighbour
    distances, indices = matrix.topk(min(number, len(matrix) - 1), largest=False)
    return {
        index: tuple(zip(row.tolist(), values.tolist(), strict=True))
        for index, (row, values) in enumerate(zip(indices, distances, strict=True))
    }
