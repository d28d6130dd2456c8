"""The compiled CPU kernels: tensors in, pointers and strides down."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from ..formula import Formula

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def instruction_sets() -> dict[str, bool]:
    """The instruction sets that were built, narrowest first, and whether this processor has them."""
    return dict(_native.instruction_sets())


def forced() -> str:
    """The instruction set that the environment variable ``FEC_FAST_INSTRUCTION_SET`` asks for; empty for none."""
    return os.environ.get("FEC_FAST_INSTRUCTION_SET", "")


def threads() -> str:
    """What runs the kernels on several threads, in words. ``torch.set_num_threads`` says on how many."""
    return str(_native.threads)


def supported(dtype: torch.dtype) -> bool:
    """Whether weights of this dtype can be read."""
    return dtype in _DTYPES


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    instruction_set: str = "",
) -> tuple[list[Tensor], int]:
    """Computes the entropies of all weights in one call of the extension.

    Args:
        weights: CPU tensors ``[N, C/groups, *kernel]`` of a supported dtype, read where they lie.
        formula: What to compute.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.
        instruction_set: One of :func:`instruction_sets`; empty takes the one forced by the environment, else the widest
            usable one.

    Returns:
        A float64 tensor of nats for each weight, and the number of the first weight with a value that is not
        finite, or -1. With such a weight the results mean nothing.

    Raises:
        ValueError: An instruction set that is not usable, or a weight that ``"sorted"`` cannot do.
    """
    kept = [_evenly_strided(weight.detach()) for weight in weights]  # alive until the kernels are done
    results = [_result(weight, axis, group) for weight, axis, group in zip(kept, axes, groups, strict=True)]
    rows = [
        (weight.data_ptr(), _DTYPES[weight.dtype], *_layout(weight, axis, group), result.data_ptr())
        for weight, axis, group, result in zip(kept, axes, groups, results, strict=True)
    ]
    bad = _native.entropies(
        rows,
        compress=formula.compress,
        entropy=formula.entropy,
        axis=formula.axis,
        tau=formula.tau or 0.0,
        tau_scale=formula.tau_scale,
        algorithm=algorithm,
        threads=torch.get_num_threads(),
        instruction_set=instruction_set or forced(),
    )
    return results, bad


def _result(weight: Tensor, axis: int, groups: int) -> Tensor:
    filters = weight.shape[0] if axis == 0 else groups * weight.shape[1]
    return torch.empty(filters, dtype=torch.float64)


def _tap_stride(weight: Tensor) -> int | None:
    """The distance between the taps of a kernel if they lie evenly apart (contiguous, channels last), else None."""
    sizes = [(size, stride) for size, stride in zip(weight.shape[2:], weight.stride()[2:], strict=True) if size != 1]
    if not sizes:
        return 1
    for (_, outer), (size, inner) in zip(sizes, sizes[1:], strict=False):
        if outer != size * inner:
            return None
    return sizes[-1][1]


def _evenly_strided(weight: Tensor) -> Tensor:
    return weight if _tap_stride(weight) is not None else weight.contiguous()


def _layout(weight: Tensor, axis: int, groups: int) -> tuple[int, int, int, int, int, int, int, int]:
    """Outer, inner, channels and taps of the filters, then their strides, in elements."""
    n, c = weight.shape[:2]
    taps = weight.shape[2:].numel()
    tap = _tap_stride(weight)
    assert tap is not None
    s0, s1 = weight.stride()[:2]
    if axis == 0:
        return 1, n, c, taps, 0, s0, s1, tap
    return groups, c, n // groups, taps, n // groups * s0, s1, s0, tap
