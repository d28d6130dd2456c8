"""``PruningSchedule``: when a network is pruned during its training, and how much each round removes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...recovery.calibration import DATA_FREE
from ...utils.arguments import check_number
from ...utils.errors import ArgumentError
from ...utils.public_call import constructor_checked, names_checked
from ..arguments import check_positive_integer

ONE_SHOT, LINEAR, CUBIC, UNTIL_BUDGET = "one shot", "linear", "cubic", "until budget"
STEPS, EPOCHS = "steps", "epochs"
IMAGES, BATCH_NORM = "images", "batch-norm"
_CURVES = (ONE_SHOT, LINEAR, CUBIC, UNTIL_BUDGET)
ROUNDING = 1 + 1e-9  # by how much a size may miss another and be taken for it
_RECOVERIES = (None, IMAGES, DATA_FREE, BATCH_NORM)
_MOST_ROUNDS = 1000


@constructor_checked
@dataclass(frozen=True)
class PruningSchedule:
    """The rounds of pruning during a training. Make one by a class method: :meth:`cubic`, :meth:`linear` ...

    A round at step 500 is made when the optimizer has made 500 steps, one at epoch 5 at the end of the fifth epoch.

    Attributes:
        at: The steps or epochs of the rounds, in ascending order; of ``until_budget`` the first one alone.
        curve: ``"one shot"``, ``"linear"``, ``"cubic"`` or ``"until budget"``.
        unit: ``"steps"`` of the optimizer or ``"epochs"``.
        recover: What follows the cut in each round. ``None``: nothing. ``"images"``: :func:`fec_fast.compensate` on
            the images given to the pruner. ``"data-free"``: the same without images. ``"batch-norm"``:
            :func:`fec_fast.recalibrate` on these images.
        every: Of ``until_budget``, the steps or epochs between rounds.
        share: Of ``until_budget``, the share of the present size that each round removes, in (0, 1).

    Raises:
        ArgumentError: A value of the wrong kind or out of range.
    """

    at: tuple[int, ...]
    curve: str
    unit: str = STEPS
    recover: str | None = None
    every: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Checks the entries."""
        if self.curve not in _CURVES:
            raise ArgumentError(f"curve={self.curve!r:.80}: give {', '.join(map(repr, _CURVES))}")
        if self.unit not in (STEPS, EPOCHS):
            raise ArgumentError(f"unit={self.unit!r:.80}: give {STEPS!r} or {EPOCHS!r}")
        if self.recover not in _RECOVERIES:
            raise ArgumentError(
                f"recover={self.recover!r:.80}: give {', '.join(map(repr, _RECOVERIES))}; the images themselves belong "
                "to TrainingPruner(images=...)"
            )
        object.__setattr__(self, "at", _numbers(self.at))
        for each in self.at:
            check_positive_integer("at", each)
        if not 1 <= len(self.at) <= _MOST_ROUNDS:
            raise ArgumentError(f"at has {len(self.at)} {self.unit}: give 1 to {_MOST_ROUNDS}, one for each round")
        for earlier, later in zip(self.at, self.at[1:], strict=False):
            if later <= earlier:
                raise ArgumentError(f"at: {later} comes after {earlier}: give {self.unit} in ascending order")
        if self.curve == UNTIL_BUDGET:
            check_positive_integer("every", self.every)
            check_number("share", self.share, "a share between 0 and 1, such as 0.1", exclusive=True)
            if self.share is None or self.share >= 1:
                raise ArgumentError(f"share={self.share!r}: give a share between 0 and 1, such as 0.1")

    @classmethod
    @names_checked
    def one_shot(cls, at: int, *, unit: str = STEPS, recover: str | None = None) -> PruningSchedule:
        """One round, which reaches the budget.

        Args:
            at: After how many steps or epochs; at least 1. Before the training, :func:`fec_fast.prune` does it.
            unit: ``"steps"`` of the optimizer or ``"epochs"``.
            recover: ``None``, ``"images"``, ``"data-free"`` or ``"batch-norm"``; see :class:`PruningSchedule`.

        Returns:
            The schedule.
        """
        return cls((at,), ONE_SHOT, unit, recover)

    @classmethod
    @names_checked
    def linear(cls, at: Iterable[int], *, unit: str = STEPS, recover: str | None = None) -> PruningSchedule:
        """Rounds that remove equally much of the original.

        Args:
            at: The steps or epochs of the rounds, such as ``range(500, 5001, 500)``.
            unit: ``"steps"`` of the optimizer or ``"epochs"``.
            recover: ``None``, ``"images"``, ``"data-free"`` or ``"batch-norm"``; see :class:`PruningSchedule`.

        Returns:
            The schedule.
        """
        return cls(_numbers(at), LINEAR, unit, recover)

    @classmethod
    @names_checked
    def cubic(cls, at: Iterable[int], *, unit: str = STEPS, recover: str | None = None) -> PruningSchedule:
        """Rounds that remove much at first and little at last.

        After round i of n, the share S (1 - (1 - i/n)^3) of the original is removed, where S is the budget's (Zhu and
        Gupta, "To prune, or not to prune", 2017, formula 1, for equally spaced rounds).

        Args:
            at: The steps or epochs of the rounds, such as ``range(500, 5001, 500)``.
            unit: ``"steps"`` of the optimizer or ``"epochs"``.
            recover: ``None``, ``"images"``, ``"data-free"`` or ``"batch-norm"``; see :class:`PruningSchedule`.

        Returns:
            The schedule.
        """
        return cls(_numbers(at), CUBIC, unit, recover)

    @classmethod
    @names_checked
    def until_budget(
        cls, first: int, every: int, share: float, *, unit: str = STEPS, recover: str | None = None
    ) -> PruningSchedule:
        """Rounds that each remove the same share of what is left, until the budget is reached.

        Args:
            first: The steps or epochs before the first round.
            every: The steps or epochs between rounds.
            share: The share of the present size that a round removes, in (0, 1); in the quantity of the budget.
            unit: ``"steps"`` of the optimizer or ``"epochs"``.
            recover: ``None``, ``"images"``, ``"data-free"`` or ``"batch-norm"``; see :class:`PruningSchedule`.

        Returns:
            The schedule.
        """
        return cls((first,), UNTIL_BUDGET, unit, recover, every, share)

    def due(self, count: int) -> int:
        """How many rounds are due.

        Args:
            count: The steps or epochs so far.

        Returns:
            The number of the last round that is due; 0 before the first.
        """
        if self.every is None:
            return sum(each <= count for each in self.at)
        return 0 if count < self.at[0] else 1 + (count - self.at[0]) // self.every

    def size_after(self, number: int, done: int, original: float, present: float, target: float) -> float:
        """The size that the network shall have after a round.

        Args:
            number: The round, from 1.
            done: The last round before it; more than one are made at once where some were not asked for in time.
            original: The size before the first round.
            present: The size now.
            target: The size that the budget leaves.

        Returns:
            The size, in the unit of the others.
        """
        if self.share is not None:
            return max(target, float(present * (1 - self.share) ** (number - done)))
        progress = number / len(self.at)
        removed = 1 - (1 - progress) ** 3 if self.curve == CUBIC else progress
        return original - removed * (original - target)

    def is_over(self, done: int, present: float, target: float) -> bool:
        """Whether no round is left.

        Args:
            done: The last round that was made; 0 before the first.
            present: The size now.
            target: The size that the budget leaves.
        """
        return present <= target * ROUNDING if self.every is not None else done >= len(self.at)


def _numbers(at: Any) -> tuple[int, ...]:
    try:
        numbers = None if isinstance(at, str | bytes) else tuple(at)
    except TypeError:
        numbers = None
    if numbers is None:
        raise ArgumentError(f"at={at!r:.80}: give the steps or epochs of the rounds, such as range(500, 5001, 500)")
    return numbers
