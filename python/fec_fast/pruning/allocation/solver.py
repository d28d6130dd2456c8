"""Search for removal counts: the smallest removal, in a policy's order, that meets a size limit.

A policy orders the units of all coupled sets by thresholds (:mod:`fec_fast.pruning.allocation.policies`). Sorted by
threshold, the removals of all sets form one sequence of steps. A longer beginning of the sequence never leaves a larger
network, so the shortest beginning that meets the limit is found by bisection, with about 20 evaluations of the size
for a million units. Two corrections follow, because steps are coarse (a unit of a wide layer, a multiple of
``round_to``): single steps that the limit has room for are undone; and where the last step was too coarse to end near
the limit, the search is repeated with finer steps of other sets in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...utils.ranking import merge_ties

# From removal counts ``[..., sets]`` to the size of the network that is left, ``[...]``.
SizeFunction = Callable[[np.ndarray], np.ndarray]


def smallest_removal(
    size_of: SizeFunction,
    limit: float,
    near_limit: float,
    thresholds: Sequence[np.ndarray],
    allowed_counts: Sequence[np.ndarray],
) -> np.ndarray:
    """Finds how many units of each set are removed.

    Args:
        size_of: From removal counts ``[..., sets]`` to sizes ``[...]``, in any unit; must not rise with a count.
        limit: The largest size that may be left, in the unit of ``size_of``.
        near_limit: A size below the limit that is accepted without further corrections.
        thresholds: For each set float64 ``[units]``, rising: the threshold at which each further unit is removed;
            infinite for units that are kept whatever the limit.
        allowed_counts: For each set the numbers of units that may be removed, int64, rising from 0.

    Returns:
        Int64 ``[sets]``, each count from ``allowed_counts``. The size is at most ``limit``. Where it is below
        ``near_limit``, undoing a step of any one set would exceed the limit. If the limit is out of reach, the counts
        of the smallest network.
    """
    best: np.ndarray | None = None
    allowed_counts = list(allowed_counts)
    for _ in allowed_counts:
        steps = RemovalSteps(thresholds, allowed_counts)
        if float(size_of(steps.counts_after(0))) <= limit:
            return steps.counts_after(0)
        if float(size_of(steps.counts_after(len(steps)))) > limit:
            return steps.counts_after(len(steps)) if best is None else best
        number = _fewest_steps(size_of, limit, steps)
        counts = _undo_steps(size_of, limit, near_limit, steps.counts_after(number), allowed_counts)
        if best is None or float(size_of(counts)) > float(size_of(best)):
            best = counts
        if float(size_of(best)) >= near_limit:
            return best
        # The last step met the limit and went far below it: nothing that was undone fills the gap. Without that step
        # (its set may lose no more than it had lost before), finer steps of other sets have to meet the limit. Every
        # turn ends one set's sequence there, so there are at most as many turns as sets.
        coarse = steps.set_of(number - 1)
        last_count = steps.counts_after(number - 1)[coarse]
        allowed_counts[coarse] = allowed_counts[coarse][: int(np.searchsorted(allowed_counts[coarse], last_count)) + 1]
    return np.zeros(0, dtype=np.int64) if best is None else best


def _fewest_steps(size_of: SizeFunction, limit: float, steps: RemovalSteps) -> int:
    """The smallest number of steps that meets a limit, by bisection: 0 steps must not meet it, all steps must."""
    too_few, enough = 0, len(steps)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if float(size_of(steps.counts_after(middle))) <= limit:
            enough = middle
        else:
            too_few = middle
    return enough


class RemovalSteps:
    """The removals of all sets as one sequence, by rising threshold; of equal thresholds the first set comes first.

    A step leads from one allowed count of a set to the next. Its threshold is that of the last unit it removes.
    """

    def __init__(self, thresholds: Sequence[np.ndarray], allowed_counts: Sequence[np.ndarray]) -> None:
        """Sorts the steps.

        Args:
            thresholds: For each set float64 ``[units]``, rising; steps with an infinite threshold are left out.
            allowed_counts: For each set the numbers of units that may be removed, int64, rising from 0.
        """
        step_thresholds = [row[counts[1:] - 1] for row, counts in zip(thresholds, allowed_counts, strict=True)]
        step_thresholds = [row[np.isfinite(row)] for row in step_thresholds]
        set_numbers = np.repeat(np.arange(len(step_thresholds)), [len(row) for row in step_thresholds])
        # Stable, so that the steps of one set stay in their order where thresholds are equal.
        # Ties, so that sets of equal layers do not take turns by the last digit.
        order = np.argsort(merge_ties(np.concatenate([*step_thresholds, np.zeros(0)])), kind="stable")
        self._sets = set_numbers[order]
        self._allowed_counts = allowed_counts

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._sets)

    def set_of(self, step: int) -> int:
        """The number of the set that a step removes from.

        Args:
            step: The position of the step in the sequence, from 0.

        Returns:
            The position of the set, from 0.
        """
        return int(self._sets[step])

    def counts_after(self, number: int) -> np.ndarray:
        """The numbers of units that are removed by the first steps of the sequence.

        Args:
            number: How many steps.

        Returns:
            Int64 ``[sets]``.
        """
        taken = np.bincount(self._sets[:number], minlength=len(self._allowed_counts))
        return np.array(
            [counts[steps] for counts, steps in zip(self._allowed_counts, taken, strict=True)], dtype=np.int64
        )


def _undo_steps(
    size_of: SizeFunction, limit: float, near_limit: float, counts: np.ndarray, allowed_counts: Sequence[np.ndarray]
) -> np.ndarray:
    """Undoes steps while the limit has room for one; a set gives a second step only if all sets gave their first."""
    while True:
        fewer = _undo_one_step_per_set(size_of, limit, counts, allowed_counts)
        if fewer is None:
            return counts
        counts = fewer
        if float(size_of(counts)) >= near_limit:
            return counts


def _undo_one_step_per_set(
    size_of: SizeFunction, limit: float, counts: np.ndarray, allowed_counts: Sequence[np.ndarray]
) -> np.ndarray | None:
    """Undoes at most one step per set, the largest that fits first; ``None`` where none fits."""
    before = counts
    one_step_less = [
        int(allowed[max(0, np.searchsorted(allowed, count) - 1)])
        for allowed, count in zip(allowed_counts, counts, strict=True)
    ]
    candidates = [number for number, count in enumerate(counts) if count > 0]
    while candidates:
        trials = np.repeat(counts[None], len(candidates), 0)
        trials[np.arange(len(candidates)), candidates] = [one_step_less[number] for number in candidates]
        sizes = size_of(trials)
        fitting = np.flatnonzero(sizes <= limit)
        if not len(fitting):
            break
        largest = int(fitting[np.argmax(sizes[fitting])])
        counts = trials[largest]
        # What does not fit now will not fit later either: the network only grows.
        candidates = [candidates[row] for row in fitting.tolist() if row != largest]
    return None if counts is before else counts
