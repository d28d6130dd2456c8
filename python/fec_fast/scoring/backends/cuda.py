"""Backend ``cuda``: the compiled CUDA kernels, queued on torch's current stream without waiting for the device."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...utils.errors import BackendError, FormulaError
from ..formula import Formula
from . import extension
from .layout import Arrangement, Placement, algorithm_for, arranged, check_one_device, evenly_strided, placements_of

# The bytes that the kernels work in, unless a single weight needs more: of a larger model some weights are processed
# after the others, in the same memory.
WORKSPACE = 1 << 30


def compiled() -> Any:
    """Returns the compiled module; ``None`` in a build without CUDA kernels."""
    return getattr(extension.native, "cuda", None)


def trouble() -> str:
    """Says why the kernels cannot run here; empty if they can."""
    module = compiled()
    if module is None:
        reason = getattr(extension.native, "cuda_left_out", "nothing was compiled")
        return f"built without CUDA kernels: {reason}"
    try:
        count = module.device_count()
    except module.Error as error:
        return f"no CUDA driver that this build can use ({error})"
    if count == 0:
        return "no CUDA device"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    current = torch.cuda.current_device()  # the others are not looked at, because that would create a context on each
    if not module.has_code_for(current):
        name = torch.cuda.get_device_name(current)
        return f"the build has no code for {name}: build it again on this machine, or with CUDAARCHS=all"
    return ""


def describe() -> str:
    """Describes the devices that the kernels run on, and the instructions of the current one."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    try:
        products = f"multiplies between filters by {tensor_cores(torch.cuda.current_device())}"
    except BackendError as error:
        products = f"every call is an error: {error}"
    return f"runs on {', '.join(dict.fromkeys(names))}; {products}"


def tensor_cores(device: int | None) -> str:
    """Returns the instructions that multiply between filters: ``"mma"``, or what ``FEC_FAST_TENSOR_CORES`` names.

    Args:
        device: The index of the device; ``None`` for the first one.

    Raises:
        BackendError: The environment variable names others, or the device or the build does not have them.
    """
    named = os.environ.get("FEC_FAST_TENSOR_CORES") or "mma"
    if named == "mma":
        return named
    setting = f"FEC_FAST_TENSOR_CORES={named}"
    if named != "wgmma":
        raise BackendError(f"{setting}: unset it, or one of: mma, wgmma")
    module = compiled()
    try:
        there = _has_wgmma(module, device or 0)
    except module.Error as error:  # no driver, or one that is too old
        raise BackendError(f"{setting}: {error}") from error
    if not there:
        raise BackendError(
            f"{setting}: the device or the build has no wgmma; unset it. It needs a GPU of compute capability 9.0 "
            f"(H100, H200), and kernels that were built for 90 or all-major (CUDAARCHS) by nvcc 12.0 or newer"
        )
    return named


@functools.lru_cache(maxsize=64)
def _has_wgmma(module: Any, device: int) -> bool:
    """Tells whether the build has kernels with wgmma for a device."""
    return bool(module.has_wgmma_for(device))


