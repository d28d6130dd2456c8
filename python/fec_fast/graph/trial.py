"""The trial run of a pruned network: does its code accept the new widths, and does it cut where it must?

A slice at a number that does not follow the width fails nowhere by itself. So each cut is compared with the plan, and
made as planned where the code asks for something else (:mod:`fec_fast.graph.planned_run`): one run finds all such cuts.
For each, the attributes of its module are tried (:mod:`fec_fast.graph.held_sizes`). Where none helps, the channels are
kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.copying import copied_model
from ..utils.critical_section import one_thread_at_a_time
from ..utils.errors import InputError
from ..utils.model_index import ModelIndex
from .compared_sizes import find_compared_sizes
from .cuts import CountKept, Cut, place_of
from .dispatch_mode import TracedOperator
from .hardcoded_widths import find_hardcoded_width, removable_before
from .held_sizes import HeldSize, sizes_held_for
from .label_sets import LabelPartition, Pin
from .planned_run import PlannedRun, RunReport, goes_same_way
from .trace import Trace


@dataclass(frozen=True)
class Finding:
    """What a trial run has found: the network must be planned again.

    Attributes:
        pins: Channels that must be kept.
        sizes: Attributes that must change with the widths.
    """

    pins: tuple[Pin, ...] = ()
    sizes: tuple[HeldSize, ...] = ()


def try_out(
    original: ModelIndex,
    pruned: ModelIndex,
    example_inputs: Any,
    trace: Trace,
    partition: LabelPartition,
    count: CountKept,
    known: Sequence[HeldSize] = (),
    *,
    training: bool = False,
) -> Finding | None:
    """Runs a pruned network and finds what stands in its way.

    Args:
        original: The index of the original. Both networks are left as they were.
        pruned: The index of the pruned network.
        example_inputs: What the trace was made with.
        trace: The trace of the original.
        partition: What is known so far of the labels that must be kept, see :class:`fec_fast.graph.groups.Coupling`.
        count: How many of some labels are kept.
        known: The attributes that the pruned network has been given new values of.
        training: Whether to run it in training mode. Then the trace has such a run too.

    Returns:
        At least one pin of a channel that could be removed so far, or an attribute; ``None`` if the network runs the
        same way through the model's code and every cut is made as planned.

    Raises:
        InputError: It cannot be run, and no channel can be held responsible for it.
    """
    run = PlannedRun(pruned, example_inputs, trace, count, training=training)
    report = run.run()
    if not report.is_comparable:  # its code may keep what its first run computes, as that of the original has long done
        report = run.run()
    whole = PlannedRun(original, example_inputs, trace, len, training=training)
    operators = (trace.training_operators or ()) if training else trace.operators
    if not report.failed and not report.deviating:
        position = _turning_point(original, run, whole, report, trace, count, training)
        if position is None:
            return _other_numbers(original, whole, report, operators, partition)
        sizes = find_compared_sizes(pruned, run, report, operators, count, known)
        return Finding(sizes=tuple(sizes)) if sizes else _another_way(original, position, operators, partition, whole)
    sizes = _Search(pruned, run, whole, count, report).sizes(known)
    solved = {size.module for size in sizes}
    pins = _pins((run.cuts[position] for position in sorted(report.deviating)), partition, trace, solved)
    if not pins and not sizes:
        sizes = find_compared_sizes(pruned, run, report, operators, count, known)
    if not pins and not sizes:
        try:
            pins = [find_hardcoded_width(pruned, example_inputs, trace, partition, training=training)]
        except InputError:
            # A cut that was not compared may be the cause.
            unseen = (cut for position, cut in enumerate(run.cuts) if position not in report.requested)
            pins = _pins((cut for cut in unseen if cut.divides), partition, trace)
            if not pins:
                raise
    return Finding(tuple(pins), tuple(sizes))


def _turning_point(
    original: ModelIndex,
    run: PlannedRun,
    whole: PlannedRun,
    report: RunReport,
    trace: Trace,
    count: CountKept,
    training: bool,
) -> int | None:
    """The first operator of the trace that a run of the pruned network left out, because it has fewer channels.

    Code that reads values may go another way for other values: so does the original then, once it is masked.
    """
    position = run.first_other(report)
    if position is None or whole.first_other(whole.run()) is not None:  # or it does not go the same way twice
        return None
    if report.with_values:
        masked = PlannedRun(_masked(original, trace, count), run.inputs, trace, len, training=training).run()
        if not masked.failed and goes_same_way(masked, report):
            return None
    return position


def _masked(original: ModelIndex, trace: Trace, count: CountKept) -> ModelIndex:
    """A copy of the original in which removed channels have weights of zero."""
    with one_thread_at_a_time():
        masked = ModelIndex.of(copied_model(original))
    with torch.no_grad():
        for (name, axis), labels in trace.axes.items():
            removed = [position for position in range(len(labels)) if count(labels[position : position + 1]) == 0]
            masked.tensors[name].index_fill_(axis, torch.tensor(removed, dtype=torch.int64), 0)
    return masked


def _another_way(
    original: ModelIndex,
    position: int,
    operators: Sequence[TracedOperator],
    partition: LabelPartition,
    whole: PlannedRun,
) -> Finding:
    """Pins of the channels whose number decides which way the model's code goes."""
    found = removable_before(operators, position, partition, original)
    where = _where(whole.line_of(position))
    if found is None:
        raise InputError(
            f"the pruned network goes another way through the model's code, from {operators[position].operator} on"
            f"{where}: the code asks for a width that was pruned; name the layer that makes it in ignore="
        )
    operator, labels = found
    why = f"the model's code goes another way with fewer channels at {operator}{where}"
    return Finding((Pin(labels, why, f"{why}: they keep their width"),))


