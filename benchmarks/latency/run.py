"""Speed-up against multiply-accumulates: 40 networks, dense and pruned, in torch and ONNX Runtime.

Each network gets random weights and one image of 224 pixels, and loses half of its multiply-accumulates (uniformly,
in steps of 8 channels), or the largest of 40, 30, 20 and 10 % that its structure allows. Dense and pruned network are
called in turns in one process, in each runtime on one thread and on all; what is reported is the fastest call of each,
because other programs make calls slower and never faster: on one thread in CPU seconds, which do not count the time
that other programs had the core, on several in seconds of the clock. The runtime's outputs are compared with torch's
before.

    pip install '.[coverage,onnx]' && python -m benchmarks.latency [--only NAME ...] [--anew] [--page-only]
    python -m benchmarks.latency --budgets [--only NAME ...] [--anew]

``--budgets`` searches networks of 70 % of the dense one's latency instead (``Budget.keep(latency=..., runtime=...)``),
and measures afterwards what came out. Networks that have a result are left out, so a run that was stopped goes on.
Writes benchmarks/results/latency.json and docs/latency.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from benchmarks.common.pages import write_page
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.latency.networks import NAMES, SIZES, build
from benchmarks.latency.page import DOUBTED, page
from fec_fast.utils.onnx_model import PARITY, exported, relative_difference
from fec_fast.utils.outputs import named_tensors_in
from fec_fast.utils.runtimes import ONNXRUNTIME, TORCH, onnx_call

RESULT: Path = RESULTS / "latency.json"
SHARES = (0.5, 0.4, 0.3, 0.2, 0.1)
SECONDS, LONGEST = 1.5, 6.0  # per pair of networks: how long at least, and at most while the times are doubted
FEWEST = 10  # calls of each network


def threads_to_try() -> list[int]:
    """One thread, and all that this process may use."""
    return sorted({1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1})


def pruned(model: nn.Module, example: Tensor) -> tuple[fec_fast.PruneResult, float]:
    """The network without the largest of the shares that its structure allows, and the share."""
    for share in SHARES:
        try:
            budget = fec_fast.Budget.remove(macs=share)
            options: dict[str, Any] = {"ratios": "uniform", "criterion": "l1", "recover": None}
            result = fec_fast.prune(model, example, budget=budget, round_to=8, verify=False, **options)
            return result, share
        except fec_fast.BudgetError:
            continue
    raise fec_fast.BudgetError(f"less than {SHARES[-1]:.0%} of the multiply-accumulates can be removed")


def in_turns(calls: list[Callable[[], Any]], threads: int) -> list[dict[str, float]]:
    """Times functions in turns, for longer while the fastest call of one of them stands alone.

    Args:
        calls: The functions.
        threads: How many threads they compute on: the time is that of one thread's processor, or of the clock.

    Returns:
        For each: ``ms``, the fastest call; ``again``, how many times as long the fifth fastest took.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    start = time.perf_counter()
    while True:
        for of_one, call in zip(times, calls, strict=True):
            begin = clock()
            call()
            of_one.append(clock() - begin)
        passed = time.perf_counter() - start
        if len(times[0]) >= FEWEST and passed > SECONDS:
            fastest = [sorted(of_one)[:5] for of_one in times]
            rows = [{"ms": round(1e3 * five[0], 4), "again": round(five[-1] / five[0], 3)} for five in fastest]
            if passed > LONGEST or all(row["again"] <= DOUBTED for row in rows):
                return rows


def measure(name: str) -> dict[str, Any]:
    """The row of a network."""
    torch.manual_seed(0)
    size = SIZES.get(name, 224)
    model, example = build(name), torch.randn(1, 3, size, size)
    result, share = pruned(model, example)
    networks = [model, result.model.eval()]
    row: dict[str, Any] = {
        "macs": [result.before.macs, result.after.macs],
        "parameters": [result.before.parameters, result.after.parameters],
        "asked": share,
        "times": [],
    }
    with torch.no_grad():
        expected = [[t for _, t in named_tensors_in(network(example))] for network in networks]
        contents = [exported(network, example).SerializeToString() for network in networks]
        for threads in threads_to_try():
            torch.set_num_threads(threads)
            calls: dict[str, list[Callable[[], Any]]] = {
                TORCH: [lambda network=network: network(example) for network in networks],  # type: ignore[misc]
                ONNXRUNTIME: [onnx_call(content, example, ONNXRUNTIME) for content in contents],
            }
            differences = [relative_difference(e, call()) for e, call in zip(expected, calls[ONNXRUNTIME], strict=True)]
            if not all(difference <= PARITY for difference in differences):
                raise AssertionError(f"onnxruntime's outputs differ by {differences}")
            for runtime, pair in calls.items():
                dense, small = in_turns(pair, threads)
                row["times"].append({"runtime": runtime, "threads": threads, "dense": dense, "pruned": small})
    return row


def searched(name: str, runtime: str, share: float = 0.7) -> dict[str, Any]:
    """What a latency budget of a share of the dense network's time came to: one thread."""
    from fec_fast.utils.runtimes import deployed
    from fec_fast.utils.timing import time_model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    size = SIZES.get(name, 224)
    model, example = build(name), torch.randn(1, 3, size, size)
    dense_call = deployed(model, example, runtime)
    target = 1e3 * share * time_model(dense_call, example, 0.01, 4.0).seconds
    budget = fec_fast.Budget.keep(latency=f"{target:.6g} ms", runtime=runtime)
    begin = time.perf_counter()
    result = fec_fast.prune(model, example, budget=budget, ratios="uniform", criterion="l1", recover=None)
    seconds = time.perf_counter() - begin
    small_call = deployed(result.model.eval(), example, runtime)
    with torch.no_grad():
        dense, small = in_turns([lambda: dense_call(example), lambda: small_call(example)], 1)
    return {
        "runtime": runtime,
        "target_ms": round(target, 4),
        "seconds": round(seconds, 1),
        "macs": [result.before.macs, result.after.macs],
        "note": result.plan.notes[0],
        "found_ms": float(result.plan.notes[0].partition(": ")[2].partition(" ms")[0]),
        "dense": dense,
        "pruned": small,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these networks alone")
    parser.add_argument("--anew", action="store_true", help="measure networks again that have a result")
    parser.add_argument("--budgets", action="store_true", help="search networks by latency instead")
    parser.add_argument("--runtime", default=ONNXRUNTIME, help="of --budgets; onnxruntime by default")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    result = read_result(RESULT) or {"listed": len(NAMES), "networks": {}, "budgets": {}}
    for name in [] if arguments.page_only else arguments.only or NAMES:
        part, key = ("budgets", f"{name} {arguments.runtime}") if arguments.budgets else ("networks", name)
        if key in result[part] and "error" not in result[part][key] and not arguments.anew:
            continue
        torch.set_num_threads(threads_to_try()[-1])
        run = run_number(result, "torchvision", "timm", "onnxruntime", "onnxscript")
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        try:
            row = searched(name, arguments.runtime) if arguments.budgets else measure(name)
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(key, json.dumps(row), flush=True)
        result[part][key] = row | {"run": run, "load": load}
        write_result(RESULT, result)
        gc.collect()
    write_page("latency.md", page(result))


if __name__ == "__main__":
    main()
