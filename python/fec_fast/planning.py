"""From the units that go to the plan that says what remains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from .coupling import CoupledSet, Coupling, gone_labels, kept_indices, new_attributes
from .formula import Formula
from .plan import Plan, digest, fingerprint, named_tensors, narrowed_shapes
from .trace import Trace


def by_reason(layers: Mapping[str, str]) -> dict[str, str]:
    """From a reason for each layer to the layers of each reason, in words."""
    gathered: dict[str, list[str]] = {}
    for layer, reason in layers.items():
        gathered.setdefault(reason, []).append(layer)
    return {reason: ", ".join(names) for reason, names in gathered.items()}


def choose(
    sets: Sequence[CoupledSet], counts: Sequence[int], scores: Sequence[list[float]], traced: Trace
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
    for one, number, values in zip(sets, counts, scores, strict=True):
        gone = sorted(sorted(range(len(values)), key=lambda unit: (values[unit], unit))[:number])
        removed.update(one.units[unit] for unit in gone)
        records.append(
            {
                "name": one.name,
                "round": 1,
                "layers": list(one.layers),
                "units": len(one.units),
                "removed": gone,
                "scores": values,
                "filters": _units_by_filter(one, traced),
            }
        )
    return removed, records


def _units_by_filter(one: CoupledSet, traced: Trace) -> dict[str, list[int | None]]:
    """For each layer of a set, the unit each of its filters belongs to; None for those of other sets or of none."""
    units = {root: unit for unit, root in enumerate(one.units)}
    filters: dict[str, list[int | None]] = {layer: [] for layer in one.layers}
    for use in traced.uses.values():
        if use.layer in filters:
            filters[use.layer] += [units.get(traced.sets.find(label)) for label in use.outputs]
    return filters


def make_plan(
    model: nn.Module,
    traced: Trace,
    coupling: Coupling,
    removed: set[int],
    records: list[dict[str, Any]],
    criterion: str,
    formula: Formula | None,
    sides: str,
) -> Plan:
    """Writes down what remains of every tensor.

    Args:
        model: The model before pruning, not wrapped.
        traced: Its trace.
        coupling: Its coupled sets and what is pinned.
        removed: The labels (representatives) of the units that go.
        records: Of the coupled sets, see :func:`choose`.
        criterion: The criterion's name.
        formula: For the criterion ``"fec"``.
        sides: ``"both"`` or ``"producer"``.

    Returns:
        The plan.
    """
    tensors = named_tensors(model)
    first_names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    gone = gone_labels(traced, removed)
    keep: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        for axis in range(tensor.dim()):
            line = traced.axes.get((first_names[id(tensor)], axis), [])
            kept = kept_indices(line, gone)
            if len(kept) < len(line):
                keep.setdefault(name, {})[str(axis)] = kept
    notes = [f"{layers}: some channels stay: {reason}" for reason, layers in by_reason(coupling.partly).items()]
    shapes = {name: list(tensors[name].shape) for name in keep}
    after = {**{name: tuple(tensor.shape) for name, tensor in tensors.items()}, **narrowed_shapes(shapes, keep)}
    return Plan(
        fingerprint=fingerprint(model),
        pruned_fingerprint=digest(after),
        shapes=shapes,
        keep=keep,
        attributes=_attributes(model, traced, gone, keep),
        sets=records,
        criterion=criterion,
        formula=formula.to_dict() if formula else None,
        sides=sides,
        pinned=coupling.pinned,
        notes=notes + traced.notes,
    )


def _attributes(
    model: nn.Module, traced: Trace, gone: np.ndarray, keep: Mapping[str, Mapping[str, list[int]]]
) -> dict[str, dict[str, int]]:
    names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    attributes: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        weight_name = f"{name}.weight" if name else "weight"
        if weight_name not in keep:
            continue
        use = traced.uses.get(names.get(id(module.weight), ""))
        if isinstance(module, nn.modules.conv._ConvNd) and use is not None:
            inputs, outputs, groups = new_attributes(use, gone)
            attributes[name] = {"in_channels": inputs, "out_channels": outputs, "groups": groups}
        elif isinstance(module, nn.Linear) and use is not None:
            inputs, outputs, _ = new_attributes(use, gone)
            attributes[name] = {"in_features": inputs, "out_features": outputs}
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            attributes[name] = {"num_features": len(keep[weight_name]["0"])}
    return attributes
