"""Validation of a plan: the types of its entries, and that the entries agree with one another.

``plan.schema.json`` describes the same types for other programs. A schema cannot compare one entry with another.
"""

from __future__ import annotations

import itertools
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.errors import PlanError
from .shapes import pruned_shapes, reading_name, weight_name

ATTRIBUTES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "input_size")
_LARGEST = 1 << 53  # of whole numbers: every program that reads JSON has them exactly
_NORM_ENTRIES = {"operator", "number", "dim", "kept", "exact"}
_SET_ENTRIES = {"name", "round", "layers", "units", "removed", "scores", "filters"}


def validate_entries(plan: Mapping[str, Any]) -> None:
    """Checks that the entries of a plan have the right types and are consistent.

    Args:
        plan: The entries of a :class:`fec_fast.Plan` by name, with values of any type.

    Raises:
        PlanError: An entry is wrong; the message names the first such entry.
    """
    _check_types(plan)
    _check_kept_indices(plan)
    _check_attributes(plan)
    _check_sizes(plan["sizes"])
    _check_norms(plan["norms"])
    removed_filters: dict[str, set[int]] = {}
    widths: dict[str, int] = {}
    for position, record in enumerate(plan["sets"]):
        _check_set(f"sets[{position}]", record)
        for layer, units in record["filters"].items():
            width = widths.setdefault(layer, len(units))
            if len(units) != width:
                raise PlanError(f"{layer}: the sets disagree on its number of filters, {width} or {len(units)}")
            _add_removed_filters(removed_filters.setdefault(layer, set()), layer, units, record)
    for layer, filters in removed_filters.items():
        _check_removed_filters(plan, layer, widths[layer], filters)


def _check_types(plan: Mapping[str, Any]) -> None:
    def require(correct: bool, entry: str, expected: str) -> None:
        if not correct:
            raise PlanError(f"{entry}: expected {expected}")

    for entry in ("fingerprint", "pruned_fingerprint"):
        value = plan[entry]
        correct = isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) is not None
        require(correct, entry, "'sha256:' and 64 hexadecimal digits")
    for entry in ("shapes", "keep", "attributes", "sizes", "norms", "pinned"):
        require(_is_json_object(plan[entry]), entry, "an object")
    for name, shape in plan["shapes"].items():
        require(_are_whole_numbers(shape) and len(shape) <= 64, f"shapes: {name}", "a list of at most 64 sizes")
    for name, axes in plan["keep"].items():
        require(_is_json_object(axes) and bool(axes), f"keep: {name}", "an object from axes to kept indices")
    for name, values in plan["attributes"].items():
        require(_is_json_object(values), f"attributes: {name}", "an object from attributes to numbers")
    require(isinstance(plan["sets"], list), "sets", "a list")
    require(isinstance(plan["criterion"], str), "criterion", "a name")
    formula = plan["formula"]
    require(formula is None or _is_json_object(formula), "formula", "an object or null")
    are_plain = all(isinstance(value, str | None) or _are_finite_numbers([value]) for value in (formula or {}).values())
    require(are_plain, "formula", "words and numbers")
    require(plan["sides"] in ("both", "producer"), "sides", "'both' or 'producer'")
    require(all(isinstance(reason, str) for reason in plan["pinned"].values()), "pinned", "a reason for each layer")
    notes = plan["notes"]
    require(isinstance(notes, list) and all(isinstance(note, str) for note in notes), "notes", "a list of text")