def _other_numbers(
    original: ModelIndex,
    whole: PlannedRun,
    report: RunReport,
    operators: Sequence[TracedOperator],
    partition: LabelPartition,
) -> Finding | None:
    """Pins of the channels whose number the model's code computes with, such as a scale of attention scores."""
    # Numbers that are read from values differ by themselves, and code may compute with others in each run.
    if report.with_values or report.other_numbers is None or whole.run().other_numbers is not None:
        return None
    return _keep_before(original, report.other_numbers, operators, partition, whole)


def doubted_numbers(
    pruned: ModelIndex, example_inputs: Any, trace: Trace, partition: LabelPartition, count: CountKept, message: str
) -> Finding | None:
    """Pins for a network that differs from the masked original: a number that is read from values may be the cause.

    Args:
        pruned: The index of the pruned network.
        example_inputs: What the trace was made with.
        trace: The trace of the original.
        partition: What is known so far of the labels that must be kept.
        count: How many of some labels are kept.
        message: What differs.

    Returns:
        Pins of the channels that were read just before; ``None`` where the numbers are the same, or there are none.
    """
    for training in (False, True) if trace.training_operators is not None else (False,):
        run = PlannedRun(pruned, example_inputs, trace, count, training=training)
        position = run.run().other_numbers
        operators = (trace.training_operators or ()) if training else trace.operators
        consequence = f", and so {message}"
        if position is not None and (found := _keep_before(pruned, position, operators, partition, run, consequence)):
            return found
    return None


def _keep_before(
    network: ModelIndex,
    position: int,
    operators: Sequence[TracedOperator],
    partition: LabelPartition,
    run: PlannedRun,
    consequence: str = "",
) -> Finding | None:
    """Pins of the channels that are read just before an operator, which computes with a number that follows a width."""
    found = removable_before(operators, position, partition, network)
    if found is None:
        return None
    numbers, operator = list(operators[position].numbers), operators[position].operator
    where = _where(run.line_of(position))
    why = f"the model's code computes {numbers} from its width at {operator}{where}{consequence}"
    remedy = "a number that is computed once, and held by an attribute, would stay"
    return Finding((Pin(found[1], why, f"{why}: the channels keep it; {remedy}"),))


