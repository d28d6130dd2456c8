"""Tensors as the rows that the compiled kernels take: pointers, sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...utils.errors import BackendError
from ...utils.weights import SCORABLE_DTYPES

# The names by which the kernels know the dtypes.
DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in SCORABLE_DTYPES}

# data, dtype, outer, inner, channels, taps, the four strides in elements, out
Row = tuple[int, str, int, int, int, int, int, int, int, int, int]


def check_one_device(weights: Sequence[Tensor]) -> None:
    """Makes sure that one call of a GPU's kernels can read all weights.

    Args:
        weights: The weights.

    Raises:
        BackendError: They are on several devices.
    """
    devices = sorted({str(weight.device) for weight in weights})
    if len(devices) > 1:
        raise BackendError(f"weights on {' and '.join(devices)} in one call of the kernels; move them to one device")


def rows_of(
    weights: Sequence[Tensor], axes: Sequence[int], groups: Sequence[int]
) -> tuple[list[Row], list[Tensor], list[Tensor]]:
    """Lays out a call of the kernels.

    Args:
        weights: ``[N, C/groups, *kernel]`` of a supported dtype, all on one device.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.

    Returns:
        A row a weight; the tensors to write to, float64 ``[filters]`` on the weights' device; and the tensors that
        the rows point into, which have to stay alive until the kernels are queued.
    """
    kept = [evenly_strided(weight.detach()) for weight in weights]
    results = [
        torch.empty(filter_count(weight, axis, group), dtype=torch.float64, device=weight.device)
        for weight, axis, group in zip(kept, axes, groups, strict=True)
    ]
    rows: list[Row] = [
        (weight.data_ptr(), DTYPES[weight.dtype], *filter_layout(weight, axis, group), result.data_ptr())
        for weight, axis, group, result in zip(kept, axes, groups, results, strict=True)
    ]
    return rows, results, kept


def filter_count(weight: Tensor, axis: int, groups: int) -> int:
    """How many filters a weight has on an axis."""
    return weight.shape[0] if axis == 0 else groups * weight.shape[1]


def _tap_stride(weight: Tensor) -> int | None:
    """The distance between the taps of a kernel if they lie evenly apart (contiguous, channels last), else None."""
    sizes = [(size, stride) for size, stride in zip(weight.shape[2:], weight.stride()[2:], strict=True) if size != 1]
    if not sizes:
        return 1
    for (_, outer), (size, inner) in zip(sizes, sizes[1:], strict=False):
        if outer != size * inner:
            return None
    return sizes[-1][1]


def evenly_strided(weight: Tensor) -> Tensor:
    """The weight itself where its taps lie evenly apart, else a contiguous copy."""
    return weight if _tap_stride(weight) is not None else weight.contiguous()


def filter_layout(weight: Tensor, axis: int, groups: int) -> tuple[int, int, int, int, int, int, int, int]:
    """Outer, inner, channels and taps of the filters, then their strides, in elements."""
    n, c = weight.shape[:2]
    taps = weight.shape[2:].numel()
    tap = _tap_stride(weight)
    assert tap is not None
    s0, s1 = weight.stride()[:2]
    if axis == 0:
        return 1, n, c, taps, 0, s0, s1, tap
    return groups, c, n // groups, taps, n // groups * s0, s1, s0, tap
