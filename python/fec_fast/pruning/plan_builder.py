"""Plan building: from the units that are removed to the plan that says what remains of every tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..graph.channel_statistics import REMEDY
from ..graph.cuts import CountKept
from ..graph.groups import CoupledChannels, Coupling, count_kept, kept_indices, removed_labels, widths_after
from ..graph.held_sizes import HeldSize
from ..graph.trace import Trace
from ..graph.weight_labels import WeightUse
from ..plan.plan import Plan
from ..plan.shapes import persistent_shapes, pruned_shapes, reading_name, shapes_fingerprint, weight_name
from ..scoring.formula import Formula
from ..utils.compat import ConvolutionBase, NormBase
from ..utils.errors import list_some
from ..utils.model_index import ModelIndex

# Lists of numbers, and the module that an operator runs in or that a channel feeds.
_VARYING = re.compile(r"\[[\d, ]+\]|(?<= in )[\w.]+(?= (?:cuts|divides|takes|runs))|(?<=it feeds )[\w.]+(?= together)")


def layers_by_reason(reasons: Mapping[str, str]) -> dict[str, str]:
    """Groups layers by the reason given for them; reasons that differ in numbers and modules alone are one.

    Args:
        reasons: For each layer the reason.

    Returns:
        For each reason (of its first layer) its layers, separated by commas.
    """
    layers: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for layer, reason in reasons.items():
        kind = _VARYING.sub("", reason)
        layers.setdefault(first.setdefault(kind, reason), []).append(layer)
    return {reason: ", ".join(names) for reason, names in layers.items()}


def kept_for_norms(coupling: Coupling) -> list[str]:
    """A warning for the user where most layers are kept whole because norms take statistics over their channels.

    Args:
        coupling: The coupled channels and what is pinned.

    Returns:
        At most one message.
    """
    kept = [layer for layer, reason in coupling.pinned.items() if REMEDY in reason]
    prunable = {layer for coupled in coupling.sets for layer in coupled.layers}
    if len(kept) <= len(prunable):
        return []
    return [
        f"norms take statistics over the channels of {list_some(kept)}: {len(kept)} layers keep all their channels, "
        f'{len(prunable)} can lose some; norms="renormalise" lets those go that norms alone keep'
    ]


def lowest_units(scores: Sequence[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """The units with the lowest scores; of equal scores, the first unit.

    Args:
        scores: For each set ``[units]``.
        counts: For each set the number of units wanted.

    Returns:
        For each set the positions of the units, rising.
    """
    return [
        np.sort(np.argsort(values.numpy(), kind="stable")[:count]).tolist() if count else []
        for values, count in zip(scores, counts, strict=True)
    ]


def unit_labels(sets: Sequence[CoupledChannels], units: Sequence[Sequence[int]]) -> set[int]:
    """The labels of some units.

    Args:
        sets: The coupled sets.
        units: For each set the positions of some units.

    Returns:
        Their labels (representatives).
    """
    return {coupled.units[unit] for coupled, of_set in zip(sets, units, strict=True) for unit in of_set}


def make_plan(
    index: ModelIndex,
    trace: Trace,
    coupling: Coupling,
    removed_units: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]],
    *,
    criterion: str,
    formula: Formula | None,
    sides: str,
    sizes: Sequence[HeldSize] = (),
    notes: Sequence[str] = (),
) -> Plan:
    """Writes down what remains of every tensor.

    Args:
        index: The index of the model before pruning.
        trace: Its trace.
        coupling: Its coupled sets, and what is pinned.
        removed_units: For each set the positions of the units that are removed, rising.
        scores: For each set the score of every unit.
        criterion: The criterion's name.
        formula: Of the entropies, for the criteria ``"fec_l1"`` and ``"fec"``; else ``None``.
        sides: ``"both"`` or ``"producer"``.
        sizes: Attributes of modules that change with the widths.
        notes: Notes that come before the plan's own.

    Returns:
        The plan.
    """
    is_removed = removed_labels(coupling.partition, unit_labels(coupling.sets, removed_units))
    # Most axes share one vector of labels (the four tensors of a batch norm, the next layer's inputs). What is kept is
    # computed once per vector, and the plan's lists are shared in the same way.
    kept_of = {id(labels): kept_indices(labels, is_removed) for labels in trace.axes.values()}
    keep: dict[str, dict[str, list[int]]] = {}
    for name, tensor in index.tensors.items():
        for axis in range(tensor.dim()):
            # The trace has a tied tensor under its first name, the plan under every name.
            labels = trace.axes.get((index.first_names[id(tensor)], axis))
            if labels is not None and len(kept_of[id(labels)]) < len(labels):
                keep.setdefault(name, {})[str(axis)] = kept_of[id(labels)]
    partly_kept = [
        f"{layers}: some channels are kept: {reason}"
        for reason, layers in layers_by_reason(coupling.partly_pinned).items()
    ]
    norms = _norm_records(trace, is_removed, kept_of)
    shapes = {name: list(index.tensors[name].shape) for name in keep}
    before = persistent_shapes(index)
    after = {**before, **{name: shape for name, shape in pruned_shapes(shapes, keep).items() if name in before}}
    plan = Plan(
        fingerprint=shapes_fingerprint(before),
        pruned_fingerprint=shapes_fingerprint(after),
        shapes=shapes,
        keep=keep,
        attributes=_new_attributes(index, trace, is_removed, keep),
        sizes=_new_sizes(sizes, count_kept(is_removed)),
        sets=_set_records(trace, coupling, removed_units, scores),
        criterion=criterion,
        formula=formula.to_dict() if formula else None,
        sides=sides,
        norms=norms,
        pinned=dict(coupling.pinned),
        notes=[*notes, *partly_kept, *coupling.notes],
    )
    changed = plan.changed_norms
    if not changed:
        return plan
    return plan.with_notes(
        f'norms="renormalise": the statistics of {list_some(changed)} run over the kept channels alone, so the network '
        "differs from the original by more than the removed channels: recover or train it"
    )


def _norm_records(
    trace: Trace, is_removed: np.ndarray, kept_of: Mapping[int, list[int]]
) -> dict[str, list[dict[str, Any]]]:
    """The records of a plan's ``norms``: which channels statistics run over that lose some."""
    norms: dict[str, list[dict[str, Any]]] = {}
    for found in trace.statistics:
        kept = kept_of.get(id(found.labels)) or kept_indices(found.labels, is_removed)
        if len(kept) < len(found.labels):
            place = {"operator": found.operator, "number": found.number, "dim": found.dim}
            norms.setdefault(found.layer, []).append({**place, "kept": kept, "exact": found.exact})
    return norms


