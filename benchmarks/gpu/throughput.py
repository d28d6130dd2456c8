"""Throughput of the kernels on the device: networks of torchvision, compared with torch and with the memory floor."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import parity
from fec_fast.scoring.backends import cuda, triton
from fec_fast.scoring.backends.registry import backends
from fec_fast.scoring.formula import Formula
from fec_fast.scoring.model_scores import score_model

NETWORKS = ("resnet50", "resnet152", "wide_resnet101_2")
FLOOR = "memory floor: all weights in one tensor, read once (sum)"


def milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time of a call in milliseconds, by CUDA events, after two calls that are not timed."""
    times = []
    for run in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if run >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def throughput(name: str, runs: int) -> dict[str, float]:
    """Milliseconds on the device for the convolutions of a network, by what is computed.

    Args:
        name: The network's name in torchvision.
        runs: How often each side is timed.
    """
    from torchvision.models import get_model

    model = get_model(name, weights=None).to(parity.DEVICE)
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    zeros, ones = [0] * len(weights), [1] * len(weights)
    call: Any = {"axes": zeros, "groups": ones}
    rms, filters = Formula("rms", axis="channels"), Formula()
    points = [w.flatten(2).square().mean(-1).sqrt() for w in weights]
    flat = torch.cat([w.flatten() for w in weights])

    def captured(formula: Formula, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
        queue = partial(cuda.entropies, [w.to(dtype) for w in weights], formula, **call)
        queue()  # loads the kernels: not every driver does during a capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = queue()

        def replay(kept: object = (queue, results)) -> None:  # the graph holds addresses alone
            graph.replay()

        return replay

    @torch.compile(dynamic=True)
    def pairwise(v: Any, tau: Any) -> Any:
        return -torch.exp(-(v[:, :, None] - v[:, None, :]).abs() / tau).mean(-1).log().mean(-1)

    def compiled() -> None:
        for v in points:  # in blocks of at most 64 Mi pairs
            step = max(1, (64 << 20) // v.shape[1] ** 2)
            for first in range(0, len(v), step):
                pairwise(v[first : first + step], 0.01)

    sides: dict[str, Callable[[], object]] = {
        FLOOR: flat.sum,
        "sorted, rms": partial(cuda.entropies, weights, rms, **call),
        "sorted, rms, as a CUDA graph": captured(rms),
        "sorted, rms, float16, as a CUDA graph": captured(rms, torch.float16),
        "sorted, rms, bfloat16, as a CUDA graph": captured(rms, torch.bfloat16),
        "brute force: pairwise, rms": partial(cuda.entropies, weights, rms, algorithm="pairwise", **call),
        "between filters": partial(cuda.entropies, weights, filters, **call),
        "between filters, as a CUDA graph": captured(filters),
        "between filters, float16, as a CUDA graph": captured(filters, torch.float16),
        "between filters, bfloat16, as a CUDA graph": captured(filters, torch.bfloat16),
        "score_model, rms, end to end": partial(score_model, model, formula=rms, backend="cuda"),
        "score_model, between filters, end to end": partial(score_model, model, formula=filters, backend="cuda"),
        "torch.cdist between filters, distances alone": lambda: [
            torch.cdist(w.flatten(1), w.flatten(1)) for w in weights
        ],
    }
    if backends()["triton"].usable:
        sides["Triton: sorted, rms"] = partial(triton.entropies, weights, rms, **call)
        sides["Triton: between filters"] = partial(triton.entropies, weights, filters, **call)
    sides["pairwise, rms, torch.compile (given tau)"] = compiled  # last: the compilation takes long
    times = {}
    for side, function in sides.items():  # printed one by one: a run that hits a time limit leaves its first figures
        times[side] = round(milliseconds(function, runs), 4)
        print(f"  {name}: {side}: {times[side]} ms", file=sys.stderr, flush=True)
    times["sorted, as a CUDA graph, times the memory floor"] = round(
        times["sorted, rms, as a CUDA graph"] / times[FLOOR], 2
    )
    times["channels/s of sorted, G"] = round(sum(p.numel() for p in points) / times["sorted, rms"] / 1e6, 2)
    return times