def _where(line: str | None) -> str:
    return "" if line is None else f" ({line})"


def doubted_cuts(trace: Trace, partition: LabelPartition, count: CountKept, message: str) -> Finding | None:
    """Pins for a network that runs but differs from the masked original: what is least certain is kept.

    Those are the channels of operators without a rule; where none of them can be removed, all that an operator divides.

    Args:
        trace: The trace of the original.
        partition: What is known so far of the labels that must be kept.
        count: How many of some labels are kept.
        message: What differs.

    Returns:
        Pins of channels that could be removed so far; ``None`` if there are none.
    """
    pins = [
        Pin(
            labels,
            f"it feeds {place}, which has no rule, and without some channels {message}",
            f"{place} has no rule, and without some channels {message}: they keep their width",
        )
        for labels, place in trace.believed
        if count(labels) < len(labels) and not partition.all_pinned(labels)
    ] or [
        Pin(
            cut.channels,
            f"{place_of(cut)} divides its channels{_where(trace.lines.get(cut))}, and without some of them {message}",
            f"{place_of(cut)} divides channels{_where(trace.lines.get(cut))}, and without some of them {message}: they "
            "keep their width",
        )
        for cut in (*trace.cuts, *trace.training_cuts)
        if cut.divides and cut.planned(count) != cut.planned(len) and not partition.all_pinned(cut.channels)
    ]
    return Finding(tuple(pins)) if pins else None


def _pins(cuts: Iterable[Cut], partition: LabelPartition, trace: Trace, solved: Collection[str] = ()) -> list[Pin]:
    """Pins of the channels that are cut, except in the modules that are solved; what is kept anyway is left out."""
    pins = []
    for cut in cuts:
        if cut.layer not in solved and not partition.all_pinned(cut.channels):
            numbers = [number for number, _ in cut.sequence()]
            where = _where(trace.lines.get(cut))
            pin = Pin(
                cut.channels,
                f"{place_of(cut)} cuts its channels at fixed positions of the model's code, {numbers}{where}",
                f"{place_of(cut)}: the model's code asks for {numbers} at any width, so the channels keep theirs; "
                "sizes computed from the width, or held by an attribute that is used for nothing else, would follow",
            )
            partition = partition.with_pins([pin])
            pins.append(pin)
    return pins


def _by_module(sizes: Iterable[HeldSize]) -> list[list[HeldSize]]:
    """Attributes by module, the modules in order of their names."""
    groups: dict[str, list[HeldSize]] = {}
    for size in sizes:
        groups.setdefault(size.module, []).append(size)
    return [groups[module] for module in sorted(groups)]


