"""Fields of records: the image, the label and the objects of a dictionary, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.errors import FecError, InputError, list_some

WHERE = "data of dictionaries"
_IMAGE_KEYS = ("image", "img", "picture", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target")
OBJECT_KEYS = ("objects",)
_BOX_KEYS, _CLASS_KEYS = ("bbox", "bboxes", "boxes"), ("category", "categories", "label", "labels", "category_id")


def record_at(records: Any, index: int) -> Mapping[str, Any]:
    """One record of some data; ``InputError`` if reading it raises, or if it is no dictionary."""
    try:
        record = records[index]
    except (FecError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{WHERE}: reading record {index} raised {type(error).__name__}: {error}") from error
    if not isinstance(record, Mapping):
        raise InputError(f"{WHERE}: record {index} is a {type(record).__name__}: give dictionaries")
    return record


def image_key(record: Mapping[str, Any], given: str | None) -> str:
    """The key of the image of a record.

    Args:
        record: A record, or anything else with its keys.
        given: The key that the caller names; ``None`` finds it.

    Returns:
        The key.

    Raises:
        InputError: There is none.
    """
    return key_of(record, "image", given, _IMAGE_KEYS)


def key_of(record: Mapping[str, Any], argument: str, given: str | None, usual: Sequence[str]) -> str:
    """The key that is given, or the first usual one that a record has."""
    names = [str(name) for name in record]
    key = given if given is not None else next((name for name in usual if name in record), None)
    if key is None or key not in record:
        raise InputError(
            f"{WHERE}: record 0 has no {given if given is not None else ' or '.join(usual)!s}, only "
            f"{list_some(names) if names else 'nothing'}: give {argument}=KEY"
        )
    return key


def value_of(record: Mapping[str, Any], key: str, index: int) -> Any:
    """A value of a record; ``InputError`` if it is missing."""
    if key not in record or record[key] is None:
        raise InputError(f"{WHERE}: record {index} has no {key}")
    return record[key]


def class_number(value: Any, classes: Sequence[str], where: str) -> int:
    """The number of a class, from 0, by its number or its name."""
    if isinstance(value, str):
        if value not in classes:
            hint = f": it is none of {list_some(list(classes))}" if classes else ": give classes=[...]"
            raise InputError(f"{where} is {value[:80]!r}{hint}")
        return classes.index(value)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or number != value or (classes and number >= len(classes)):
        count = f"0 to {len(classes) - 1}" if classes else "a whole number from 0"
        raise InputError(f"{where} is {value!r:.80}: expected {count}, or a name")
    return number


def objects_of(value: Any, where: str) -> list[tuple[Any, Any]]:
    """Pairs of a box and a category."""
    if isinstance(value, Mapping):
        boxes, categories = _boxes_and_classes(value, where)
        try:
            return list(zip(boxes, categories, strict=True))
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: boxes and categories must be two lists of one length") from error
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} are a {type(value).__name__}: expected {_BOX_KEYS[0]} and {_CLASS_KEYS[0]}")
    return [_boxes_and_classes(entry, where) for entry in value]


def _boxes_and_classes(entry: Any, where: str) -> tuple[Any, Any]:
    box_key = next((key for key in _BOX_KEYS if isinstance(entry, Mapping) and key in entry), None)
    class_key = next((key for key in _CLASS_KEYS if isinstance(entry, Mapping) and key in entry), None)
    if box_key is None or class_key is None:
        raise InputError(f"{where}: expected {_BOX_KEYS[0]} and {_CLASS_KEYS[0]}, not {str(entry)[:80]}")
    return entry[box_key], entry[class_key]


def label_names(records: Any, key: str) -> list[str] | None:
    """The names of the classes that a Hugging Face data set lists for a label."""
    return _listed(_features(records, key))


def category_names(records: Any, key: str) -> list[str] | None:
    """The names of the classes that a Hugging Face data set lists for the categories of its objects."""
    feature = _features(records, key)
    feature = getattr(feature, "feature", feature)  # of a list
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    for name in _CLASS_KEYS:
        if isinstance(feature, Mapping) and name in feature:
            inner = feature[name]
            inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else getattr(inner, "feature", inner)
            return _listed(inner)
    return None


def _features(records: Any, key: str) -> Any:
    features = getattr(records, "features", None)
    return features.get(key) if isinstance(features, Mapping) else None


def _listed(feature: Any) -> list[str] | None:
    names = getattr(feature, "names", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None
