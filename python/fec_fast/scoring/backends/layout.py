"""Arguments of the kernels for one weight: its layout in memory and the algorithm."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...utils.errors import BackendError, FormulaError
from ...utils.weights import SCORABLE_DTYPES
from ..formula import Formula

Algorithm = Literal["sorted", "pairwise"]

# The names by which the kernels know the dtypes.
DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in SCORABLE_DTYPES}

# What the kernels know of one weight. The filters lie on two nested axes (outer, inner), because with groups the
# filters of axis 1 have no single stride; see filter_layout. The fields: pointer to the weight; name of the dtype;
# whether the sorted algorithm is used; sizes of outer, inner, channels and taps; their four strides in elements.
Row = tuple[int, str, bool, int, int, int, int, int, int, int, int]


class Placement(NamedTuple):
    """What the kernels need of a weight, without the tensor: it can be hashed, and keeps no memory alive.

    Attributes:
        pointer: The address of the first element.
        dtype: A supported dtype.
        shape: ``[N, C/groups, *kernel]``.
        strides: In elements, one per dimension.
    """

    pointer: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]

    def stride(self) -> tuple[int, ...]:
        """The strides in elements, as a tensor gives them."""
        return self.strides


def placements_of(weights: Sequence[Tensor]) -> tuple[tuple[int, torch.dtype, torch.Size, tuple[int, ...]], ...]:
    """Describes where weights lie; bare tuples with the fields of :class:`Placement`, which take a third of the time.

    Args:
        weights: Dense tensors.
    """
    return tuple([(weight.data_ptr(), weight.dtype, weight.shape, weight.stride()) for weight in weights])


class Arrangement(NamedTuple):
    """The arguments of one call of the kernels. They follow from placements alone, and so may be kept and used again.

    Attributes:
        rows: One per weight.
        sizes: The number of filters of each weight.
        offsets: The bytes from the first to those of each weight if the float64 results lie one after another.
        without_elements: The positions of the weights without elements: the entropies of their filters are 0.
    """

    rows: list[Row]
    sizes: list[int]
    offsets: list[int]
    without_elements: list[int]


def check_one_device(weights: Sequence[Tensor]) -> None:
    """Checks that the weights of one call of a GPU's kernels are on one device.

    Args:
        weights: Tensors on any devices.

    Raises:
        BackendError: They are on several devices.
    """
    devices = {weight.device for weight in weights}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise BackendError(f"weights on {names} in one call of the kernels; move them to one device")


def algorithm_for(
    requested: str,
    formula: Formula,
    weight: Tensor | Placement,
    axis: int,
    groups: int,
    *,
    index: int = 0,
    distance: bool = True,
    most_channels: int | None = None,
) -> Algorithm:
    """Chooses the algorithm for one weight. No other place decides this: the kernels get the choice.

    Sorting takes O(C log C) instead of O(C^2) per filter. It needs points on a line, so one number per channel, and the
    channel axis: filters are compared as vectors, which have no order.

    Args:
        requested: ``"auto"`` (sorted where possible), ``"sorted"`` or ``"pairwise"``.
        formula: The formula of the entropy.
        weight: ``[N, C/groups, *kernel]``, or its placement.
        axis: The axis of the weight on which its filters lie, 0 or 1.
        groups: The groups of the weight's layer.
        index: The weight's position in the list of weights, for the error.
        distance: Whether the backend's sorted kernels have the distance entropy.
        most_channels: The largest number of channels that they sort. Default: no limit.

    Returns:
        ``"sorted"`` or ``"pairwise"``.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
    """
    needs = {
        "the channel axis": formula.axis == "channels",
        "one number per channel": formula.compress != "none" or weight.shape[2:].numel() == 1,
    }
    if not distance:
        needs["an entropy other than distance"] = formula.entropy != "distance"
    if most_channels is not None:
        needs[f"at most {most_channels} channels"] = channels_of(weight, axis, groups) <= most_channels
    sortable = all(needs.values())
    if requested == "sorted" and not sortable:
        raise FormulaError(
            f"algorithm='sorted' needs {', '.join(needs)}, not {formula} for weight {index} of shape "
            f"{list(weight.shape)}; use 'auto'"
        )
    return "sorted" if sortable and requested != "pairwise" else "pairwise"


def arranged(
    placements: Sequence[Placement],
    axes: Sequence[int],
    groups: Sequence[int],
    algorithms: Sequence[Algorithm],
) -> Arrangement | None:
    """Prepares the arguments of one call of the kernels.

    Args:
        placements: Of the weights, all on one device.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithms: The algorithm for each weight.

    Returns:
        The arguments; ``None`` if the taps of a weight have no common stride. Then the call is arranged again for
        weights that :func:`evenly_strided` returns.
    """
    rows: list[Row] = []
    for weight, axis, group, algorithm in zip(placements, axes, groups, algorithms, strict=True):
        tap = _tap_stride(weight)
        if tap is None:
            return None
        layout = _filter_layout(weight, axis, group, tap)
        rows.append((weight.pointer, DTYPES[weight.dtype], algorithm == "sorted", *layout))
    sizes = [filter_count(*of_weight) for of_weight in zip(placements, axes, groups, strict=True)]
    offsets = [8 * before for before in itertools.accumulate([0, *sizes[:-1]])]
    without_elements = [i for i, weight in enumerate(placements) if weight.shape.numel() == 0]
    return Arrangement(rows, sizes, offsets, without_elements)


def filter_count(weight: Tensor | Placement, axis: int, groups: int) -> int:
    """Counts the filters of a weight; they lie on ``axis``."""
    return weight.shape[0] if axis == 0 else groups * weight.shape[1]


def channels_of(weight: Tensor | Placement, axis: int, groups: int) -> int:
    """Counts the channels of each filter of a weight; the filters lie on ``axis``."""
    return weight.shape[1] if axis == 0 else weight.shape[0] // groups


def _tap_stride(weight: Tensor | Placement) -> int | None:
    """The one stride between the taps of a kernel if there is one (contiguous, channels last), else ``None``."""
    sizes = [(size, stride) for size, stride in zip(weight.shape[2:], weight.stride()[2:], strict=True) if size != 1]
    if not sizes:
        return 1
    # Two axes act as one where a step on the outer one equals a whole run on the inner one.
    for (_, outer), (size, inner) in zip(sizes, sizes[1:], strict=False):
        if outer != size * inner:
            return None
    return sizes[-1][1]


def evenly_strided(weight: Tensor) -> Tensor:
    """Returns the weight itself if its taps have one stride, else a contiguous copy."""
    return weight if _tap_stride(weight) is not None else weight.contiguous()


def filter_layout(weight: Tensor, axis: int, groups: int) -> tuple[int, int, int, int, int, int, int, int]:
    """Describes how the filters of a weight lie in memory.

    Filter ``o * inner + i`` starts at ``o * stride_outer + i * stride_inner``. For axis 0 there is one outer step. For
    axis 1 the outer steps are the groups: the channels of the filters of group ``q`` are the rows
    ``q * N/groups`` and following.

    Args:
        weight: ``[N, C/groups, *kernel]`` with one stride between taps, see :func:`evenly_strided`.
        axis: The axis of the weight on which its filters lie, 0 or 1.
        groups: The groups of the weight's layer.

    Returns:
        The sizes of outer, inner, channels and taps, then their strides in elements, in the same order.
    """
    tap = _tap_stride(weight)
    assert tap is not None
    return _filter_layout(weight, axis, groups, tap)


def _filter_layout(
    weight: Tensor | Placement, axis: int, groups: int, tap: int
) -> tuple[int, int, int, int, int, int, int, int]:
    """The same, with the stride between taps."""
    n, c = weight.shape[:2]
    taps = weight.shape[2:].numel()
    s0, s1 = weight.stride()[:2]
    if axis == 0:
        return 1, n, c, taps, 0, s0, s1, tap
    return groups, c, n // groups, taps, n // groups * s0, s1, s0, tap
