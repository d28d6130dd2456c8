"""The Python time of a call with the kernels taken out: what the host adds to every scoring, on a CPU or a GPU.

    pip install '.[bench]' && python -m benchmarks.scoring.host [--runs 40]

CPU microseconds on one thread, medians, written to benchmarks/results/host.json: one row per run of the command, so
that several commits stand beside one another. No GPU is needed: the compiled modules are replaced by stand-ins that
compute nothing, and the weights lie in the CPU's memory.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torchvision.models import get_model

from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.scoring.networks import CHANNELS, convolution_weights
from fec_fast import score_model
from fec_fast.scoring import ops
from fec_fast.scoring.backends import cpu, cuda
from fec_fast.scoring.backends.registry import ResolvedBackend

RESULT = RESULTS / "host.json"
NETWORKS = ("resnet50", "resnet152")
CALLS = 10  # per timing


class NoKernels:
    """Stands for a compiled module: takes the arguments of its calls and computes nothing."""

    Error = RuntimeError

    def __init__(self, compiled: Any) -> None:
        self.threads, self.instruction_sets = compiled.threads, compiled.instruction_sets
        self.choice_of_instruction_set = compiled.choice_of_instruction_set

    class Call:
        """A call of the CUDA kernels that launches nothing."""

        def __init__(self, rows: Any, **formula: Any) -> None:
            self.filters = sum(row[3] * row[4] for row in rows)

        def workspace_bytes(self) -> int:
            """Some bytes, so that a workspace is taken."""
            return 1 << 20

        def launch(self, results: Any, *arguments: int) -> None:
            """Sets the results to 0, so that nothing looks like NaN: they lie one after another."""
            if isinstance(results, list):
                ctypes.memset(results[0], 0, 8 * self.filters)

    def entropies(self, rows: Any, results: Any, *arguments: Any, **formula: Any) -> int:
        """Sets the results to 0, as the GPU's stand-in does, with which they are compared; finds all weights finite."""
        ctypes.memset(results[0], 0, 8 * sum(row[3] * row[4] for row in rows))
        return -1


def microseconds(function: Callable[[], object], runs: int) -> float:
    """The median CPU time of a call, after two that are not timed: the second one finds what the first has kept."""
    taken = []
    for _ in range(2):
        function()
    for _ in range(runs):
        start = time.process_time()
        for _ in range(CALLS):
            function()
        taken.append((time.process_time() - start) / CALLS * 1e6)
    return round(statistics.median(taken), 1)


def host_times(network: str, runs: int) -> dict[str, float]:
    """CPU microseconds of the calls on a network's convolutions."""
    model = get_model(network, weights=None)
    weights = convolution_weights(model)
    layout: Any = {"axes": [0] * len(weights), "groups": [1] * len(weights)}
    times = {
        "score_model, the CPU's kernels taken out": microseconds(partial(score_model, model, formula=CHANNELS), runs),
        "cuda.entropies, kernels taken out": microseconds(partial(cuda.entropies, weights, CHANNELS, **layout), runs),
    }
    if hasattr(cuda, "queue"):  # older versions write to one tensor per weight, which the stand-in cannot fill
        backend: Any = ResolvedBackend("cuda", "cuda")
        score = partial(score_model, model, formula=CHANNELS, backend=backend)
        with mock.patch.object(ops, "_check_devices"):  # the weights are on the CPU
            times["score_model, the CUDA kernels taken out"] = microseconds(score, runs)
    return times


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="how often each call is timed, ten calls at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = read_result(RESULT)
    run = run_number(result)
    module: Any = NoKernels(cpu.extension.native)
    with (
        mock.patch.object(cpu.extension, "native", module),
        mock.patch.object(cuda, "compiled", lambda: module),
        mock.patch.object(cuda, "stream_of", lambda device: (0, 0)),
    ):
        times = {network: host_times(network, arguments.runs) for network in NETWORKS}
    rows = [row for row in result.get("rows", []) if row["run"] != run]
    result["rows"] = [*rows, {"run": run} | times]
    write_result(RESULT, result)
    for network in NETWORKS:
        for what, time_taken in result["rows"][-1][network].items():
            print(f"{network}: {what}: {time_taken} us")


if __name__ == "__main__":
    main()
