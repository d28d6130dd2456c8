"""Channel statistics: means and variances over channels, which change when a channel goes.

With ``norms="exact"`` such channels are kept. With ``norms="renormalise"`` they may go: the pruned network then takes
the statistics over the channels that are left, and it is compared with the original whose norms do so too
(:mod:`fec_fast.plan.kept_statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .cuts import CountKept, Cut, Numbers
from .label_sets import LabelSets
from .operator_call import OperatorCall

NORMS = ("exact", "renormalise")
REMEDY = 'norms="renormalise" lets them go'


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Statistics over channels that may go, at one place of the model's code.

    Attributes:
        layer: The module in whose code they are taken.
        operator: The name of the ATen operator.
        number: How often the module has called it before, in the same call of its ``forward``.
        dim: The dimension of the channels, counted from the last: -1 or less.
        labels: The labels of the channels, int64.
        exact: Whether they are the same once channels are gone, as those of a group norm without whole groups.
    """

    layer: str
    operator: str
    number: int
    dim: int
    labels: np.ndarray
    exact: bool


class StatisticsOfRun:
    """The statistics over channels that a run takes.

    Attributes:
        renormalises: Whether they may run over the kept channels alone.
        places: Those over channels that may go, by module, operator and number of the call.
    """

    def __init__(self, norms: str) -> None:
        """Starts without any.

        Args:
            norms: See :data:`NORMS`.
        """
        self.renormalises = norms == "renormalise"
        self.places: dict[tuple[str, str, int], ChannelStatistics] = {}

    def note(self, sets: LabelSets, call: OperatorCall, dim: int, labels: np.ndarray, *, exact: bool) -> None:
        """Notes statistics; those that the same code takes over other channels lose the same positions.

        Args:
            sets: The sets of labels.
            call: The call that takes them.
            dim: The dimension of the channels.
            labels: Their labels, int64, without ``FREE``.
            exact: See :class:`ChannelStatistics`.
        """
        own_dim = dim - call.args[0].dim()
        found = ChannelStatistics(call.layer, str(call.operator), call.repetition, own_dim, labels, exact)
        known = self.places.setdefault((found.layer, found.operator, found.number), found)
        reason = f"{call.layer or 'the model'} normalises different channels with the same code"
        if known.dim == found.dim and len(known.labels) == len(labels):
            sets.unite(known.labels, labels, reason)
        else:
            for each in (known, found):
                sets.pin(each.labels, reason)


@dataclass(frozen=True, slots=True, eq=False)
class NormCut(Cut):
    """A layer norm, which is called with the size that it normalises over.

    Attributes:
        shape: The sizes of the dimensions that it normalises over.
    """

    shape: tuple[int, ...]

    @property
    def divides(self) -> bool:
        """See :attr:`Cut.divides`."""
        return False

    def is_like(self, other: Cut) -> bool:
        """See :meth:`Cut.is_like`."""
        return isinstance(other, NormCut) and (self.layer, self.shape) == (other.layer, other.shape)

    def requested(self, args: Sequence[Any]) -> Numbers:
        """See :meth:`Cut.requested`."""
        return tuple(args[1])

    def planned(self, count: CountKept) -> Numbers:
        """See :meth:`Cut.planned`."""
        return tuple(size if labels is None else count(labels) for size, labels in self.sequence())

    def make(self, args: Sequence[Any], planned: Numbers) -> Any:
        """See :meth:`Cut.make`."""
        return self.operator(args[0], planned, *args[2:])

    def replacement(self, tensor: Tensor, planned: Numbers) -> Tensor | None:
        """See :meth:`Cut.replacement`: no function refuses the numbers before the operator."""
        return None

    def widths(self) -> list[np.ndarray]:
        """See :meth:`Cut.widths`."""
        return [self.channels]

    def sequence(self) -> list[tuple[int, np.ndarray | None]]:
        """See :meth:`Cut.sequence`."""
        first = len(self.source.shape) - len(self.shape)
        return [
            (size, self.channels if first + axis == self.source.dim else None) for axis, size in enumerate(self.shape)
        ]
