"""Trials of operators without a rule: calls on drawn numbers show whether an operator acts within each channel.

Surgery needs one property of an operator: on operands without some channels, it returns its result without some
channels, and all else is the same. So this is what is tried, on several draws, each without other channels, where the
channels that go hold small, large, equal or zero numbers. What does not pass is not understood. What passes is
believed, and the proof of the pruned network covers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.compat import operator_returns, tree_map, without_dispatch_modes, without_function_modes
from ..utils.random_state import restored_randomness
from .label_sets import LabelSets
from .labels import FIXED
from .operator_call import OperatorCall
from .operator_draws import DRAWS, Kinds, drawn, is_mostly_finite, same
from .parameter_guard import written_arguments

_FEWEST_DRAWS = 4  # that the operator must accept; a logarithm, say, does not accept all
_UNITS = 16  # The first draw has all channels, the others as many as this, which takes less time.
_COLLECTIVE = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")  # would wait for other processes
# Operators behind torch's own functions, which check their arguments for them: others may touch any memory.
_INTERNAL = ("_", "native_", "cudnn_", "miopen_", "mkldnn_")
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Axis:
    """The channels of an operand.

    Attributes:
        dim: The dimension that they lie on.
        labels: One label per index of it, ``FIXED`` or positive, int64.
        zero: Whether the operand is zero when masked.
    """

    dim: int
    labels: np.ndarray
    zero: bool


@dataclass(frozen=True, eq=False)
class ResultAxis:
    """The channels of a result.

    Attributes:
        dim: The dimension that they lie on.
        positions: For each index of it a position, see :class:`WithinChannels`; int64.
        zero: Whether the result is zero when masked.
    """

    dim: int
    positions: np.ndarray
    zero: bool


@dataclass(frozen=True, eq=False)
class WithinChannels:
    """An operator that acts within each channel.

    Attributes:
        positions: For each index of the operands' channels, the position that it is removed with; int64. There is
            one vector, because all operands have as many channels.
        firsts: For each position the first such index, int64.
        results: The channels of every result, those of the operands that are written to behind them; ``None`` for one
            that does not depend on the operands with channels.
    """

    positions: np.ndarray
    firsts: np.ndarray
    results: tuple[ResultAxis | None, ...]


def try_operator(call: OperatorCall, axes: Sequence[Axis | None]) -> WithinChannels | str:
    """Tries an operator out, on the CPU and without a trace: nothing of the call changes.

    Args:
        call: The call. Operands without channels are taken as they are in half of the draws; they may hold indices.
        axes: For each operand its channels; ``None`` for one without, which stays as it is when channels go.

    Returns:
        How it acts; or why it is not known to act within each channel, as a clause without a subject.
    """
    tags, namespace = call.operator.tags, call.operator.namespace
    lengths = {len(axis.labels) for axis in axes if axis is not None}
    if not [*call.results, *written_by(call)] or namespace in _COLLECTIVE:
        return "returns no tensor" if namespace not in _COLLECTIVE else "speaks to other processes"
    if torch.Tag.nondeterministic_seeded in tags:
        return "draws random numbers"
    if torch.Tag.dynamic_output_shape in tags:
        return "returns as many elements as the values want"
    if len(lengths) != 1:
        return "takes tensors with different numbers of channels"
    if not all(tensor.layout is torch.strided and not tensor.is_quantized for tensor in call.operands):
        return "takes tensors that are not dense"
    (width,) = lengths
    if _is_internal(call):
        # Sizes and indices that do not fit, which a trial may give them, would end the process.
        if any(axis is None for axis in axes):
            return "takes a tensor without channels as well"
        if width in _numbers_in([*call.args, *call.kwargs.values()]):
            return "takes the number of channels as an argument"
        if any(tensor.dtype in _WHOLE_NUMBERS for tensor in call.operands):
            return "takes whole numbers"
    reason = "cannot be tried"
    with without_dispatch_modes(), without_function_modes(), torch.no_grad(), restored_randomness():
        for double in (True, False):
            for positions in _groupings(call, width):
                try:
                    answer = _Trial(call, axes, positions, double=double).answer()
                except _FailsWholeError:
                    break
                if isinstance(answer, WithinChannels):
                    return answer
                reason = answer if reason == "cannot be tried" else reason
            else:
                return reason
    return reason


def has_no_effect(call: OperatorCall) -> bool:
    """Whether a call of torch's own operator only checks something: it returns nothing and writes to nothing."""
    returns_nothing = operator_returns(call.operator) == 0 and call.operator.namespace == "aten"
    return returns_nothing and not written_arguments(call.operator)


