"""Throughput of Triton's kernels on a GPU: parity first, then eager calls, CUDA graphs and single kernels.

    python -m benchmarks.gpu.triton_throughput [--runs 15]

Compares the entropies of ResNet-50's weights with the float64 reference on the device, then times ResNet-50, ResNet-152
and Wide ResNet-101-2 beside plain torch (addmm, sqrt, exp; and torch.cdist), each also as a CUDA graph. Writes
benchmarks/results/gpu-triton-NAME.json. Nothing is timed if a comparison fails. The CUDA kernels are not needed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.parity import allowed_error
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.gpu.run import describe_gpu, device_name
from benchmarks.gpu.throughput import NETWORKS, milliseconds
from fec_fast.scoring import reference
from fec_fast.scoring.backends import triton
from fec_fast.scoring.formula import Formula

FORMULAS = {"between filters": Formula(), "sorted, rms": Formula("rms", axis="channels")}


def weights_of(name: str) -> list[Tensor]:
    """The weights of the convolutions of a network of torchvision, on the device."""
    from torchvision.models import get_model

    modules = get_model(name, weights=None).modules()
    return [m.weight.detach().cuda() for m in modules if isinstance(m, torch.nn.Conv2d)]


def entropies(weights: Sequence[Tensor], formula: Formula) -> list[Tensor]:
    """The entropies by Triton's kernels, on the device."""
    return triton.entropies(weights, formula, axes=[0] * len(weights), groups=[1] * len(weights))


def worst_share() -> float:
    """The largest error on ResNet-50's weights, in three dtypes, as a share of the tolerance."""
    worst = 0.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = [weight.to(dtype) for weight in weights_of("resnet50")]
        for formula in FORMULAS.values():
            for weight, got in zip(weights, entropies(weights, formula), strict=True):
                wanted = _wanted(weight, formula)
                worst = max(worst, float((got - wanted).abs().max()) / allowed_error(weight, formula))
    return worst


def _wanted(weight: Tensor, formula: Formula) -> Tensor:
    """The float64 reference; on the channel axis, where it has C x C numbers per filter, in blocks with one tau."""
    if formula.axis == "filters":
        return reference.entropy(weight, formula)
    blocks = weight.split(max(1, (1 << 26) // weight.shape[1] ** 2))
    tau = float(torch.cat([reference.distances(block, formula).mean((1, 2)) for block in blocks]).mean())
    return torch.cat([reference.entropy(block, replace(formula, tau=tau)) for block in blocks])


def captured(function: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of a call; the call is made before, so that kernels and tables are there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()  # what a graph writes to belongs to the graph's own memory

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def host_milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time until a call returns, with an idle device."""
    times = []
    for _ in range(runs + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times[2:]) * 1e3


def kernel_microseconds(function: Callable[[], object]) -> dict[str, float]:
    """The time of each kernel of a call, added up over its launches."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            function()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_time_total > 0]
    return {event.key: round(event.device_time_total / 5, 1) for event in events}


def plain_torch(weights: Sequence[Tensor]) -> list[Tensor]:
    """The entropies between filters by torch's operators, in float32: without care for pairs that are near."""
    results = []
    for weight in weights:
        x = weight.flatten(1)
        squares = x.square().sum(1)
        distances = torch.addmm(squares[:, None] + squares[None, :], x, x.T, alpha=-2).clamp_(min=0).sqrt_()
        results.append(-torch.exp(-distances / distances.mean()).mean(1).log())
    return results


def timed(name: str, runs: int) -> dict[str, Any]:
    """Milliseconds of a network by what is computed, and microseconds of each kernel."""
    weights = weights_of(name)
    result: dict[str, Any] = {}
    for what, formula in FORMULAS.items():

        def call(formula: Formula = formula) -> list[Tensor]:
            return entropies(weights, formula)

        call()
        result[what] = {
            "eager": round(milliseconds(call, runs), 4),
            "host": round(host_milliseconds(call, runs), 4),
            "graph": round(milliseconds(captured(call), runs), 4),
            "kernels, us": kernel_microseconds(call),
        }
    for what, function in {
        "addmm, sqrt, exp": lambda: plain_torch(weights),
        "torch.cdist, distances alone": lambda: [torch.cdist(w.flatten(1), w.flatten(1)) for w in weights],
    }.items():
        eager = round(milliseconds(function, runs), 4)
        result[what] = {"eager": eager, "graph": round(milliseconds(captured(function), runs), 4)}
    for what, times in result.items():
        print(f"  {name}: {what}: {times}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="how often each side is timed")
    runs = parser.parse_args().runs
    name = device_name()
    path = RESULTS / f"gpu-triton-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    result = read_result(path) | {"device": name, "gpu": describe_gpu()}
    result["run"] = run_number(result, "triton")
    share = worst_share()
    if not share <= 1:
        sys.exit(f"not timed: the largest error is {share:.2f} times the tolerance")
    result["worst share of the tolerance"] = round(share, 4)
    result["throughput"] = {network: timed(network, runs) for network in NETWORKS}
    write_result(path, result)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
