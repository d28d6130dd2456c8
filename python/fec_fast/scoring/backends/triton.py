"""Backend ``triton``: the Triton kernels, queued on torch's current stream without waiting for the device."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import BackendError
from ..formula import Formula
from .layout import check_one_device, evenly_strided, filter_count
from .triton_group import Group
from .triton_launches import groups_of
from .triton_table import Layer, layers_of

OLDEST = (3, 4)
# The lists of weights whose tables are kept.
_KEPT_PLANS = 16


@functools.cache  # it reads the package's metadata from the disk
def installed_version() -> str | None:
    """Returns the version of Triton that is installed; ``None`` if it is not."""
    return version("triton") if importlib.util.find_spec("triton") is not None else None


def installed() -> bool:
    """Tells whether Triton is installed."""
    return installed_version() is not None


def is_too_old() -> bool:
    """Tells whether Triton is a version whose interpreter gives wrong entropies: 3.2 and 3.3, by 0.4 nats."""
    number = installed_version()
    return number is not None and tuple(int(part) for part in number.split(".")[:2]) < OLDEST


def trouble() -> str:
    """Says why the kernels cannot run here; empty if they can."""
    if not installed():
        return "Triton is not installed: pip install triton"
    if is_too_old():
        return f"Triton {installed_version()} computes these kernels wrongly (seen in its interpreter): 3.4 is needed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return ""


def describe() -> str:
    """Describes the device that the kernels run on."""
    return f"Triton {installed_version()} on {torch.cuda.get_device_name(torch.cuda.current_device())}"


@dataclass
class _Plan:
    """What the kernels need for a list of weights.

    Attributes:
        groups: The groups of layers, with their tables on the device.
        starts: For each group the position of its first result, and then that of weights without numbers. All are even,
            so that kernels find results at multiples of 16 bytes.
        sizes: The lengths of the parts of all results: those of weights, and fillings.
        order: For each weight the position of its results among the parts.
        copies: Positions of the weights whose taps have no single stride, and the copies that the table points to.
    """

    groups: list[Group]
    starts: list[int]
    sizes: list[int]
    order: list[int]
    copies: list[tuple[int, Tensor]]


_plans: dict[Any, _Plan] = {}
# Plans that a captured CUDA graph reads: it may be replayed for as long as the process lives.
_captured: dict[int, _Plan] = {}


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
) -> list[Tensor]:
    """Queues the kernels for all weights on torch's current stream, a few launches for all of them.

    The first call for a list of weights makes a table of them on the device and, with a new formula or dtype, compiles
    kernels. Further calls with the same weights, whatever their values are, use no other torch operator than ``empty``
    and views, wait for nothing, and can be captured in a CUDA graph.

    Args:
        weights: Tensors ``[N, C/groups, *kernel]`` of a supported dtype, all on one device. They are read in place, not
            copied, unless their taps have several strides.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, on the weights' device: views of one tensor. All are NaN
        for a weight with a value that is not finite, and for no other weight.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        BackendError: The weights are on different devices, there is no memory, a kernel cannot be compiled or launched,
            or a CUDA graph captures a call that was not made before.
    """
    if not weights:
        return []
    device = weights[0].device
    key = (formula, algorithm, *axes, *groups, *[(w.data_ptr(), w.shape, w.stride(), w.dtype) for w in weights])
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    plan = _plans.get(key)
    if plan is None:
        check_one_device(weights)
        if capturing:
            raise BackendError(
                "a CUDA graph captures Triton's kernels for weights that they were not called for before: call once "
                "with the same weights and formula, then capture"
            )
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            if plan is None:
                even = [evenly_strided(weight.detach()) for weight in weights]
                plan = _made(layers_of(even, formula, axes, groups, algorithm), formula, weights, axes, groups)
                _keep(key, plan)
            if capturing:
                _captured[id(plan)] = plan
            return _launched(plan, weights, device)
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"no room on {device} for what the kernels work in: free some, score fewer layers at a time "
            f"(layers=[...]), or use backend='cpu'"
        ) from error
    except _failures() as error:
        raise BackendError(f"the Triton kernels could not be run on {device}: {error}") from error


def _keep(key: Any, plan: _Plan) -> None:
    """Keeps a plan for later calls, and drops the oldest one if there are too many."""
    _plans[key] = plan
    if len(_plans) > _KEPT_PLANS:
        dropped = _plans.pop(next(iter(_plans)))
        for tensor in (tensor for group in dropped.groups for tensor in group.tensors()):
            if tensor.is_cuda:  # its kernels may still run
                tensor.record_stream(torch.cuda.current_stream())


def _made(
    layers: Sequence[Layer], formula: Formula, weights: Sequence[Tensor], axes: Sequence[int], groups: Sequence[int]
) -> _Plan:
    """Makes the tables for a list of weights.

    They are copied on a stream of their own, and the copies waited for: so every stream can use them at once, and work
    that was queued before is not waited for.
    """
    device = weights[0].device
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            made = groups_of(layers, formula)
        stream.synchronize()
    else:
        made = groups_of(layers, formula)
    copies = [(layer.position, layer.weight) for layer in layers if not _same(weights[layer.position], layer.weight)]
    counts = [filter_count(weight, axis, group) for weight, axis, group in zip(weights, axes, groups, strict=True)]
    starts, sizes, order, filled = list[int](), list[int](), [0] * len(weights), 0
    empty = [i for i, weight in enumerate(weights) if not weight.numel()]
    for positions in [*[[layer.position for layer in group.layers] for group in made], empty]:
        starts.append(filled)
        for position in positions:
            order[position] = len(sizes)
            sizes.append(counts[position])
            filled += counts[position]
        sizes.append(filled % 2)
        filled += filled % 2
    return _Plan(made, starts, sizes, order, copies)


def _same(weight: Tensor, copy: Tensor) -> bool:
    """Tells whether a copy is the weight itself."""
    return weight.data_ptr() == copy.data_ptr() and weight.stride() == copy.stride()


def _launched(plan: _Plan, weights: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Queues the kernels of a plan and returns the results of the weights."""
    if plan.copies:
        with torch.inference_mode():  # the first call may have been in that mode, and made such tensors
            for position, copy in plan.copies:
                copy.copy_(weights[position])
    flat = torch.empty(sum(plan.sizes), dtype=torch.float64, device=device)
    for group, start in zip(plan.groups, plan.starts, strict=False):
        group.launch(flat[start:] if start else flat)
    if plan.starts[-1] < len(flat):
        flat[plan.starts[-1] :].zero_()  # without channels the entropy is 0; the kernels skip such weights
    parts = torch.split(flat, plan.sizes)
    return [parts[place] for place in plan.order]


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions of a kernel that cannot be compiled or launched."""
    from triton.errors import TritonError

    return RuntimeError, TritonError