@dataclass(frozen=True)
class _Search:
    """The search for attributes that make the cuts of a pruned network follow the plan.

    Attributes:
        pruned: The pruned network.
        run: Runs it.
        whole: Runs the original.
        count: How many of some labels are kept.
        before: The run of the pruned network that showed which cuts do not follow.
    """

    pruned: ModelIndex
    run: PlannedRun
    whole: PlannedRun
    count: CountKept
    before: RunReport

    def sizes(self, known: Sequence[HeldSize]) -> list[HeldSize]:
        """Attributes with which all cuts of their modules are as planned, and which do nothing else.

        Args:
            known: Attributes that have changed already; they are not among those that are returned.
        """
        changed = {(size.module, size.attribute) for size in known}
        candidates: dict[str, dict[str, HeldSize]] = {}
        cuts = [self.run.cuts[position] for position in sorted(self.before.deviating)]
        # A number may be the width of a part in one cut and a whole width in another: the part is likelier.
        for cut, likely in [*((cut, 1) for cut in cuts), *((cut, None) for cut in cuts)]:
            for size in sizes_held_for(cut, self.pruned.modules[cut.layer], likely):
                if (size.module, size.attribute) not in changed:
                    of_module = candidates.setdefault(cut.layer, {})
                    of_module[size.attribute] = of_module.get(size.attribute, size).with_others(size)
        sizes = self._influential(candidates)
        found = self._following(sizes)
        solved = {size.module for size in found}
        for group in _by_module(size for size in sizes if size.module not in solved):
            found = self._with_fewer(group, found)
        if found and not (self._used_for_cuts_alone(found) or self._restores_numbers(found)):
            found = [size for group in _by_module(found) if self._used_for_cuts_alone(group) for size in group]
        return found

    def _with_fewer(self, group: Sequence[HeldSize], found: list[HeldSize]) -> list[HeldSize]:
        """Adds some attributes of a module to those that were found, if all of them together do not follow.

        Of attributes with the same value, one may hold something else: the number of heads, not their width.
        """
        values = [size.before for size in group]
        alike = [size for size in group if values.count(size.before) > 1]
        choices = [[size for size in group if size is not other] for other in alike]
        choices += [[size for size in group if size is other or size not in alike] for other in alike]
        if alike:
            choices.insert(0, [size for size in group if self._used_for_cuts_alone([size])])
        for choice in choices:
            following = self._following([*found, *choice])
            if len(following) == len(found) + len(choice) > len(found):
                return following
        return found

    def _following(self, sizes: Sequence[HeldSize]) -> list[HeldSize]:
        """Those attributes with which all cuts of their modules are as planned, if all of them change."""
        sizes = list(sizes)
        while sizes:
            report = self.run.run(self._new_values(sizes))
            if report.failed and (not self.before.failed or report.passed < self.before.passed):
                return []  # an attribute is used for something that fails with the new value
            wrong = {self.run.cuts[position].layer for position in report.deviating}
            remaining = [size for size in sizes if size.module not in wrong]
            if len(remaining) == len(sizes):
                break
            sizes = remaining
        return sizes

    def _influential(self, candidates: Mapping[str, Mapping[str, HeldSize]]) -> list[HeldSize]:
        """The attributes that some cut of their module depends on: it asks for other numbers when they change."""
        turns = max(map(len, candidates.values()), default=0)
        if turns <= 1:  # no choice: whether the cuts follow is seen next
            return [size for sizes in candidates.values() for size in sizes.values()]
        found = []
        for turn in range(turns):  # one attribute of each module at a time
            tried = [[*sizes.values()][turn] for sizes in candidates.values() if turn < len(sizes)]
            report = self.run.run(self._new_values(tried))
            if report.failed and len(tried) > 1:  # one of them keeps the run from reaching the others
                found += [
                    size for size in tried if size.module in self._changed(self.run.run(self._new_values([size])))
                ]
            else:
                changed = self._changed(report)
                found += [size for size in tried if size.module in changed]
        return found

    def _changed(self, report: RunReport) -> set[str]:
        """The modules some of whose cuts were asked for at other numbers than before."""
        requested, before = report.requested, self.before
        return {
            self.run.cuts[position].layer
            for position in before.deviating & requested.keys()
            if requested[position] != before.requested.get(position)
        }

    def _used_for_cuts_alone(self, sizes: Sequence[HeldSize]) -> bool:
        """Whether the original does the same with the new values, when its cuts are made as they were."""
        reports = [self.whole.run(values, with_calls=True) for values in ((), self._new_values(sizes))]
        return reports[0].calls == reports[1].calls and not any(report.failed for report in reports)

    def _restores_numbers(self, sizes: Sequence[HeldSize]) -> bool:
        """Whether the pruned network computes with other plain numbers than the original, but not with the new values.

        The code may divide a width by an attribute: both change, and the number is as before.
        """
        report = self.run.run(self._new_values(sizes)) if self.before.other_numbers is not None else self.before
        same_numbers = report.other_numbers is None and not report.with_values
        return same_numbers and not report.failed and not report.deviating and self.run.first_other(report) is None

    def _new_values(self, sizes: Sequence[HeldSize]) -> list[tuple[HeldSize, int | list[int]]]:
        return [(size, size.after(self.count)) for size in sizes]