def _is_json_object(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_whole_numbers(values: Any) -> bool:
    # The set of types excludes bool, which isinstance(value, int) would accept.
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        return False
    return min(values, default=0) >= 0 and max(values, default=0) <= _LARGEST


def _are_finite_numbers(values: list[Any]) -> bool:
    # Not math.isfinite: it raises for an integer beyond the range of float.
    most = sys.float_info.max
    return set(map(type, values)) <= {int, float} and all(-most <= value <= most for value in values)


def _is_strictly_ascending(indices: Sequence[int]) -> bool:
    return all(map(operator.lt, indices, indices[1:]))


def _check_kept_indices(plan: Mapping[str, Any]) -> None:
    keep, shapes = plan["keep"], plan["shapes"]
    if set(keep) != set(shapes):
        raise PlanError("shapes and keep: a plan has the shape of every tensor in keep, and of no other")
    # The tensors of a batch norm share one list object with the layer before, so each list is checked once.
    ascending: dict[int, bool] = {}
    for name, axes in keep.items():
        shape = shapes[name]
        for axis, indices in axes.items():
            where = f"{name}, axis {axis}"
            if axis not in map(str, range(len(shape))):
                raise PlanError(f"{where}: the tensor has {len(shape)} axes")
            if id(indices) not in ascending:
                if not isinstance(indices, list) or set(map(type, indices)) != {int}:
                    raise PlanError(f"{where}: the kept indices must be a list of at least one whole number")
                ascending[id(indices)] = _is_strictly_ascending(indices)
            if not ascending[id(indices)]:
                raise PlanError(f"{where}: the kept indices must be ascending and without repetition")
            if indices[0] < 0 or indices[-1] >= shape[int(axis)]:
                raise PlanError(f"{where}: an index lies outside 0 to {shape[int(axis)] - 1}")


def _check_attributes(plan: Mapping[str, Any]) -> None:
    """Checks that the attributes of each module match the shape that its weight has after pruning."""
    new_shapes = pruned_shapes(plan["shapes"], plan["keep"])
    for module, values in plan["attributes"].items():
        weight = weight_name(module, new_shapes) or reading_name(module, new_shapes)
        weight_shape = None if weight is None else new_shapes[weight]
        for attribute, value in values.items():
            if attribute not in ATTRIBUTES or type(value) is not int or not 1 <= value <= _LARGEST:
                raise PlanError(f"{module}: {attribute}={value!r} is not an attribute a plan may set")
        if weight_shape is None:
            raise PlanError(f"{module}: its attributes change but its weight does not")
        groups = values.get("groups", 1)
        outputs = values.get("out_channels", values.get("out_features", values.get("num_features")))
        inputs = values.get("in_channels", values.get("in_features"))
        if "input_size" in values:
            matches = len(weight_shape) == 2 and values["input_size"] == weight_shape[1]
        elif len(weight_shape) == 1 or inputs is None or outputs is None:
            matches = outputs == weight_shape[0]
        else:
            # A transposed convolution has its input channels on axis 0. The plan does not say which kind a layer is.
            matches = (weight_shape[0], weight_shape[1] * groups) in ((outputs, inputs), (inputs, outputs))
        if not matches:
            raise PlanError(f"{module}: {values} does not fit its weight of shape {list(weight_shape)}")


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    """Checks that each attribute has two values of one form: numbers that stay or shrink, of which one shrinks."""
    for module, attributes in sizes.items():
        if not _is_json_object(attributes) or not attributes:
            raise PlanError(f"sizes: {module}: expected an object from attributes to their values")
        for attribute, values in attributes.items():
            where = f"sizes: {module}.{attribute}" if module else f"sizes: {attribute}"
            if not attribute.isidentifier() or not _is_json_object(values) or set(values) != {"before", "after"}:
                raise PlanError(f"{where}: expected the name of an attribute with its values before and after")
            is_list = isinstance(values["before"], list)
            before, after = ([*value] if is_list else [value] for value in (values["before"], values["after"]))
            if not (_are_whole_numbers(before) and _are_whole_numbers(after) and len(before) == len(after)):
                raise PlanError(f"{where}: the values must be two numbers, or two lists of as many numbers")
            if before == after or not all(new == old or 1 <= new < old for old, new in zip(before, after, strict=True)):
                raise PlanError(f"{where}: {values['before']} cannot become {values['after']}: sizes shrink")


def _check_norms(norms: Mapping[str, Any]) -> None:
    """Checks the types and ranges in the records of norms that run over kept channels."""
    for module, records in norms.items():
        if not isinstance(records, list) or not records:
            raise PlanError(f"norms: {module}: expected a list of records")
        for record in records:
            if not isinstance(record, dict) or set(record) != _NORM_ENTRIES or not isinstance(record["operator"], str):
                raise PlanError(f"norms: {module}: a norm has the entries {sorted(_NORM_ENTRIES)}")
            where, kept = f"norms: {module}, {record['operator']}", record["kept"]
            if not _are_whole_numbers([record["number"]]) or type(record["exact"]) is not bool:
                raise PlanError(f"{where}: the number must be 0 or more, and exact true or false")
            if type(record["dim"]) is not int or not -64 <= record["dim"] < 0:
                raise PlanError(f"{where}: the dimension must be a whole number below 0, at least -64")
            if not _are_whole_numbers(kept) or not kept or not _is_strictly_ascending(kept):
                raise PlanError(f"{where}: the kept channels must be ascending, without repetition, and at least one")


def _check_set(where: str, record: Any) -> None:
    """Checks the types and ranges inside the record of one coupled set."""
    if not isinstance(record, dict) or set(record) != _SET_ENTRIES:
        raise PlanError(f"{where}: a coupled set has the entries {sorted(_SET_ENTRIES)}")
    name, layers, units, removed = (record[entry] for entry in ("name", "layers", "units", "removed"))
    where = f"{where} ({name})"
    if not _are_whole_numbers([units, record["round"]]) or units < 1 or record["round"] < 1:
        raise PlanError(f"{where}: units and round must be whole numbers from 1")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers) or name not in layers:
        raise PlanError(f"{where}: the layers must be a list of names, and the set's own name must be one of them")
    if not _are_whole_numbers(removed) or not _is_strictly_ascending(removed) or max(removed, default=0) >= units:
        raise PlanError(f"{where}: the removed units must be ascending, without repetition, and below {units}")
    if len(removed) == units:
        raise PlanError(f"{where}: all {units} units are removed; at least one must be kept")
    scores = record["scores"]
    if not isinstance(scores, list) or len(scores) != units or not _are_finite_numbers(scores):
        raise PlanError(f"{where}: it has {units} units, so the scores must be {units} finite numbers")
    filters = record["filters"]
    if not isinstance(filters, dict) or sorted(filters) != sorted(layers):
        raise PlanError(f"{where}: filters must have each of the layers once, and no other")
    for layer, units_by_filter in filters.items():
        types = set(map(type, units_by_filter)) if isinstance(units_by_filter, list) else {object}
        if not types <= {int, type(None)} or set(units_by_filter) - {None} != set(range(units)):
            raise PlanError(
                f"{where}: the filters of {layer} must belong to units 0 to {units - 1}, each used, or null"
            )