def stream_of(device: torch.device) -> tuple[int, int]:
    """Returns the index of a device, and the address of torch's current stream on it."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


class _Batch(NamedTuple):
    """Weights that are processed together, with their table of layers.

    Attributes:
        call: The compiled module's ``Call``; it is not changed by a launch.
        workspace_bytes: The size of its workspace; 0 if there is nothing to compute.
        of: The positions of its weights among those of the call.
    """

    call: Any
    workspace_bytes: int
    of: slice


class _Prepared(NamedTuple):
    """A call whose tables of layers are built.

    Attributes:
        batches: Nearly always one.
        arrangement: The places of its results.
    """

    batches: list[_Batch]
    arrangement: Arrangement


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    apart: bool = False,
) -> list[Tensor]:
    """Queues the kernels, as :func:`queue` does.

    Args:
        weights: See :func:`queue`.
        formula: See :func:`queue`.
        axes: See :func:`queue`.
        groups: See :func:`queue`.
        algorithm: See :func:`queue`.
        apart: Whether each result has memory of its own, as torch wants it of an operator. By default they are views of
            one tensor, which is one allocation instead of one per weight.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, on the weights' device.
    """
    if not apart:
        results, sizes = queue(weights, formula, axes=axes, groups=groups, algorithm=algorithm)
        return list(results.split_with_sizes(sizes))
    prepared, kept = _prepared_for(weights, formula, axes, groups, algorithm)
    by_weight = [torch.empty(n, dtype=torch.float64, device=kept[0].device) for n in prepared.arrangement.sizes]
    for i in prepared.arrangement.without_elements:
        by_weight[i].zero_()
    _launch(prepared, kept, [result.data_ptr() for result in by_weight])
    return by_weight


def queue(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
) -> tuple[Tensor, list[int]]:
    """Queues the kernels for all weights on torch's current stream.

    The call waits for nothing, and takes memory from torch's allocator only. So it can be captured in a CUDA graph,
    whose memory pool then owns the workspace. The table of layers is kept for the last few calls with other weights or
    formulas: a call on the same memory builds it no second time.

    Args:
        weights: CUDA tensors ``[N, C/groups, *kernel]`` of a supported dtype, all on one device. They are read in
            place, not copied.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        The entropies of all filters, float64 in nats, on the weights' device, weight after weight; and the number of
        filters of each weight. A weight with a value that is not finite has NaN in its entropies, and no other weight
        has: so the kernels report it without a wait.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        BackendError: The weights are on different devices, there is no memory for the workspace, a launch failed, or
            ``FEC_FAST_TENSOR_CORES`` names what is not there.
    """
    prepared, kept = _prepared_for(weights, formula, axes, groups, algorithm)
    _, sizes, offsets, without_elements = prepared.arrangement
    device = kept[0].device if kept else None
    results = torch.empty(sum(sizes), dtype=torch.float64, device=device)
    for i in without_elements:
        results[offsets[i] // 8 : offsets[i] // 8 + sizes[i]].zero_()
    start = results.data_ptr()
    _launch(prepared, kept, [start + offset for offset in offsets])
    return results, sizes


def _launch(prepared: _Prepared, weights: Sequence[Tensor], results: list[int]) -> None:
    """Launches a prepared call, with the addresses of its results, on the weights it was prepared for."""
    for batch in prepared.batches:
        size = batch.workspace_bytes
        if size == 0:
            continue
        device = weights[0].device
        try:
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"no room on {device} for the {size / 2**20:.0f} MiB that the kernels work in: free some, leave large "
                f"layers out (layers=[...]), or use backend='cpu'"
            ) from error
        number, stream = stream_of(device)
        try:
            batch.call.launch(results[batch.of], workspace.data_ptr(), size, number, stream)
        except compiled().Error as error:
            raise BackendError(f"the CUDA kernels could not be launched on {device}: {error}") from error
        del workspace  # the next batch gets the same memory: the allocator hands it out in the order of the stream


def _prepared_for(
    weights: Sequence[Tensor], formula: Formula, axes: Sequence[int], groups: Sequence[int], algorithm: str
) -> tuple[_Prepared, Sequence[Tensor]]:
    """Prepares a call; returns it with the tensors that it points into, which have to live until it is launched."""
    check_one_device(weights)
    index = weights[0].device.index if weights else None
    choice = (tuple(axes), tuple(groups), formula, algorithm, tensor_cores(index))
    prepared = _prepared(compiled(), placements_of(weights), *choice)
    if prepared is None:
        weights = [evenly_strided(weight.detach()) for weight in weights]
        prepared = _prepared(compiled(), placements_of(weights), *choice)
        assert prepared is not None
    return prepared, weights


# Everything that a prepared call holds follows from these arguments: addresses, not tensors. So memory that was freed
# and is used again, for weights of any shape and dtype, cannot be taken for what it was before.
@functools.lru_cache(maxsize=8)
def _prepared(
    module: Any,
    placements: tuple[Any, ...],
    axes: tuple[int, ...],
    groups: tuple[int, ...],
    formula: Formula,
    algorithm: str,
    products: str,
) -> _Prepared | None:
    """Prepares a call for weights at these places; ``None`` if the taps of a weight have no common stride."""
    weights = [Placement(*placement) for placement in placements]
    algorithms = [
        algorithm_for(algorithm, formula, weight, axis, group, index=i, distance=False)
        for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True))
    ]
    arrangement = arranged(weights, axes, groups, algorithms)
    if arrangement is None:
        return None
    try:
        return _Prepared(_batches(module, arrangement.rows, formula, products, 0), arrangement)
    except ValueError as error:
        raise FormulaError(f"the CUDA kernels cannot do this: {error}") from error


def _batches(module: Any, rows: list[Any], formula: Formula, products: str, first: int) -> list[_Batch]:
    """Divides weights in halves until each batch works in :data:`WORKSPACE` or is a single weight.

    Args:
        module: The compiled module.
        rows: How the weights lie in memory.
        formula: The formula of the entropy.
        products: The instructions that multiply between filters.
        first: The position of the first of them in the call.
    """
    call = module.Call(
        rows,
        compress=formula.compress,
        entropy=formula.entropy,
        axis=formula.axis,
        tau=formula.tau or 0.0,
        tau_scale=formula.tau_scale,
        tensor_cores=products,
    )
    size, half = call.workspace_bytes(), len(rows) // 2
    if size <= WORKSPACE or half == 0:
        return [_Batch(call, size, slice(first, first + len(rows)))]
    halves = ((rows[:half], first), (rows[half:], first + half))
    return [batch for part, begin in halves for batch in _batches(module, part, formula, products, begin)]
