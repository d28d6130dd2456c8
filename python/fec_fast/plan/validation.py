"""What a plan must fulfil to be believed: the kinds of its entries, and that they agree with one another.

``plan.schema.json`` says the same of the kinds, for other programs; a schema cannot compare one entry with another.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import PlanError

if TYPE_CHECKING:
    from .plan import Plan

ATTRIBUTES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")
_RECORD = {"name", "round", "layers", "units", "removed", "scores", "filters"}


def validate(plan: Plan) -> None:
    """Refuses a plan that is inconsistent in itself.

    Args:
        plan: The plan, its entries of any kind.

    Raises:
        PlanError: The first entry that is wrong is named.
    """
    _check_kinds(plan)
    _check_kept(plan)
    _check_attributes(plan)
    lost: dict[str, set[int]] = {}
    for position, record in enumerate(plan.sets):
        _check_record(f"sets[{position}]", record)
        for layer, units in record["filters"].items():
            _gather(lost.setdefault(layer, set()), layer, units, set(record["removed"]), record["round"])
    widths = {layer: len(units) for record in plan.sets for layer, units in record["filters"].items()}
    for record in plan.sets:
        for layer, units in record["filters"].items():
            if len(units) != widths[layer]:
                raise PlanError(f"{layer}: the sets disagree on its filters, {len(units)} or {widths[layer]}")
    for layer, filters in lost.items():
        _check_loss(plan, layer, widths[layer], filters)


def _check_kinds(plan: Plan) -> None:
    def demand(good: bool, entry: str, kind: str) -> None:
        if not good:
            raise PlanError(f"{entry}: expected {kind}")

    for entry in ("fingerprint", "pruned_fingerprint"):
        value = getattr(plan, entry)
        good = isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) is not None
        demand(good, entry, "'sha256:' and 64 hexadecimal digits")
    for entry in ("shapes", "keep", "attributes", "pinned"):
        demand(_is_named(getattr(plan, entry)), entry, "an object")
    for name, shape in plan.shapes.items():
        demand(_are_whole(shape), f"shapes: {name}", "a list of sizes")
    for name, axes in plan.keep.items():
        demand(_is_named(axes) and bool(axes), f"keep: {name}", "an object from axes to kept indices")
    for name, values in plan.attributes.items():
        demand(_is_named(values), f"attributes: {name}", "an object from attributes to numbers")
    demand(isinstance(plan.sets, list), "sets", "a list")
    demand(isinstance(plan.criterion, str), "criterion", "a name")
    demand(plan.formula is None or _is_named(plan.formula), "formula", "an object or null")
    demand(plan.sides in ("both", "producer"), "sides", "'both' or 'producer'")
    demand(all(isinstance(reason, str) for reason in plan.pinned.values()), "pinned", "a reason for each layer")
    demand(
        isinstance(plan.notes, list) and all(isinstance(note, str) for note in plan.notes), "notes", "a list of text"
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int} and min(values, default=0) >= 0


def _is_rising(indices: Sequence[int]) -> bool:
    return all(map(operator.lt, indices, indices[1:]))


def _check_kept(plan: Plan) -> None:
    if set(plan.keep) != set(plan.shapes):
        raise PlanError("a plan names the shape of every tensor it narrows, and of no other")
    rising: dict[int, bool] = {}  # a batch norm's tensors share the list of the layer before: it is walked once
    for name, axes in plan.keep.items():
        shape = plan.shapes[name]
        for axis, indices in axes.items():
            where = f"{name}, axis {axis}"
            if axis not in map(str, range(len(shape))):
                raise PlanError(f"{where}: the tensor has {len(shape)} axes")
            if id(indices) not in rising:
                if not isinstance(indices, list) or set(map(type, indices)) != {int}:
                    raise PlanError(f"{where}: the kept indices must be a list of at least one whole number")
                rising[id(indices)] = _is_rising(indices)
            if not rising[id(indices)]:
                raise PlanError(f"{where}: the kept indices must be rising and without repetition")
            if indices[0] < 0 or indices[-1] >= shape[int(axis)]:
                raise PlanError(f"{where}: an index lies outside 0 to {shape[int(axis)] - 1}")


def _check_attributes(plan: Plan) -> None:
    new_shapes = plan.new_shapes
    for module, values in plan.attributes.items():
        weight = new_shapes.get(f"{module}.weight" if module else "weight")
        for attribute, value in values.items():
            if attribute not in ATTRIBUTES or type(value) is not int or value < 1:
                raise PlanError(f"{module}: {attribute}={value!r} is not an attribute a plan may set")
        if weight is None:
            raise PlanError(f"{module}: its attributes change but its weight does not")
        groups = values.get("groups", 1)
        wide = values.get("out_channels", values.get("out_features", values.get("num_features")))
        narrow = values.get("in_channels", values.get("in_features"))
        if len(weight) == 1 or narrow is None or wide is None:
            fits = wide == weight[0]
        else:
            # A transposed convolution holds its input channels first.
            fits = (weight[0], weight[1] * groups) in ((wide, narrow), (narrow, wide))
        if not fits:
            raise PlanError(f"{module}: {values} does not fit its weight of shape {list(weight)}")


def _check_record(where: str, record: Any) -> None:
    if not isinstance(record, dict) or set(record) != _RECORD:
        raise PlanError(f"{where}: a coupled set has the entries {sorted(_RECORD)}")
    name, layers, units, removed = (record[entry] for entry in ("name", "layers", "units", "removed"))
    where = f"{where} ({name})"
    if type(units) is not int or units < 1 or type(record["round"]) is not int or record["round"] < 1:
        raise PlanError(f"{where}: units and round are whole numbers from 1")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers) or name not in layers:
        raise PlanError(f"{where}: the layers are a list of names, and the set's own name is one of them")
    if not _are_whole(removed) or not _is_rising(removed) or max(removed, default=0) >= units:
        raise PlanError(f"{where}: the removed units must be rising, without repetition, and below {units}")
    if len(removed) == units:
        raise PlanError(f"{where}: all {units} units are removed; one at least has to stay")
    scores = record["scores"]
    if not isinstance(scores, list) or len(scores) != units or not _are_finite(scores):
        raise PlanError(f"{where}: it has {units} units, so the scores must be {units} finite numbers")
    filters = record["filters"]
    if not isinstance(filters, dict) or sorted(filters) != sorted(layers):
        raise PlanError(f"{where}: filters has each of the layers once, and no other")
    for layer, of in filters.items():
        kinds = set(map(type, of)) if isinstance(of, list) else {object}
        if not kinds <= {int, type(None)} or set(of) - {None} != set(range(units)):
            raise PlanError(
                f"{where}: the filters of {layer} must belong to units 0 to {units - 1}, each used, or null"
            )


def _are_finite(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))


def _gather(lost: set[int], layer: str, units: Sequence[int | None], removed: set[int], round_: int) -> None:
    """Adds the filters of a layer that a set removes; one that is gone cannot be decided again."""
    again = next((index for index in sorted(lost) if index < len(units) and units[index] is not None), None)
    if again is not None:
        raise PlanError(f"{layer}: filter {again} is removed by one set and decided by another (round {round_})")
    lost.update(itertools.compress(itertools.count(), map(removed.__contains__, units)))


def _check_loss(plan: Plan, layer: str, width: int, gone: set[int]) -> None:
    """Compares what the sets take from a layer with what its weight and its attributes lose."""
    left = width - len(gone)
    values = plan.attributes.get(layer, {})
    wide = values.get("out_channels", values.get("out_features", left))
    if wide != left:
        raise PlanError(f"{layer}: its sets leave {left} of {width} filters, its attributes say {wide}")
    weight = f"{layer}.weight" if layer else "weight"
    # In a grouped transposed convolution a filter is not an index of an axis.
    if weight not in plan.shapes or values.get("groups", 1) > 1:
        return
    kept = [index for index in range(width) if index not in gone]
    axes = [axis for axis, size in enumerate(plan.shapes[weight][:2]) if size == width]
    if axes and all(plan.keep[weight].get(str(axis), list(range(width))) != kept for axis in axes):
        raise PlanError(f"{weight}: its kept indices are not the filters that its sets leave")