def written_by(call: OperatorCall) -> list[Tensor]:
    """The operands that an operator writes to and does not return."""
    return [
        tensor
        for position, name in written_arguments(call.operator)
        for tensor in [call.args[position] if position < len(call.args) else call.kwargs.get(name)]
        if isinstance(tensor, Tensor) and not any(tensor is result for result in call.results)
    ]


class _FailsWholeError(Exception):
    """The operator fails on the drawn numbers, all channels included."""


def _is_internal(call: OperatorCall) -> bool:
    return call.operator.namespace != "aten" or call.name.startswith(_INTERNAL)


def _numbers_in(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _numbers_in(value)
        elif isinstance(value, int):
            yield value


def _groupings(call: OperatorCall, width: int) -> Iterator[np.ndarray]:
    """The positions to try: every channel for itself, then groups for a result that has fewer channels.

    A group consists of neighbours, or of one channel of each part.
    """
    index = np.arange(width)
    yield index
    sizes = {width // size for result in call.results for size in result.shape if 1 < size < width and not width % size}
    for size in sorted(sizes):
        yield index // size
        yield index % (width // size)


class _Trial:
    """One operator, and one way in which its channels may belong together."""

    def __init__(self, call: OperatorCall, axes: Sequence[Axis | None], positions: np.ndarray, *, double: bool) -> None:
        self._call, self._axes, self._positions, self._double = call, axes, positions, double
        self._operands = range(len(axes))
        self._firsts = np.unique(positions, return_index=True)[1]
        self._units = self._units_of_indices()
        self._smallest = min(size for tensor in call.operands for size in (*tensor.shape, 8) if size > 1)
        self._removable = np.unique(self._units[self._units > FIXED])
        written = {id(tensor) for tensor in written_by(call)}
        written |= {id(tensor) for tensor in call.results}
        self._is_written = [id(tensor) in written for tensor in call.operands]
        self._shapes = [tuple(tensor.shape) for tensor in (*call.results, *written_by(call))]
        # For each result: the dimension of its channels, and what their positions may be; or what it always is.
        self._dims: list[int | None] = []
        self._candidates: list[list[np.ndarray]] = []
        self._constants: list[Tensor | None] = []
        self._zero: list[bool] = []

    def _units_of_indices(self) -> np.ndarray:
        """For each index of the channels a number of what goes with it; ``FIXED`` for one that stays."""
        axes = [axis for axis in self._axes if axis is not None]
        stacked = np.concatenate([[FIXED], *(axis.labels for axis in axes)])
        local = np.unique(stacked, return_inverse=True)[1].reshape(-1)[1:].reshape(len(axes), -1)
        sets = LabelSets()
        sets.new_labels(int(local.max()))
        for labels in local:
            sets.unite(local[0][self._firsts][self._positions], labels, "it meets a fixed width")
        partition = sets.partition()
        return np.where(partition.pinned[local[0]], FIXED, partition.roots[local[0]])

    def answer(self) -> WithinChannels | str:
        if len(self._removable) < 2:
            return "takes channels that all belong together"
        passed = informative = 0
        for number, (kept, removed) in enumerate(DRAWS):
            generator = torch.Generator().manual_seed(number)
            (used, mask), kinds = self._masks(number, generator), Kinds(number, kept, removed)
            try:
                values = [self._value(i, used, mask, kinds, generator) for i in self._operands]
                whole = self._run(values)
            except Exception as error:
                if number == 0:
                    raise _FailsWholeError from error
                continue
            if number == 0 and [tuple(tensor.shape) for tensor in whole] != self._shapes:
                return "returns another shape for other values"
            try:
                narrow = self._run([self._narrowed(i, values[i], mask[used]) for i in self._operands])
            except Exception:
                return "does not accept fewer channels"
            agrees = self._agree(whole, narrow, used, mask, is_masked=kinds.is_masked)
            if not agrees or number == 1:
                again = self._run(values)
                if not all(same(*pair) for pair in zip(whole, again, strict=True)):
                    return "returns something else each time"
            if not agrees:
                return "relates channels to one another"
            passed += 1
            informative += all(not tensor.is_floating_point() or is_mostly_finite(tensor) for tensor in whole)
        if passed < _FEWEST_DRAWS or not informative:
            return "fails on drawn numbers"
        return WithinChannels(self._positions, self._firsts, tuple(self._result_axes()))

    def _result_axes(self) -> Iterator[ResultAxis | None]:
        for dim, candidates, zero in zip(self._dims, self._candidates, self._zero, strict=True):
            yield None if dim is None else ResultAxis(dim, candidates[0], zero)

    def _masks(self, number: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Which indices of the channels are there in a draw, and which of them stay.

        Half of the units stay, or all but one, or a quarter.
        """
        units = self._removable[torch.randperm(len(self._removable), generator=generator).numpy()]
        units = units if number == 0 else units[:_UNITS]
        count = len(units)
        stays = units[: (max(1, count // 2), count - 1, max(1, count // 4))[number % 3]]
        used, mask = (np.isin(self._units, chosen) | (self._units == FIXED) for chosen in (units, stays))
        return used, mask

    def _value(self, i: int, used: np.ndarray, mask: np.ndarray, kinds: Kinds, generator: torch.Generator) -> Tensor:
        """The value of an operand."""
        tensor, axis = self._call.operands[i].detach(), self._axes[i]
        is_number = tensor.is_floating_point() or tensor.is_complex()
        dtype = _doubled(tensor.dtype) if self._double and is_number else tensor.dtype
        shape = list(tensor.shape)
        if axis is None:
            # A run for shapes alone may have left zeros. Internal operators may read any memory at a drawn index.
            is_drawn = kinds.draw % 2 == 1 and not _is_internal(self._call)
            return drawn("normal", shape, dtype, self._smallest, generator) if is_drawn else tensor.cpu().to(dtype)
        if kinds.draw == 0 and not is_number and dtype is not torch.bool:
            return tensor.cpu()
        shape[axis.dim] = int(used.sum())
        value = drawn(kinds.kept, shape, dtype, self._smallest, generator)
        goes = torch.from_numpy(np.flatnonzero(~mask[used]))
        shape[axis.dim] = len(goes)
        kind = "normal" if kinds.is_masked and not axis.zero else kinds.removed
        return value.index_copy_(axis.dim, goes, drawn(kind, shape, dtype, self._smallest, generator))

    def _narrowed(self, i: int, value: Tensor, mask: np.ndarray) -> Tensor:
        axis = self._axes[i]
        return value if axis is None else value.index_select(axis.dim, torch.from_numpy(np.flatnonzero(mask)))

    def _run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The results of the operator, and what it wrote to."""
        given = iter(
            [value.clone() if writes else value for value, writes in zip(values, self._is_written, strict=True)]
        )

        def replaced(leaf: Any) -> Any:
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            return next(given) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(replaced, (self._call.args, dict(self._call.kwargs)))
        operator = self._call.operator
        call = OperatorCall(operator, args, kwargs, operator(*args, **kwargs))
        return [*call.results, *written_by(call)]

    def _agree(
        self, whole: list[Tensor], narrow: list[Tensor], used: np.ndarray, mask: np.ndarray, *, is_masked: bool
    ) -> bool:
        """Whether all results with fewer channels are parts of those with more; narrows what they may be."""
        if len(whole) != len(narrow):
            return False
        there, stays = used[self._firsts], mask[self._firsts]
        for number, (full, small) in enumerate(zip(whole, narrow, strict=True)):
            if full.dim() != small.dim() or full.dtype != small.dtype:
                return False
            dims = [dim for dim in range(full.dim()) if full.shape[dim] != small.shape[dim]]
            if number == len(self._dims):
                if len(dims) > 1:
                    return False
                self._dims.append(dims[0] if dims else None)
                self._candidates.append(self._patterns(full.shape[dims[0]]) if dims else [])
                self._constants.append(None if dims else full)
                self._zero.append(full.is_floating_point() or full.is_complex())
            constant, dim = self._constants[number], self._dims[number]
            if constant is not None or dim is None:
                if dims or constant is None or not (same(constant, full) and same(constant, small)):
                    return False
                continue
            if dims != [dim]:
                return False
            self._candidates[number] = [
                positions
                for positions in self._candidates[number]
                if there[positions].sum() == full.shape[dim]
                and stays[positions].sum() == small.shape[dim]
                and same(_taken(full, dim, stays[positions][there[positions]]), small)
            ]
            if not self._candidates[number]:
                return False
            if is_masked:
                positions = self._candidates[number][0]
                goes = _taken(full, dim, ~stays[positions][there[positions]])
                self._zero[number] &= bool((goes == 0).all())
        return True

    def _patterns(self, size: int) -> list[np.ndarray]:
        """What the positions of a result's channels may be: those of the operand, each or all several times."""
        count = len(self._firsts)
        if size % count:
            return []
        index, times = np.arange(count), size // count
        return [index] if times == 1 else [np.repeat(index, times), np.tile(index, times)]


def _taken(tensor: Tensor, dim: int, mask: np.ndarray) -> Tensor:
    return tensor.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))


def _doubled(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
