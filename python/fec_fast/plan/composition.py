"""Two prunings, one after the other, as one plan against the original model."""

from __future__ import annotations

from typing import Any

from ..utils.errors import ArgumentError, PlanError
from .plan import Plan


def compose(first: Plan, second: Plan) -> Plan:
    """Makes one plan of two that were applied in turn, so that the result can be rebuilt from the original class.

    The composed plan keeps, of every tensor, what both keep, in indices of the original. Its ``sets`` are those of
    both, with the filters of the second counted as in the original and its rounds after those of the first; scores and
    units are as each pruning saw them. ``criterion``, ``formula`` and ``sides`` are the second's; where the first's
    were others, a note says so. ``pinned`` are the layers that have kept all their filters; notes are joined.
    More than two rounds: ``compose(compose(a, b), c)`` equals ``compose(a, compose(b, c))`` in all but the order of
    notes.

    Args:
        first: The plan for the original model.
        second: A plan for the model that ``first`` leaves; its weights may have been trained in between.

    Returns:
        A plan for the original model. Neither of the two is changed.

    Raises:
        ArgumentError: Not two plans.
        PlanError: ``second`` is for another model than the one that ``first`` leaves; the first difference is named.
    """
    for plan in (first, second):
        if not isinstance(plan, Plan):
            raise ArgumentError(f"compose: expected two plans, got a {type(plan).__name__}")
    _check_sequence(first, second)
    keep: dict[str, dict[str, list[int]]] = {}
    for name in {**first.keep, **second.keep}:
        before, after = first.keep.get(name, {}), second.keep.get(name, {})
        keep[name] = {
            axis: _through(before[axis], after[axis]) if axis in before and axis in after else list(kept)
            for axis, kept in {**before, **after}.items()
        }
    modules = {**first.attributes, **second.attributes}
    last = max((record["round"] for record in first.sets), default=1)
    lost = {layer for layer in _layers(first) if len(_survivors(first, layer)) < _width(first, layer)}
    notes = [*first.notes, *second.notes]
    for word in ("criterion", "formula", "sides"):
        if getattr(first, word) != getattr(second, word):
            notes.append(f"{word} of the rounds to {last}: {getattr(first, word)}; afterwards: {getattr(second, word)}")
    notes += [
        f"{layer}: lost filters by round {last}, then none: {reason}"
        for layer, reason in second.pinned.items()
        if layer in lost
    ]
    return Plan(
        fingerprint=first.fingerprint,
        pruned_fingerprint=second.pruned_fingerprint,
        shapes={name: list(first.shapes.get(name) or second.shapes[name]) for name in keep},
        keep=keep,
        attributes={name: {**first.attributes.get(name, {}), **second.attributes.get(name, {})} for name in modules},
        sets=[_copy(record) for record in first.sets] + [_later(record, first, last) for record in second.sets],
        criterion=second.criterion,
        formula=second.formula,
        sides=second.sides,
        pinned={layer: reason for layer, reason in second.pinned.items() if layer not in lost},
        notes=list(dict.fromkeys(notes)),
    )


def _check_sequence(first: Plan, second: Plan) -> None:
    left = first.new_shapes
    for name, shape in second.shapes.items():
        if name in left and left[name] != tuple(shape):
            raise PlanError(
                f"the second plan does not follow the first: it expects {name} of shape {shape}, the first leaves "
                f"{list(left[name])}; give them in the order in which they were applied"
            )
    if second.fingerprint != first.pruned_fingerprint:
        raise PlanError(
            "the second plan does not follow the first: it was made for a model of other names or shapes than the "
            "first leaves; give them in the order in which they were applied, with none left out"
        )
    for record in second.sets:
        for layer, units in record["filters"].items():
            if layer in _layers(first) and len(units) != len(_survivors(first, layer)):
                raise PlanError(
                    f"the second plan does not follow the first: it has {len(units)} filters in {layer}, the first "
                    f"leaves {len(_survivors(first, layer))}"
                )


def _through(first: list[int], second: list[int]) -> list[int]:
    return [first[index] for index in second]


def _layers(plan: Plan) -> set[str]:
    return {layer for record in plan.sets for layer in record["layers"]}


def _width(plan: Plan, layer: str) -> int:
    """The filters a layer had before a plan; for the layers of its sets."""
    return next(len(record["filters"][layer]) for record in plan.sets if layer in record["filters"])


def _survivors(plan: Plan, layer: str) -> list[int]:
    """The filters of a layer that a plan leaves; for the layers of its sets."""
    gone = {
        index
        for record in plan.sets
        for index, unit in enumerate(record["filters"].get(layer, []))
        if unit in record["removed"]
    }
    return [index for index in range(_width(plan, layer)) if index not in gone]


def _copy(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "filters": {layer: list(units) for layer, units in record["filters"].items()}}


def _later(record: dict[str, Any], first: Plan, last: int) -> dict[str, Any]:
    """A record of the second plan with the filters of the original."""
    record = _copy(record)
    record["round"] += last
    for layer, units in record["filters"].items():
        if layer in _layers(first):
            original: list[int | None] = [None] * _width(first, layer)
            for index, unit in zip(_survivors(first, layer), units, strict=True):
                original[index] = unit
            record["filters"][layer] = original
    return record
