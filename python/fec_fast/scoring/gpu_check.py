"""Cross-check of a GPU's kernels: in the first call of its kind, the CPU computes one layer too.

A compiler or a device that nobody has tried may make kernels wrong without an error. Wrong entropies choose wrong
channels, and nothing would show it. Where the two differ, the float64 reference says which one is wrong: weights that
are much larger than their distances make right kernels differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..utils.errors import BackendError
from . import reference
from .backends import cuda
from .backends.layout import channels_of, filter_count
from .formula import Formula

# A layer is compared if the CPU needs about this many multiply-adds for it, at most: some milliseconds.
MOST_WORK = 1 << 27
# How far the entropies may be apart, in nats: far above rounding, far below what wrong kernels give.
MOST_APART = 1e-3
# How many times the CPU's error a GPU's may be where weights make both large.
MOST_TIMES = 10

_Kind = tuple[str, torch.device, torch.dtype, str, str, str, str, str]
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

    Calls are of one kind if they have the same backend, device, dtype, algorithm, formula but for tau, and instructions
    of tensor cores.

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
        BackendError: They differ by more than :data:`MOST_APART`, and the GPU's are so far from the reference too.
    """
    first = weights[0]
    products = cuda.tensor_cores(first.device.index) if backend == "cuda" else ""
    kind = backend, first.device, first.dtype, algorithm, formula.compress, formula.entropy, formula.axis, products
    if kind in _checked:
        return
    work = {
        i: _work(weight, axes[i], groups[i], formula) for i, weight in enumerate(weights) if weight.dtype == first.dtype
    }
    among = [i for i, needed in work.items() if needed <= MOST_WORK] or [min(work, key=work.__getitem__)]
    chosen = max(among, key=work.__getitem__)
    weight = weights[chosen].detach().cpu()
    on_processor = on_cpu(weight, axes[chosen], groups[chosen])
    if not _apart(results[chosen], on_processor) <= MOST_APART:
        exact = reference.entropy(weight, formula, axis=axes[chosen], groups=groups[chosen])
        apart = _apart(results[chosen], exact)
        if apart <= max(MOST_APART, MOST_TIMES * _apart(on_processor, exact)):
            return  # nothing is said of the kernels by such weights
        dtype = str(first.dtype).removeprefix("torch.")
        raise BackendError(
            f"the kernels of the backend {backend!r} are wrong on {first.device}: for weight {chosen}, "
            f"{list(weight.shape)} {dtype}, their entropies differ from the exact ones by {apart:.2g} nats; use "
            "backend='cpu', and please report it"
        )
    _checked.add(kind)


def _apart(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max()) if len(left) else 0.0


def _work(weight: Tensor, axis: int, groups: int, formula: Formula) -> int:
    """The multiply-adds that comparing all pairs would take."""
    filters, channels = filter_count(weight, axis, groups), channels_of(weight, axis, groups)
    between_channels = weight.numel() * channels
    between_filters = weight.numel() * filters
    return {"channels": between_channels, "filters": between_filters}.get(
        formula.axis, between_channels + between_filters
    )
