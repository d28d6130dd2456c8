"""The choice of whole heads, where the width inside heads cannot shrink.

A view that divides channels into heads can lose channels in two ways: the same positions inside every head, or whole
heads. Inside heads there are more decisions, so a trace tries that first. It cannot be where a norm or a rotation takes
the channels of a head together, or where scores are divided by a root of their number that the code computes anew in
every run (as ``scaled_dot_product_attention`` does without ``scale=``): fewer channels would mean another scale. Then
the model is traced once more, and the views of such a module lose whole heads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from .held_sizes import held_numbers
from .label_sets import LabelPartition

# A scale is a power of the width: of scores 1/2 or 1, of queries and keys each half as much.
_POWERS = (0.25, 0.5, 1.0)


@dataclass(slots=True, eq=False)
class HeadChoice:
    """What a trace shows of heads.

    Attributes:
        heads: For each module that loses whole heads how many it has.
    """

    heads: Mapping[str, int] = field(default_factory=dict)
    # By module: views that divide channels, over how much its products sum, and the numbers that it multiplies with.
    _views: dict[str, list[tuple[tuple[int, ...], int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    _widths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _factors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def has_products(self) -> bool:
        """Whether the model multiplies activations with activations."""
        return bool(self._widths)

    def dim(self, layer: str, sizes: Sequence[int], usual: int) -> int:
        """The dimension that shrinks.

        Args:
            layer: The module in whose code a view divides channels.
            sizes: The sizes of the dimensions that it divides them over.
            usual: Which of them would shrink otherwise.

        Returns:
            The dimension of heads where the module loses whole heads, or ``usual``.
        """
        heads = [dim for dim, size in enumerate(sizes) if size == self.heads.get(layer)]
        # Queries, keys and values come before the heads, and these before their width.
        return usual if not heads else heads[0] if usual in heads else heads[-1]

    def note_view(self, layer: str, sizes: Sequence[int], dim: int, labels: np.ndarray) -> None:
        """Notes a view that divides channels over dimensions.

        Args:
            layer: The module in whose code it ran.
            sizes: The sizes of these dimensions.
            dim: The one that shrinks.
            labels: The labels along it, int64.
        """
        self._views[layer].append((tuple(sizes), dim, labels))

    def note_product(self, layer: str, width: int) -> None:
        """Notes over how many channels, or positions, a product of activations sums."""
        self._widths[layer].append(width)

    def note_factor(self, layer: str, factor: float) -> None:
        """Notes a number that an activation is multiplied with, or divided by."""
        self._factors[layer].append(factor)

    def scales(self) -> dict[str, list[float]]:
        """The numbers that are a power of a width that a module's products sum over, by module."""
        found = {}
        for layer, widths in self._widths.items():
            powers = [width**power for width in widths if width > 1 for power in _POWERS]
            factors = [
                factor
                for factor in self._factors[layer]
                if any(math.isclose(factor, number, rel_tol=1e-6) for each in powers for number in (each, 1 / each))
            ]
            if factors:
                found[layer] = factors
        return found

    def whole(self, modules: Mapping[str, nn.Module], computed: Collection[str]) -> dict[str, int]:
        """The modules that lose whole heads because they compute their scale from the width.

        Args:
            modules: The modules of the model by name.
            computed: Modules whose code computes a number of :meth:`scales` from the width.

        Returns:
            For each of them how many heads it has.
        """
        return {layer: heads for layer in computed if (heads := self._number(layer, modules[layer], None))}

    def pinned(self, modules: Mapping[str, nn.Module], partition: LabelPartition) -> dict[str, int]:
        """The modules that may lose whole heads, because something keeps channels that a view divides.

        Args:
            modules: The modules of the model by name.
            partition: Which labels must be kept.

        Returns:
            For each of them how many heads it has.
        """
        others = self._widths.keys() - self.heads.keys()
        return {layer: heads for layer in others if (heads := self._number(layer, modules[layer], partition))}

    def _number(self, layer: str, module: nn.Module, partition: LabelPartition | None) -> int:
        """The number of heads that views of a module, those whose labels are all pinned, divide by; 0 if none does.

        It is a number that the module holds, if there is one, and the greatest of several: queries, keys and values
        are three.
        """
        held = held_numbers(module)
        found = [
            size
            for sizes, dim, labels in self._views.get(layer, [])
            for other, size in enumerate(sizes)
            if other != dim and size > 1 and (partition is None or partition.all_pinned(labels))
        ]
        return max(found, key=lambda size: (size in held, size), default=0)


def factor_of(name: str, args: Sequence[Any]) -> float | None:
    """The number that an operator multiplies with, or divides by.

    Args:
        name: The name of the operator.
        args: Its positional arguments.

    Returns:
        The number; ``None`` for another operator, or another kind of factor.
    """
    return args[-1] if name in ("mul", "mul_", "div", "div_") and type(args[-1]) is float else None
