"""Composition of plans: two prunings, one after the other, as one plan for the original model."""

from __future__ import annotations

from typing import Any

from ..utils.errors import ArgumentError, PlanError
from .plan import Plan


def compose(first: Plan, second: Plan) -> Plan:
    """Composes two plans that were applied in turn, so that the result can be rebuilt from the original class.

    For every tensor, the composed plan keeps what both plans keep, as indices of the original. Its ``sets`` are those
    of both plans. The filters of the second plan's sets are counted as in the original, and its rounds follow those of
    the first; scores and units are as each pruning saw them. ``criterion``, ``formula`` and ``sides`` are the second
    plan's; a note reports where the first plan's were different. ``pinned`` has the layers that kept all their filters
    in both; notes are joined. For more than two rounds, ``compose(compose(a, b), c)`` equals
    ``compose(a, compose(b, c))`` in all but the order of notes.

    Args:
        first: The plan for the original model.
        second: A plan for the model that ``first`` leaves; its weights may have been trained in between.

    Returns:
        A plan for the original model. Neither of the two plans is changed.

    Raises:
        ArgumentError: Not two plans.
        PlanError: ``second`` is for another model than the one that ``first`` leaves; the message names the first
            difference.
    """
    for plan in (first, second):
        if not isinstance(plan, Plan):
            raise ArgumentError(f"compose: expected two plans, got a {type(plan).__name__}")
    _check_sequence(first, second)
    keep: dict[str, dict[str, list[int]]] = {}
    for name in {**first.keep, **second.keep}:
        axes_of_first, axes_of_second = first.keep.get(name, {}), second.keep.get(name, {})
        keep[name] = {
            # The second plan's indices count what the first has kept: they are looked up in its list.
            axis: [axes_of_first[axis][index] for index in axes_of_second[axis]]
            if axis in axes_of_first and axis in axes_of_second
            else list(kept)
            for axis, kept in {**axes_of_first, **axes_of_second}.items()
        }
    modules = {**first.attributes, **second.attributes}
    last_round = max((record["round"] for record in first.sets), default=1)
    layers = _layers(first)
    pruned_by_first = {layer for layer in layers if len(_kept_filters(first, layer)) < _width(first, layer)}
    notes = [*first.notes, *second.notes]
    for entry in ("criterion", "formula", "sides"):
        if getattr(first, entry) != getattr(second, entry):
            notes.append(
                f"{entry} of the rounds to {last_round}: {getattr(first, entry)}; afterwards: {getattr(second, entry)}"
            )
    notes += [
        f"{layer}: lost filters by round {last_round}, then none: {reason}"
        for layer, reason in second.pinned.items()
        if layer in pruned_by_first
    ]
    return Plan(
        fingerprint=first.fingerprint,
        pruned_fingerprint=second.pruned_fingerprint,
        shapes={name: list(first.shapes.get(name) or second.shapes[name]) for name in keep},
        keep=keep,
        attributes={name: {**first.attributes.get(name, {}), **second.attributes.get(name, {})} for name in modules},
        sizes=_sizes(first, second),
        sets=[_copy(record) for record in first.sets]
        + [_for_original(record, first, last_round) for record in second.sets],
        criterion=second.criterion,
        formula=second.formula,
        sides=second.sides,
        norms=_norms(first, second),
        pinned={layer: reason for layer, reason in second.pinned.items() if layer not in pruned_by_first},
        notes=list(dict.fromkeys(notes)),
    )


def _norms(first: Plan, second: Plan) -> dict[str, list[dict[str, Any]]]:
    """The statistics over kept channels of both plans, as indices of the original."""
    norms = {
        module: {_place(record): {**record, "kept": list(record["kept"])} for record in records}
        for module, records in first.norms.items()
    }
    for module, records in second.norms.items():
        known = norms.setdefault(module, {})
        for record in records:
            before = known.get(_place(record))
            kept = list(record["kept"]) if before is None else [before["kept"][index] for index in record["kept"]]
            exact = record["exact"] and (before is None or before["exact"])
            known[_place(record)] = {**record, "kept": kept, "exact": exact}
    return {module: [*known.values()] for module, known in norms.items()}


def _place(record: dict[str, Any]) -> tuple[str, int]:
    return record["operator"], record["number"]


def _sizes(first: Plan, second: Plan) -> dict[str, dict[str, dict[str, Any]]]:
    """The attributes of both plans: their values before the first and after the last."""
    sizes = {module: {name: dict(values) for name, values in held.items()} for module, held in first.sizes.items()}
    for module, held in second.sizes.items():
        for name, values in held.items():
            sizes.setdefault(module, {}).setdefault(name, {"before": values["before"]})["after"] = values["after"]
    return sizes


def _check_sequence(first: Plan, second: Plan) -> None:
    """Raises unless the second plan is for the model that the first leaves."""
    shapes_left = first.new_shapes
    for name, shape in second.shapes.items():
        if name in shapes_left and shapes_left[name] != tuple(shape):
            raise PlanError(
                f"the second plan does not follow the first: it expects {name} of shape {shape}, the first leaves "
                f"{list(shapes_left[name])}; give them in the order in which they were applied"
            )
    if second.fingerprint != first.pruned_fingerprint:
        raise PlanError(
            "the second plan does not follow the first: it was made for a model of other names or shapes than the "
            "first leaves; give them in the order in which they were applied, with none left out"
        )
    for module, held in second.sizes.items():
        for name, values in held.items():
            left = first.sizes.get(module, {}).get(name, {"after": values["before"]})["after"]
            if left != values["before"]:
                raise PlanError(
                    f"the second plan does not follow the first: it expects {module}.{name} to be {values['before']}, "
                    f"the first leaves {left}; give them in the order in which they were applied"
                )
    for record in second.sets:
        for layer, units in record["filters"].items():
            if layer in _layers(first) and len(units) != len(_kept_filters(first, layer)):
                raise PlanError(
                    f"the second plan does not follow the first: it has {len(units)} filters in {layer}, the first "
                    f"leaves {len(_kept_filters(first, layer))}; give them in the order in which they were applied"
                )


def _layers(plan: Plan) -> set[str]:
    """The layers of all coupled sets of a plan."""
    return {layer for record in plan.sets for layer in record["layers"]}


def _width(plan: Plan, layer: str) -> int:
    """The number of filters before pruning of a layer that is in a coupled set."""
    return next(len(record["filters"][layer]) for record in plan.sets if layer in record["filters"])


def _kept_filters(plan: Plan, layer: str) -> list[int]:
    """The filters that a plan keeps of a layer that is in a coupled set."""
    removed = {
        index
        for record in plan.sets
        for index, unit in enumerate(record["filters"].get(layer, []))
        if unit in record["removed"]
    }
    return [index for index in range(_width(plan, layer)) if index not in removed]


def _copy(record: dict[str, Any]) -> dict[str, Any]:
    """Copies a record so far that its filters can be replaced without a change to the plan it is from."""
    return {**record, "filters": {layer: list(units) for layer, units in record["filters"].items()}}


def _for_original(record: dict[str, Any], first: Plan, last_round: int) -> dict[str, Any]:
    """Rewrites a record of the second plan for the original model: its rounds, and its filters as the original's."""
    record = _copy(record)
    record["round"] += last_round
    for layer, units in record["filters"].items():
        if layer in _layers(first):
            # Filters that the first plan has removed belong to no unit of the second.
            units_by_filter: list[int | None] = [None] * _width(first, layer)
            for index, unit in zip(_kept_filters(first, layer), units, strict=True):
                units_by_filter[index] = unit
            record["filters"][layer] = units_by_filter
    return record
