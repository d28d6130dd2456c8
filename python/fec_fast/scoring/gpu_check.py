"""Cross-check of a GPU's kernels: in the first call of its kind, the CPU computes one layer too.

A compiler or a device that nobody has tried may make kernels wrong without an error. Wrong entropies choose wrong
channels, and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..utils.errors import BackendError
from .backends.layout import channels_of, filter_count
from .formula import Formula

# A layer is compared if the CPU needs about this many multiply-adds for it, at most: some milliseconds.
MOST_WORK = 1 << 27
# How far the entropies may be apart, in nats: far above rounding, far below what wrong kernels give.
MOST_APART = 1e-3

_Kind = tuple[str, torch.device, torch.dtype, str, str, str, str]
_checked: set[_Kind] = set()


def cross_check(
    weights: Sequence[Tensor],
    results: Sequence[Tensor],
    formula: Formula,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str,
    backend: str,
    on_cpu: Callable[[Tensor, int, int], Tensor],
) -> None:
    """Compares one layer with the CPU's kernels, unless a call of this kind was compared before in this process.

    Calls are of one kind if they have the same backend, device, dtype, algorithm and formula, but for tau. The distance
    entropy is left out: where channels are nearly equal it is ill-conditioned, and right kernels differ.

    Args:
        weights: The weights on the device, finite.
        results: Their entropies, float64 ``[filters]`` each.
        formula: What was computed.
        axes: The axis of each weight that its filters lie on.
        groups: The groups of each weight's layer.
        algorithm: As it was asked for.
        backend: The name of the GPU's backend.
        on_cpu: Computes the entropies of one weight on the CPU, given its axis and groups.

    Raises:
        BackendError: They differ by more than :data:`MOST_APART`.
    """
    if formula.entropy == "distance":
        return
    first = weights[0]
    kind = backend, first.device, first.dtype, algorithm, formula.compress, formula.entropy, formula.axis
    if kind in _checked:
        return
    work = {
        i: _work(weight, axes[i], groups[i], formula) for i, weight in enumerate(weights) if weight.dtype == first.dtype
    }
    among = [i for i, needed in work.items() if needed <= MOST_WORK] or [min(work, key=work.__getitem__)]
    chosen = max(among, key=work.__getitem__)
    wanted = on_cpu(weights[chosen].detach().cpu(), axes[chosen], groups[chosen])
    apart = float((results[chosen] - wanted).abs().max()) if len(wanted) else 0.0
    if not apart <= MOST_APART:
        dtype = str(first.dtype).removeprefix("torch.")
        raise BackendError(
            f"the kernels of the backend {backend!r} are wrong on {first.device}: for weight {chosen}, "
            f"{list(weights[chosen].shape)} {dtype}, their entropies differ from the CPU's by {apart:.2g} nats; use "
            "backend='cpu', and please report it"
        )
    _checked.add(kind)


def _work(weight: Tensor, axis: int, groups: int, formula: Formula) -> int:
    """The multiply-adds that comparing all pairs would take."""
    filters, channels = filter_count(weight, axis, groups), channels_of(weight, axis, groups)
    between_channels = weight.numel() * channels
    between_filters = weight.numel() * filters
    return {"channels": between_channels, "filters": between_filters}.get(
        formula.axis, between_channels + between_filters
    )
