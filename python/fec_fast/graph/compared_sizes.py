"""Compared sizes: attributes that a model's code compares with the width, as in ``assert x.shape[1] == self.channels``.

No cut shows them. The pruned network stops there, or goes another way. The attributes of the modules in whose code that
happens are tried, if they hold the width of channels that it had just computed with. One is changed where the run comes
further with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..utils.model_index import ModelIndex
from .cuts import CountKept
from .dispatch_mode import TracedOperator
from .hardcoded_widths import REACH
from .held_sizes import HeldSize, widths_held_by
from .planned_run import PlannedRun, RunReport


def find_compared_sizes(
    pruned: ModelIndex,
    run: PlannedRun,
    report: RunReport,
    operators: Sequence[TracedOperator],
    count: CountKept,
    known: Sequence[HeldSize],
) -> list[HeldSize]:
    """Attributes with which a pruned network goes the way of the original, or goes it further than without.

    Args:
        pruned: The index of the pruned network.
        run: Runs it.
        report: Of a run in which no cut deviates, and that stops or goes another way.
        operators: The operators of the trace.
        count: How many of some labels are kept.
        known: Attributes that have changed already.

    Returns:
        The attributes; none if a number that an operator computes with would change too.
    """
    changed = {(size.module, size.attribute) for size in known}
    sizes: list[HeldSize] = []
    reached = _reached(run, report)
    while reached < math.inf:
        for size in _candidates(pruned, report, operators, int(reached), count, changed):
            tried = run.run(_new_values([*sizes, size], count))
            if _reached(run, tried) > reached:
                changed.add((size.module, size.attribute))
                sizes, report, reached = [*sizes, size], tried, _reached(run, tried)
                break
        else:
            break
    return sizes if report.other_numbers is None else []


def _reached(run: PlannedRun, report: RunReport) -> float:
    """The position of the first operator of the trace that a run did not make; infinity if it made all."""
    position = report.passed if report.failed else run.first_other(report)
    return math.inf if position is None else position


def _candidates(
    pruned: ModelIndex,
    report: RunReport,
    operators: Sequence[TracedOperator],
    position: int,
    count: CountKept,
    changed: set[tuple[str, str]],
) -> Iterator[HeldSize]:
    """Attributes to be tried: of the modules that the run was in, for the channels that it read last."""
    widths: dict[tuple[int, int], np.ndarray] = {}
    for traced in reversed(operators[max(0, position - REACH) : position + 1]):
        for labels in (of_input.labels for of_input in traced.inputs):
            if len(labels) > 1 and count(labels) < len(labels):
                widths.setdefault((len(labels), count(labels)), labels)
    modules = dict.fromkeys(report.failed_in)
    for traced in operators[max(0, position - 1) : position + 1]:
        modules.update(dict.fromkeys(_with_parents(traced.layer)))
    for name in modules:
        for (width, _), labels in widths.items():
            for size in widths_held_by(name, pruned.modules[name], {width: labels}):
                if (name, size.attribute) not in changed:
                    yield size


def _with_parents(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _new_values(sizes: Sequence[HeldSize], count: CountKept) -> list[tuple[HeldSize, int | list[int]]]:
    return [(size, size.after(count)) for size in sizes]
