"""Throughput of both backends on networks of torchvision, beside torch's operators and what the memory allows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import parity
from benchmarks.gpu.rows import Row
from benchmarks.gpu.timing import graph_milliseconds, host_milliseconds, kernel_microseconds, milliseconds
from fec_fast.scoring.backends import cuda, triton
from fec_fast.scoring.backends.registry import backends
from fec_fast.scoring.formula import Formula
from fec_fast.scoring.model_scores import score_model

NETWORKS = ("resnet50", "resnet152", "wide_resnet101_2")
SORTED = Formula("rms", axis="channels")
FORMULAS = {"sorted, rms": SORTED, "between filters": Formula()}
DTYPES = {"": torch.float32, ", float16": torch.float16, ", bfloat16": torch.bfloat16}
BACKENDS = {"cuda": "", "triton": "Triton: "}  # and what their rows begin with
_COPIED = 1 << 30  # bytes; far more than any cache holds


class Network:
    """The convolutions of a network, on the device; made when they are first needed.

    Attributes:
        name: The network's name in torchvision.
    """

    def __init__(self, name: str) -> None:
        """Stores the name."""
        self.name = name

    @cached_property
    def model(self) -> torch.nn.Module:
        """The network, with random weights."""
        from torchvision.models import get_model

        return get_model(self.name, weights=None).to(parity.DEVICE)

    @cached_property
    def weights(self) -> list[Tensor]:
        """The weights of its convolutions."""
        return [m.weight.detach() for m in self.model.modules() if isinstance(m, torch.nn.Conv2d)]

    @cached_property
    def flat(self) -> Tensor:
        """All weights in one tensor."""
        return torch.cat([weight.flatten() for weight in self.weights])

    def entropies(
        self, backend: str, formula: Formula, dtype: torch.dtype = torch.float32, **choice: Any
    ) -> Callable[[], list[Tensor]]:
        """A call of a backend's kernels."""
        weights = [weight.to(dtype) for weight in self.weights]
        kernels: Any = cuda.entropies if backend == "cuda" else triton.entropies
        return partial(kernels, weights, formula, axes=[0] * len(weights), groups=[1] * len(weights), **choice)


def usable() -> list[str]:
    """The backends that can run here."""
    return [name for name in BACKENDS if backends()[name].usable]


def throughput_rows(runs: int) -> Iterator[Row]:
    """Milliseconds by network and by what is computed, each eager and as a CUDA graph.

    Args:
        runs: How often each is timed.
    """
    for name in NETWORKS:
        network = Network(name)
        for row, make, measures in sides(network):
            for suffix, measure in measures.items():
                yield Row(name, row + suffix, lambda make=make, measure=measure: measure(make(), runs))


def sides(network: Network) -> Iterator[tuple[str, Callable[[], Callable[[], object]], dict[str, Any]]]:
    """What is timed for a network.

    Args:
        network: The network.

    Yields:
        The name of the row, what makes the function that is timed, and how it is timed, by the suffix of the row.
    """
    both = {"": milliseconds, ", as a CUDA graph": graph_milliseconds}
    yield "memory floor: all weights in one tensor, read once (sum)", lambda: network.flat.sum, both
    yield "all weights in one tensor, copied", lambda: partial(torch.clone, network.flat), both
    for backend in usable():
        for what, formula in FORMULAS.items():
            for suffix, dtype in DTYPES.items():
                timed = both if suffix else both | {", host": host_milliseconds}
                make = partial(network.entropies, backend, formula, dtype)
                yield f"{BACKENDS[backend]}{what}{suffix}", make, timed
            score: Any = partial(score_model, formula=formula, backend=backend)
            end_to_end = f"{BACKENDS[backend]}score_model, {what.removeprefix('sorted, ')}, end to end"
            yield end_to_end, lambda score=score: partial(score, network.model), {"": milliseconds}
        brute = partial(network.entropies, backend, SORTED, algorithm="pairwise")
        yield f"{BACKENDS[backend]}brute force: pairwise, rms", brute, both
    if parity.has_wgmma():
        by_wgmma = {suffix: parity.by_wgmma()(measure) for suffix, measure in both.items()}
        for suffix, dtype in DTYPES.items():
            yield f"between filters, wgmma{suffix}", partial(network.entropies, "cuda", Formula(), dtype), by_wgmma
    yield "torch.cdist between filters, distances alone", lambda: partial(distances, network.weights), both
    yield "addmm, sqrt, exp between filters", lambda: partial(plain_torch, network.weights), both
    yield "addmm, sqrt, exp between filters, torch.compile", lambda: compiled_filters(network.weights), both
    yield "pairwise, rms, torch.compile (given tau)", lambda: compiled_pairs(network.weights), both


def kernel_rows() -> Iterator[Row]:
    """Microseconds of each kernel of a call, by network."""
    for name in NETWORKS:
        network = Network(name)
        for backend in usable():
            for what, formula in FORMULAS.items():
                make = partial(network.entropies, backend, formula)
                yield Row(name, f"{BACKENDS[backend]}{what}", lambda make=make: kernel_microseconds(make()))
        if parity.has_wgmma():
            make = partial(network.entropies, "cuda", Formula())
            measure = parity.by_wgmma()(lambda make=make: kernel_microseconds(make()))
            yield Row(name, "between filters, wgmma", measure)
        plain = "addmm, sqrt, exp between filters"
        yield Row(name, plain, lambda network=network: kernel_microseconds(partial(plain_torch, network.weights)))


def copy_bandwidth(runs: int) -> float:
    """GB/s that a copy of much memory reads and writes together."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device=parity.DEVICE)
    target = torch.empty_like(source)
    return round(2 * source.numel() / milliseconds(lambda: target.copy_(source), runs) / 1e6, 1)


def distances(weights: Sequence[Tensor]) -> list[Tensor]:
    """The distances between filters by ``torch.cdist``, without the entropies."""
    return [torch.cdist(weight.flatten(1), weight.flatten(1)) for weight in weights]


def filters_of(weight: Tensor) -> Tensor:
    """The entropies between the filters of a weight by torch's operators, without care for pairs that are near."""
    x = weight.flatten(1)
    squares = x.square().sum(1)
    found = torch.addmm(squares[:, None] + squares[None, :], x, x.T, alpha=-2).clamp_(min=0).sqrt_()
    return -torch.exp(-found / found.mean()).mean(1).log()


def plain_torch(weights: Sequence[Tensor]) -> list[Tensor]:
    """The entropies between filters by torch's operators, in float32."""
    return [filters_of(weight) for weight in weights]


def pairs_of(points: Tensor, tau: float) -> Tensor:
    """The entropies of one number per channel over all pairs, by torch's operators."""
    return -torch.exp(-(points[:, :, None] - points[:, None, :]).abs() / tau).mean(-1).log().mean(-1)


@functools.cache  # a compilation takes seconds, and serves all networks
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function through torch.compile, for weights of any shape."""
    made: Callable[..., Tensor] = torch.compile(function, dynamic=True)
    return made


def compiled_filters(weights: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """What :func:`plain_torch` computes, through torch.compile."""
    return lambda: [compiled(filters_of)(weight) for weight in weights]


def compiled_pairs(weights: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Entropies of the root mean squares of channels through torch.compile, in blocks of at most 64 Mi pairs."""
    points = [weight.flatten(2).square().mean(-1).sqrt() for weight in weights]
    blocks = [block for v in points for block in v.split(max(1, (64 << 20) // v.shape[1] ** 2))]
    return lambda: [compiled(pairs_of)(block, 0.01) for block in blocks]
