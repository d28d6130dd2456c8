"""How far a pruning during training is, in words: one line, a table, what is missing, and calls that are missing."""

from __future__ import annotations

from ...utils.errors import list_some
from ...utils.text import text_table
from ...utils.user_warnings import warn_user
from .schedule import EPOCHS, STEPS, PruningSchedule
from .stored_state import Progress

_LONG_EPOCH = 10_000  # steps; longer epochs are rare
_COUNTED_BY = {STEPS: "step()", EPOCHS: "end_epoch()"}


def one_line(progress: Progress, schedule: PruningSchedule, quantity: str) -> str:
    """The ``repr`` of a pruner.

    Args:
        progress: How far it is.
        schedule: Its schedule.
        quantity: The quantity of its budget.
    """
    left = "finished" if _is_over(progress, schedule) else f"to {progress.target:.4g}"
    return (
        f"<TrainingPruner: {len(progress.rounds)} rounds in {progress.steps} steps, {quantity} from "
        f"{progress.size_before:.4g} to {progress.size:.4g}, {left}>"
    )


def table_of_rounds(progress: Progress, quantity: str) -> str:
    """A table of the rounds; empty before the first.

    Args:
        progress: How far the pruning is.
        quantity: The quantity of its budget.
    """
    rows = [
        (str(each.number), str(each.steps), str(each.epochs), f"{each.size_before:.6g}", f"{each.size_after:.6g}")
        for each in progress.rounds
    ]
    return text_table(("round", "steps", "epochs", f"{quantity} before", "after"), rows, "rrrrr") if rows else ""


def missing_rounds(progress: Progress, schedule: PruningSchedule, quantity: str) -> str | None:
    """What was reached and which rounds were not made.

    Args:
        progress: How far the pruning is.
        schedule: Its schedule.
        quantity: The quantity of its budget.

    Returns:
        The text; ``None`` if no round is left.
    """
    if _is_over(progress, schedule):
        return None
    done, unit = progress.done, schedule.unit
    if schedule.every is None:
        left = list_some([f"{each} {unit}" for each in schedule.at[done:]])
        rounds = f"{done} of {len(schedule.at)} rounds made, missing those after {left}"
    else:
        rounds = f"{done} rounds made, the next one comes after {schedule.at[0] + done * schedule.every} {unit}"
    uncounted = ""
    if not (progress.epochs if unit == EPOCHS else progress.steps):
        uncounted = f"; the schedule counts {unit}, and no call of {_COUNTED_BY[unit]} has counted any"
    return (
        f"{quantity} {progress.size:.4g} in place of {progress.target:.4g} after {progress.steps} steps and "
        f"{progress.epochs} epochs, {rounds}{uncounted}"
    )


def warn_of_missing_calls(before: Progress, now: Progress, schedule: PruningSchedule, taken: int) -> None:
    """Warns if only the call is made that counts in the other unit than the schedule's.

    Args:
        before: How far the pruning was.
        now: How far it is, with what the present call counts.
        schedule: Its schedule.
        taken: The steps of the optimizer, counted or not.
    """
    if _is_over(now, schedule):
        return
    if schedule.unit == STEPS and before.epochs < 2 <= now.epochs and taken and not now.steps:
        warn_user(
            "end_epoch() was called twice and step() not once, but the schedule counts steps: nothing will be pruned; "
            "call step() after every step of the optimizer, or make the schedule with unit='epochs'"
        )
    if schedule.unit == EPOCHS and before.steps < _LONG_EPOCH <= now.steps and not now.epochs:
        warn_user(
            f"step() has counted {_LONG_EPOCH} steps and end_epoch() was not called once, but the schedule counts "
            "epochs: unless an epoch is longer than that, nothing will be pruned; call end_epoch() after every epoch, "
            "or make the schedule with unit='steps'"
        )


def _is_over(progress: Progress, schedule: PruningSchedule) -> bool:
    return schedule.is_over(progress.done, progress.size, progress.target)
