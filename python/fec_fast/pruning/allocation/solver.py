"""From a policy's order and a limit to the numbers of units that go.

A policy says in which order units go: for each coupled set, a pressure at which its first, second, ... unit goes, never
falling. All sets' steps by rising pressure make one sequence; removing more of it never makes a network larger, so the
shortest beginning that meets a limit is found by bisection. What it removes too much is then given back, where a single
step of a set fits; where the last step was too coarse to come near the limit, finer ones of other sets take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Size = Callable[[np.ndarray], np.ndarray]


def solve(
    size: Size, limit: float, near: float, pressures: Sequence[np.ndarray], allowed: Sequence[np.ndarray]
) -> np.ndarray:
    """Finds how many units of each set go.

    Args:
        size: From counts ``[..., sets]`` to sizes ``[...]``; does not rise with a count.
        limit: The size that may be left.
        near: A size that is near enough below the limit.
        pressures: For each set, the pressure at which each unit goes in turn, rising; infinite for units that stay.
        allowed: For each set, the numbers of units that may go, rising from 0.

    Returns:
        Int64 ``[sets]``, each of ``allowed``. The size is at most ``limit``; where it is below ``near``, giving a step
        of any one set back would exceed the limit. If the limit is out of reach, the least size.
    """
    best: np.ndarray | None = None
    allowed = list(allowed)
    for _ in allowed:
        steps = Steps(pressures, allowed)
        if float(size(steps.counts(0))) <= limit:
            return steps.counts(0)
        if float(size(steps.counts(len(steps)))) > limit:
            return steps.counts(len(steps)) if best is None else best
        met = _least_number(size, limit, steps)
        counts = _given_back(size, limit, near, steps.counts(met), allowed)
        if best is None or float(size(counts)) > float(size(best)):
            best = counts
        if float(size(best)) >= near:
            return best
        # The step that met the limit is too coarse to come near it: finer steps of others, in its place.
        coarse = steps.set_of(met - 1)
        allowed[coarse] = allowed[coarse][: int(np.searchsorted(allowed[coarse], steps.counts(met - 1)[coarse])) + 1]
    return np.zeros(0, dtype=np.int64) if best is None else best


def _least_number(size: Size, limit: float, steps: Steps) -> int:
    """The least number of steps that meets a limit, which none does not and all do."""
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        if float(size(steps.counts(middle))) <= limit:
            high = middle
        else:
            low = middle
    return high


class Steps:
    """The steps of all sets by rising pressure; of equal ones, those of the first set first."""

    def __init__(self, pressures: Sequence[np.ndarray], allowed: Sequence[np.ndarray]) -> None:
        """Sorts the steps.

        Args:
            pressures: See :func:`solve`.
            allowed: See :func:`solve`.
        """
        at = [values[numbers[1:] - 1] for values, numbers in zip(pressures, allowed, strict=True)]
        at = [values[np.isfinite(values)] for values in at]
        of = np.repeat(np.arange(len(at)), [len(values) for values in at])
        self._sets = of[np.argsort(np.concatenate([*at, np.zeros(0)]), kind="stable")]
        self._allowed = allowed

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._sets)

    def set_of(self, number: int) -> int:
        """Which set a step belongs to.

        Args:
            number: Of the step, from 0.

        Returns:
            The number of the set.
        """
        return int(self._sets[number])

    def counts(self, number: int) -> np.ndarray:
        """How many units of each set have gone after so many steps.

        Args:
            number: Of steps.

        Returns:
            Int64 ``[sets]``.
        """
        taken = np.bincount(self._sets[:number], minlength=len(self._allowed))
        return np.array([numbers[n] for numbers, n in zip(self._allowed, taken, strict=True)], dtype=np.int64)


def _given_back(size: Size, limit: float, near: float, counts: np.ndarray, allowed: Sequence[np.ndarray]) -> np.ndarray:
    """Gives single steps back; several of a set only where that is not near enough."""
    while True:
        fewer = _one_turn(size, limit, counts, allowed)
        if fewer is None:
            return counts
        counts = fewer
        if float(size(counts)) >= near:
            return counts


def _one_turn(size: Size, limit: float, counts: np.ndarray, allowed: Sequence[np.ndarray]) -> np.ndarray | None:
    """Gives at most one step of each set back, the largest that fits first; ``None`` where none fits."""
    before = counts
    fewer = [int(numbers[max(0, np.searchsorted(numbers, n) - 1)]) for numbers, n in zip(allowed, counts, strict=True)]
    left = [number for number, n in enumerate(counts) if n > 0]
    while left:
        trials = np.repeat(counts[None], len(left), 0)
        trials[np.arange(len(left)), left] = [fewer[number] for number in left]
        sizes = size(trials)
        fitting = np.flatnonzero(sizes <= limit)
        if not len(fitting):
            break
        best = int(fitting[np.argmax(sizes[fitting])])
        counts = trials[best]
        left = [left[row] for row in fitting.tolist() if row != best]  # what does not fit now will not fit later
    return None if counts is before else counts
