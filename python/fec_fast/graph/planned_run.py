"""A run beside the trace, in which every cut is made as planned, whatever numbers the model's code asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..utils.code_lines import line_of_model_code
from ..utils.compat import TorchDispatchMode
from ..utils.critical_section import put_back_by, surely_closed
from ..utils.errors import InputError
from ..utils.forward import call_model, copied_inputs
from ..utils.model_index import ModelIndex
from ..utils.number_attributes import in_type_of
from ..utils.running_module import modules_that_raised
from .cuts import CountKept, Cut
from .dispatch_mode import Evaluate, TracedOperator
from .hardcoded_widths import only_lays_out
from .held_sizes import HeldSize
from .parameter_guard import ParameterGuard
from .plain_numbers import numbers_in
from .recorded_run import unchanged
from .shape_only import ShapeOnlyRun, block_value_access, call_with_values
from .trace import Trace

_SLICE, _CLONE = torch.ops.aten.slice.Tensor, torch.ops.aten.clone.default
# Functions that refuse numbers that do not fit, before they reach an operator.
_CHECKED_FIRST = {
    *(Tensor.reshape, torch.reshape, Tensor.unflatten, torch.unflatten),
    *(Tensor.narrow, torch.narrow),
}


@dataclass
class RunReport:
    """How a run went.

    Attributes:
        passed: How many operators of the trace were passed.
        requested: The numbers that the code asked for, by the position of the cut in the trace.
        deviating: The cuts whose numbers are not the planned ones, by position.
        other_numbers: The first operator that computes with other plain numbers than that of the trace, by position.
            In runs with values, they may have been read from these.
        failed: Whether the run stopped before its end.
        failed_in: The modules in whose code it stopped, the innermost first.
        with_values: Whether the operators were called as they are.
        is_comparable: Whether its operators are those of the trace.
        operators: Its operators.
        calls: If asked for, every operator with its plain arguments and the shapes of its tensors; of a cut, the
            planned numbers.
        line: If asked for, the line of the model's code that called an operator of the trace.
    """

    passed: int = 0
    requested: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    deviating: set[int] = field(default_factory=set)
    other_numbers: int | None = None
    failed: bool = False
    failed_in: list[str] = field(default_factory=list)
    with_values: bool = False
    is_comparable: bool = True
    operators: list[Any] = field(default_factory=list)
    calls: list[Any] | None = None
    line: str | None = None


class PlannedRun:
    """Runs of one network, whose attributes may be changed for a run.

    Attributes:
        cuts: The cuts of the trace.
        inputs: What the network is run on.
    """

    def __init__(
        self, network: ModelIndex, example_inputs: Any, trace: Trace, count: CountKept, *, training: bool
    ) -> None:
        """Chooses a network and a plan.

        Args:
            network: The index of the original or of a pruned copy. It is left as it was.
            example_inputs: What the trace was made with.
            trace: The trace of the original.
            count: How many of some labels the network has.
            training: Whether to run it in training mode. Then the trace has such a run too.
        """
        self.cuts = trace.training_cuts if training else trace.cuts
        self._operators = (trace.training_operators or ()) if training else trace.operators
        self._network, self.inputs, self._count, self._training = network, example_inputs, count, training
        self._needs_values = trace.needs_values and not training

    def run(
        self, attributes: Sequence[tuple[HeldSize, int | list[int]]] = (), *, with_calls: bool = False
    ) -> RunReport:
        """Runs the network for its shapes alone or, where that is not possible, as it is.

        Args:
            attributes: Attributes that have other values during the run, with these values.
            with_calls: Whether to report every operator.

        Returns:
            How it went.
        """
        with self._changed(attributes):
            report = None if self._needs_values else self._run_for_shapes(with_calls)
            if report is None or report.failed:
                report = self._run(with_calls, for_shapes=False, with_functions=True)
        if not report.failed:
            # A run that goes another way than the trace does not show where these would be made.
            report.deviating |= {
                position
                for position, cut in enumerate(self.cuts)
                if position not in report.requested and cut.divides and cut.planned(self._count) != cut.planned(len)
            }
        return report

    def _run_for_shapes(self, with_calls: bool) -> RunReport:
        # Watching functions besides operators takes time, and is needed only where something does not follow.
        report = self._run(with_calls, for_shapes=True, with_functions=False)
        if report.failed or report.deviating:
            report = self._run(with_calls, for_shapes=True, with_functions=True)
        return report

    def line_of(self, position: int) -> str | None:
        """The line of the model's code that calls an operator of the trace, such as ``"models/resnet.py:92"``.

        Args:
            position: The position of the operator in the trace.

        Returns:
            ``None`` where a run of the network does not show it.
        """
        for for_shapes in (True, False):
            report = self._run(False, for_shapes=for_shapes, with_functions=False, line_of=position)
            if report.line is not None or not report.failed:
                return report.line
        return None

    def first_other(self, report: RunReport) -> int | None:
        """Where a run went another way through the model's code than the trace.

        Operators that move no channel are left out: whether ``contiguous`` copies or a reshape is a view depends on
        the sizes, not on the code.

        Args:
            report: Of a run that did not fail.

        Returns:
            The position of the first operator of the trace that the run did not make, or made later; ``None`` where it
            made all of them and no other.
        """
        if report.is_comparable and len(report.operators) == len(self._operators):
            return None
        expected = [number for number, traced in enumerate(self._operators) if not only_lays_out(traced.operator)]
        made = [operator for operator in report.operators if not only_lays_out(operator)]
        for number, operator in zip(expected, made, strict=False):
            if self._operators[number].operator is not operator:
                return number
        if len(made) == len(expected):
            return None
        return expected[len(made)] if len(made) < len(expected) else len(self._operators) - 1

    def _run(
        self, with_calls: bool, *, for_shapes: bool, with_functions: bool, line_of: int | None = None
    ) -> RunReport:
        report = RunReport(calls=[] if with_calls else None, with_values=not for_shapes)
        guard, given, network = ParameterGuard(self._network), copied_inputs(self.inputs), self._network
        evaluate: Evaluate = ShapeOnlyRun(given) if for_shapes else call_with_values
        mode = _CutsAsPlanned(guard, self._operators, self.cuts, self._count, evaluate, report, line_of)
        values = block_value_access() if for_shapes else contextlib.nullcontext()
        functions = _Functions(mode) if with_functions else contextlib.nullcontext()
        try:
            with unchanged(network, mode, mode.guard, self._training), functions, values:
                call_model(network.model, given)
        except InputError as error:
            report.failed = True
            report.failed_in = modules_that_raised(error.__cause__ or error, network.modules)
        return report

    @surely_closed
    def _changed(self, attributes: Sequence[tuple[HeldSize, int | list[int]]]) -> Iterator[None]:
        places = [(self._network.modules[size.module], size.attribute) for size, _ in attributes]
        values = [getattr(module, attribute) for module, attribute in places]

        def restore() -> None:
            for (module, attribute), value in zip(places, values, strict=True):
                setattr(module, attribute, value)

        with put_back_by(restore):
            for (module, attribute), value, (_, numbers) in zip(places, values, attributes, strict=True):
                setattr(module, attribute, in_type_of(value, numbers))
            yield


def goes_same_way(left: RunReport, right: RunReport) -> bool:
    """Whether two runs called the same operators, but for those that move no channel."""
    ways = [[operator for operator in report.operators if not only_lays_out(operator)] for report in (left, right)]
    return ways[0] == ways[1]


def _reshapes(operator: Any) -> bool:
    """Whether it is what a reshape becomes, which depends on the strides."""
    return operator.overloadpacket.__name__ in ("view", "_unsafe_view")


class _CutsAsPlanned(TorchDispatchMode):
    """Makes every cut as planned, and notes what the code asks for.

    Attributes:
        guard: Keeps the parameters that the model's code writes to.
    """

    def __init__(
        self,
        guard: ParameterGuard,
        operators: Sequence[TracedOperator],
        cuts: Sequence[Cut],
        count: CountKept,
        evaluate: Evaluate,
        report: RunReport,
        line_of: int | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.guard, self._operators, self._count, self._evaluate = guard, operators, count, evaluate
        self._report, self._line_of = report, line_of
        self._cuts = {cut.number: (position, cut) for position, cut in enumerate(cuts)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        report, kwargs = self._report, kwargs or {}
        self.guard.before(func, args, kwargs)
        report.operators.append(func)
        if report.is_comparable and not self._is_next(func):  # whether a reshape copies depends on the strides
            if func is _CLONE:
                return self._evaluate(func, args, kwargs)
            report.passed += self._is_next(_CLONE)
        while report.is_comparable and not self._is_next(func):
            position, cut = self._cuts.get(report.passed, (0, None))
            report.is_comparable = cut is not None and cut.operator is _SLICE
            if report.is_comparable:  # a slice of everything that _Functions has not seen
                report.requested[position] = ()
                report.deviating.add(position)
                report.passed += 1
        if report.is_comparable and report.passed == self._line_of:
            report.line = line_of_model_code(call_model.__code__)
        if report.calls is not None:
            report.calls.append((func, _plain(args), _plain([*kwargs.items()])))
        if report.is_comparable and report.other_numbers is None:
            is_same = numbers_in(func, args, kwargs) == self._operators[report.passed].numbers
            report.other_numbers = None if is_same else report.passed
        entry = self._cuts.get(report.passed) if report.is_comparable else None
        result = self._evaluate(func, args, kwargs) if entry is None else self._cut(*entry, args, kwargs)
        report.passed += 1
        return result

    def _is_next(self, func: Any) -> bool:
        number = self._report.passed
        if number >= len(self._operators):
            return False
        expected = self._operators[number].operator
        return expected is func or (_reshapes(expected) and _reshapes(func))

    def _cut(self, position: int, cut: Cut, args: Any, kwargs: Any) -> Any:
        report = self._report
        requested, planned = cut.requested(args), cut.planned(self._count)
        report.requested.setdefault(position, requested)
        if report.calls is not None:
            report.calls[-1] = (cut.operator, planned)
        if requested == planned:
            return self._evaluate(cut.operator, args, kwargs)
        report.deviating.add(position)
        result = cut.make(args, planned)
        if isinstance(self._evaluate, ShapeOnlyRun):
            self._evaluate.note_results(args, result)
        return result

    def replace(self, tensor: Tensor, numbers: Sequence[Any]) -> Tensor | None:
        """Makes the next cut, if there is one, where a function has refused the numbers that the code asks for.

        Args:
            tensor: What is cut.
            numbers: What the code asks for.

        Returns:
            The result; ``None`` where no cut comes next.
        """
        is_copied = self._is_next(_CLONE)  # by a reshape
        position, cut = self._cuts.get(self._report.passed + is_copied, (0, None))
        if cut is None or not self._report.is_comparable or (is_copied and not _reshapes(cut.operator)):
            return None
        result = cut.replacement(tensor, cut.planned(self._count))
        if result is not None:
            self._report.requested[position] = cut.refused(tensor, numbers)
            self._report.deviating.add(position)
        return result

    def index(self, tensor: Tensor, index: Any) -> Any:
        """The index to take of a tensor: a slice of everything reaches no operator, so the planned one is put there."""
        position, cut = self._cuts.get(self._report.passed, (0, None))
        if cut is None or cut.operator is not _SLICE or not self._report.is_comparable:
            return index
        dim, planned = cut.source.dim, cut.planned(self._count)
        assert dim is not None
        if not (isinstance(index, tuple) and dim < len(index) and all(isinstance(item, slice) for item in index)):
            return index
        width = tensor.shape[dim] if dim < tensor.dim() else 0
        if index[dim].indices(width) != (0, width, 1) or planned == ((0, width),):
            return index
        self._report.requested[position] = ((0, width),)
        self._report.deviating.add(position)
        return (*index[:dim], slice(*planned[0]), *index[dim + 1 :])  # type: ignore[misc]


class _Functions(TorchFunctionMode):
    """Makes up for functions that do not reach an operator: those that refuse numbers, and slices of everything."""

    def __init__(self, cuts: _CutsAsPlanned) -> None:
        super().__init__()
        self._cuts = cuts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            args = args[0], self._cuts.index(*args)
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func not in _CHECKED_FIRST:
                raise
            result = self._cuts.replace(args[0], [*args[1:], *(kwargs or {}).values()])
            if result is None:
                raise
            return result


def _plain(value: Any) -> Any:
    """An argument without the values of tensors, comparable."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
