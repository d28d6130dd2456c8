"""From the units that go to the plan that says what remains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..graph.dispatch_mode import WeightUse
from ..graph.groups import CoupledChannels, Coupling, kept_indices, removed_labels, widths_after
from ..graph.trace import Trace
from ..plan.plan import Plan
from ..plan.shapes import pruned_shapes, shapes_fingerprint
from ..scoring.formula import Formula
from ..utils.compat import BatchNormBase, ConvolutionBase
from ..utils.modules import modules_of, named_tensors


def by_reason(layers: Mapping[str, str]) -> dict[str, str]:
    """From a reason for each layer to the layers of each reason, in words."""
    gathered: dict[str, list[str]] = {}
    for layer, reason in layers.items():
        gathered.setdefault(reason, []).append(layer)
    return {reason: ", ".join(names) for reason, names in gathered.items()}


def choose(
    sets: Sequence[CoupledChannels], counts: Sequence[int], scores: Sequence[list[float]], traced: Trace
) -> tuple[set[int], list[dict[str, Any]]]:
    """Chooses the units with the lowest scores.

    Args:
        sets: The coupled sets.
        counts: How many units each loses.
        scores: One score a unit of each.
        traced: The traced model.

    Returns:
        The labels (representatives) of the units that go, and the records of a plan's ``sets``.
    """
    removed: set[int] = set()
    records = []
    uses: dict[str, list[WeightUse]] = {}
    for use in traced.weight_uses.values():
        uses.setdefault(use.layer, []).append(use)
    for one, number, values in zip(sets, counts, scores, strict=True):
        gone = np.sort(np.argsort(values, kind="stable")[:number]).tolist()  # of equal scores the first unit goes
        removed.update(map(one.units.__getitem__, gone))
        records.append(
            {
                "name": one.name,
                "round": 1,
                "layers": list(one.layers),
                "units": len(one.units),
                "removed": gone,
                "scores": values,
                "filters": _units_by_filter(one, uses, traced.partition.roots),
            }
        )
    return removed, records


def _units_by_filter(
    one: CoupledChannels, uses: Mapping[str, Sequence[WeightUse]], roots: np.ndarray
) -> dict[str, list[int | None]]:
    """For each layer of a set, the unit each of its filters belongs to; None for those of other sets or of none."""
    unit_of = dict(zip(one.units, range(len(one.units)), strict=True))
    return {
        layer: [unit for use in uses[layer] for unit in map(unit_of.get, roots[use.outputs].tolist())]
        for layer in one.layers
    }


def make_plan(
    model: nn.Module,
    traced: Trace,
    coupling: Coupling,
    removed: set[int],
    records: list[dict[str, Any]],
    criterion: str,
    formula: Formula | None,
    sides: str,
    told: Sequence[str] = (),
) -> Plan:
    """Writes down what remains of every tensor.

    Args:
        model: The model before pruning, not wrapped.
        traced: Its trace.
        coupling: Its coupled sets and what is pinned.
        removed: The labels (representatives) of the units that go.
        records: Of the coupled sets, see :func:`choose`.
        criterion: The criterion's name.
        formula: For the criteria ``"fec_l1"`` and ``"fec"``.
        sides: ``"both"`` or ``"producer"``.
        told: Notes that come before the plan's own.

    Returns:
        The plan.
    """
    tensors = named_tensors(model)
    first_names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    gone = removed_labels(traced.partition, removed)
    kept = {id(line): kept_indices(line, gone) for line in traced.axes.values()}
    keep: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        for axis in range(tensor.dim()):
            line = traced.axes.get((first_names[id(tensor)], axis))
            if line is not None and len(kept[id(line)]) < len(line):
                keep.setdefault(name, {})[str(axis)] = kept[id(line)]
    notes = [f"{layers}: some channels stay: {reason}" for reason, layers in by_reason(coupling.partly_pinned).items()]
    shapes = {name: list(tensors[name].shape) for name in keep}
    before = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    after = {**before, **pruned_shapes(shapes, keep)}
    return Plan(
        fingerprint=shapes_fingerprint(before),
        pruned_fingerprint=shapes_fingerprint(after),
        shapes=shapes,
        keep=keep,
        attributes=_attributes(model, traced, gone, keep, first_names),
        sets=records,
        criterion=criterion,
        formula=formula.to_dict() if formula else None,
        sides=sides,
        pinned=dict(coupling.pinned),
        notes=[*told, *notes, *coupling.notes],
    )


def _attributes(
    model: nn.Module,
    traced: Trace,
    gone: np.ndarray,
    keep: Mapping[str, Mapping[str, list[int]]],
    first_names: Mapping[int, str],
) -> dict[str, dict[str, int]]:
    attributes: dict[str, dict[str, int]] = {}
    for name, module in modules_of(model).items():
        weight_name = f"{name}.weight" if name else "weight"
        if weight_name not in keep:
            continue
        use = traced.weight_uses.get(first_names[id(module.weight)])
        if isinstance(module, ConvolutionBase) and use is not None:
            inputs, outputs, groups = widths_after(use, gone)
            attributes[name] = {"in_channels": inputs, "out_channels": outputs, "groups": groups}
        elif isinstance(module, nn.Linear) and use is not None:
            inputs, outputs, _ = widths_after(use, gone)
            attributes[name] = {"in_features": inputs, "out_features": outputs}
        elif isinstance(module, BatchNormBase):
            attributes[name] = {"num_features": len(keep[weight_name]["0"])}
    return attributes