def _add_removed_filters(
    removed_filters: set[int], layer: str, units: Sequence[int | None], record: Mapping[str, Any]
) -> None:
    """Adds the filters of a layer that a set removes; a later set cannot decide on a filter that is removed already."""
    decided_twice = next((i for i in sorted(removed_filters) if i < len(units) and units[i] is not None), None)
    if decided_twice is not None:
        raise PlanError(
            f"{layer}: filter {decided_twice} is removed by one set and decided by another (round {record['round']})"
        )
    is_removed = map(set(record["removed"]).__contains__, units)
    removed_filters.update(itertools.compress(itertools.count(), is_removed))


def _check_removed_filters(plan: Mapping[str, Any], layer: str, width: int, removed: set[int]) -> None:
    """Compares the filters that the sets remove from a layer with what its attributes and its weight lose."""
    left = width - len(removed)
    values = plan["attributes"].get(layer, {})
    outputs = values.get("out_channels", values.get("out_features", left))
    if outputs != left:
        raise PlanError(f"{layer}: its sets leave {left} of {width} filters, its attributes say {outputs}")
    weight = weight_name(layer, plan["shapes"])
    # In a grouped transposed convolution, a filter is not one index of an axis.
    if weight is None or values.get("groups", 1) > 1:
        return
    kept = [index for index in range(width) if index not in removed]
    # Axis 0 holds the filters, in a transposed convolution axis 1; in a square weight either may be the one.
    axes = [axis for axis, size in enumerate(plan["shapes"][weight][:2]) if size == width]
    if axes and all(plan["keep"][weight].get(str(axis), list(range(width))) != kept for axis in axes):
        raise PlanError(f"{weight}: its kept indices are not the filters that its sets leave")
