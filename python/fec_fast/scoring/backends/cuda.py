"""Backend ``cuda``: the compiled CUDA kernels, queued on torch's current stream without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import BackendError, FormulaError
from ..formula import Formula
from . import _native
from .layout import algorithm_for, check_one_device, rows_of


def compiled() -> Any:
    """Returns the compiled module; ``None`` in a build without CUDA kernels."""
    return getattr(_native, "cuda", None)


def trouble() -> str:
    """Says why the kernels cannot run here; empty if they can."""
    module = compiled()
    if module is None:
        return f"built without CUDA kernels: {_native.cuda_left_out}"
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
    """Describes the devices that the kernels run on."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"runs on {', '.join(dict.fromkeys(names))}"


def stream_of(device: torch.device) -> tuple[int, int]:
    """Returns the index of a device, and the address of torch's current stream on it."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
) -> list[Tensor]:
    """Queues the kernels for all weights on torch's current stream.

    The call waits for nothing, and takes memory from torch's allocator only. So it can be captured in a CUDA graph,
    whose memory pool then owns the workspace.

    Args:
        weights: CUDA tensors ``[N, C/groups, *kernel]`` of a supported dtype, all on one device. They are read in
            place, not copied.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, on the weights' device. A weight with a value that is
        not finite has NaN in its entropies, and no other weight has: so the kernels report it without a wait.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        BackendError: The weights are on different devices, there is no memory for the workspace, or a launch failed.
    """
    module = compiled()
    check_one_device(weights)
    algorithms = [
        algorithm_for(algorithm, formula, weight, axis, group, index=i, distance=False)
        for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True))
    ]
    rows, results, kept = rows_of(weights, axes, groups, algorithms)
    for result, weight in zip(results, kept, strict=True):
        if weight.numel() == 0:
            result.zero_()  # without channels the entropy is 0; the kernels skip such a layer
    try:
        call = module.Call(
            rows,
            compress=formula.compress,
            entropy=formula.entropy,
            axis=formula.axis,
            tau=formula.tau or 0.0,
            tau_scale=formula.tau_scale,
        )
        size = call.workspace_bytes()
    except ValueError as error:
        raise FormulaError(f"the CUDA kernels cannot do this: {error}") from error
    if not weights or size == 0:
        return results
    device = weights[0].device
    try:
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"no room on {device} for the {size / 2**20:.0f} MiB that the kernels work in: free some, score fewer "
            f"layers at a time (layers=[...]), or use backend='cpu'"
        ) from error
    number, stream = stream_of(device)
    try:
        call.launch(workspace.data_ptr(), size, number, stream)
    except module.Error as error:
        raise BackendError(f"the CUDA kernels could not be launched on {device}: {error}") from error
    return results
