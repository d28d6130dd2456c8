"""Held sizes: numbers of channels that a module keeps in attributes of its own, and what they become.

A block may cut at ``self.width`` or ``self.split_sizes``. Such an attribute is changed with the widths, by this rule:

1. It is a whole number, or a list or tuple of them, and belongs to the module in whose ``forward`` the cut runs.
2. Its value is one of the numbers of the cut (the size of a part, the whole width, where a part begins or ends), or
   lists some of them.
3. The cut of the pruned network is not the planned one without the change, and is with it. Trial runs show that
   (:mod:`fec_fast.graph.trial`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ..utils.compat import ConvolutionBase, NormBase
from ..utils.number_attributes import as_numbers
from .cuts import CountKept, Cut


@dataclass(frozen=True, eq=False)
class HeldSize:
    """An attribute of a module that holds numbers of channels.

    Attributes:
        module: The name of the module.
        attribute: The name of the attribute.
        before: Its value before pruning; a tuple is given as a list.
        counted: For each number the labels of the channels that it counts; ``None`` for one that stays.
    """

    module: str
    attribute: str
    before: int | list[int]
    counted: tuple[np.ndarray | None, ...]

    def with_others(self, other: HeldSize) -> HeldSize:
        """The same attribute, with what another cut tells of numbers that this one does not use.

        Args:
            other: What another cut of the module tells of the attribute.

        Returns:
            The attribute with the channels of both.
        """
        pairs = zip(self.counted, other.counted, strict=True)
        return replace(self, counted=tuple(mine if mine is not None else theirs for mine, theirs in pairs))

    def after(self, count: CountKept) -> int | list[int]:
        """The value after pruning.

        Args:
            count: How many of some channels are kept.

        Returns:
            A number, or a list as long as the one before.
        """
        if isinstance(self.before, int):
            (labels,) = self.counted
            assert labels is not None
            return count(labels)
        pairs = zip(self.before, self.counted, strict=True)
        return [number if labels is None else count(labels) for number, labels in pairs]


def held_numbers(module: nn.Module) -> set[int]:
    """The whole numbers in the attributes of a module, and in its lists and tuples of whole numbers."""
    values = _attributes(module).values()
    return {number for value in values for number in ([value] if isinstance(value, int) else value)}


def sizes_held_for(cut: Cut, module: nn.Module, likely: int | None = None) -> list[HeldSize]:
    """The attributes that may hold the numbers of a cut.

    Args:
        cut: The cut.
        module: The module in whose code it ran, with the values from before pruning.
        likely: How many of :meth:`fec_fast.graph.cuts.Cut.widths` are looked at; ``None``: all.

    Returns:
        One entry for each attribute whose value agrees with the numbers.
    """
    channels: dict[int, np.ndarray] = {}
    for labels in cut.widths()[:likely]:
        if len(labels) > 1:  # a single channel is never removed
            channels.setdefault(len(labels), labels)
    found = []
    for attribute, value in _attributes(module).items():
        in_order = None if isinstance(value, int) else _counted_in_order(value, cut)
        counted = in_order or _counted(value, channels)
        if any(labels is not None for labels in counted):
            found.append(HeldSize(cut.layer, attribute, value, counted))
    return found


def widths_held_by(name: str, module: nn.Module, channels: Mapping[int, np.ndarray]) -> list[HeldSize]:
    """The attributes of a module that may hold numbers of channels.

    Args:
        name: The name of the module.
        module: The module, with the values from before pruning.
        channels: Labels of channels by their number.

    Returns:
        One entry for each attribute whose value is one of these numbers, or lists some.
    """
    sizes = [
        HeldSize(name, attribute, value, _counted(value, channels)) for attribute, value in _attributes(module).items()
    ]
    return [size for size in sizes if any(labels is not None for labels in size.counted)]


def _counted(value: int | list[int], channels: Mapping[int, np.ndarray]) -> tuple[np.ndarray | None, ...]:
    return tuple(map(channels.get, [value] if isinstance(value, int) else value))


def _counted_in_order(value: list[int], cut: Cut) -> tuple[np.ndarray | None, ...] | None:
    """What each number of a list counts, where the list is a stretch of the numbers that the cut is made at."""
    numbers = cut.sequence()
    for start in range(len(numbers) - len(value) + 1):
        stretch = numbers[start : start + len(value)]
        if [number for number, _ in stretch] == value and any(labels is not None for _, labels in stretch):
            return tuple(labels for _, labels in stretch)
    return None


def _attributes(module: nn.Module) -> Mapping[str, int | list[int]]:
    """The attributes of a module that are whole numbers, or lists or tuples of them.

    Those of a layer say what its weight is; the plan changes them with the weight.
    """
    if isinstance(module, ConvolutionBase | nn.Linear | NormBase):
        return {}
    return {name: number for name, value in vars(module).items() if (number := as_numbers(value)) is not None}