def _set_records(
    trace: Trace, coupling: Coupling, removed_units: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """The records of a plan's ``sets``: what was decided on, and by which scores."""
    uses: dict[str, list[WeightUse]] = {}
    for use in trace.weight_uses.values():
        uses.setdefault(use.layer, []).append(use)
    return [
        {
            "name": coupled.name,
            "round": 1,
            "layers": list(coupled.layers),
            "units": len(coupled.units),
            "removed": list(removed),
            "scores": list(values),
            "filters": _units_by_filter(coupled, uses, coupling.partition.roots),
        }
        for coupled, removed, values in zip(coupling.sets, removed_units, scores, strict=True)
    ]


def _units_by_filter(
    coupled: CoupledChannels, uses: Mapping[str, Sequence[WeightUse]], roots: np.ndarray
) -> dict[str, list[int | None]]:
    """For each layer of a set, the unit that each filter belongs to; ``None`` for filters of other sets or of none."""
    unit_of = {label: unit for unit, label in enumerate(coupled.units)}
    return {
        layer: [unit for use in uses[layer] for unit in map(unit_of.get, roots[use.outputs].tolist())]
        for layer in coupled.layers
    }


def _new_attributes(
    index: ModelIndex, trace: Trace, is_removed: np.ndarray, keep: Mapping[str, Mapping[str, list[int]]]
) -> dict[str, dict[str, int]]:
    """For each module whose weight is narrowed, the attributes that have its widths (``in_channels`` and so on)."""
    attributes: dict[str, dict[str, int]] = {}
    for name, module in index.modules.items():
        weight = weight_name(name, keep)
        reading = reading_name(name, keep)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and reading is not None and "1" in keep[reading]:
            attributes[name] = {"input_size": len(keep[reading]["1"])}
        if weight is None:
            continue
        use = trace.weight_uses.get(index.first_names[id(index.tensors[weight])])
        if isinstance(module, ConvolutionBase) and use is not None:
            inputs, outputs, groups = widths_after(use, is_removed)
            attributes[name] = {"in_channels": inputs, "out_channels": outputs, "groups": groups}
        elif isinstance(module, nn.Linear) and use is not None:
            inputs, outputs, _ = widths_after(use, is_removed)
            attributes[name] = {"in_features": inputs, "out_features": outputs}
        elif use is not None and _holds_widths(module, use):  # such as a deformable convolution
            inputs, outputs, _ = widths_after(use, is_removed)
            attributes[name] = {"in_channels": inputs, "out_channels": outputs}
        elif isinstance(module, NormBase):
            attributes[name] = {"num_features": len(keep[weight]["0"])}
    return attributes


def _holds_widths(module: nn.Module, use: WeightUse) -> bool:
    """Whether a module of another class holds its widths in the attributes that convolutions have."""
    held = vars(module).get("in_channels"), vars(module).get("out_channels")  # those of scripted modules are constants
    return held == (len(use.inputs), len(use.outputs)) and use.groups == 1


def _new_sizes(sizes: Sequence[HeldSize], count: CountKept) -> dict[str, dict[str, dict[str, Any]]]:
    """For each module the attributes of its own that hold a number of channels which changes: before and after."""
    new: dict[str, dict[str, dict[str, Any]]] = {}
    for size in sizes:
        after = size.after(count)
        if after != size.before:
            new.setdefault(size.module, {})[size.attribute] = {"before": size.before, "after": after}
    return new
