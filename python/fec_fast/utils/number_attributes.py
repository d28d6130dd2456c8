"""Attributes of modules that are whole numbers, or lists or tuples of them."""

from __future__ import annotations

from typing import Any


def as_numbers(value: Any) -> int | list[int] | None:
    """The value of an attribute as a number or a list of numbers.

    Args:
        value: Any value.

    Returns:
        A whole number as it is, a list or tuple of them as a new list; ``None`` for anything else, such as a bool, an
        empty list or an instance of a subclass.
    """
    if type(value) is int:
        return value
    if type(value) in (list, tuple) and value and set(map(type, value)) == {int}:
        return list(value)
    return None


def in_type_of(value: Any, numbers: int | list[int]) -> int | list[int] | tuple[int, ...]:
    """Numbers in the type that an attribute has.

    Args:
        value: The value of the attribute.
        numbers: Its new value as :func:`as_numbers` would return it.

    Returns:
        A tuple where the value is one, otherwise the number or a new list.
    """
    if isinstance(numbers, int):
        return numbers
    return tuple(numbers) if isinstance(value, tuple) else list(numbers)
