"""Objects that models return their tensors in."""

from __future__ import annotations

import collections
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Boxes:
    """A dataclass."""

    deltas: Tensor


class Slots:
    """An object without a dictionary of attributes."""

    __slots__ = ("deltas",)

    def __init__(self, deltas: Tensor) -> None:
        self.deltas = deltas


class Named(dict):  # type: ignore[type-arg]
    """A dictionary that may have attributes of its own."""


Pair = collections.namedtuple("Pair", ["left", "right"])
