"""Graph and surgery beside Torch-Pruning: CPU seconds on one thread, both sides of a network in one run.

Ours is ``prune`` with the L1 criterion, from the run that finds the couplings to the pruned copy with its counts and
its trial run, without the proof (which Torch-Pruning has not); theirs is the dependency graph and one step of their
magnitude pruner, on copies made before the clock starts. Ratio 0.5, one image of the size a network is made for, the
better of two runs each. The results go to benchmarks/results/surgery.json and docs/surgery.md.

    python -m benchmarks.surgery [--only NAME ...] [--page-only]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

import fec_fast
from benchmarks.common.measuring import RESULTS, peak_extra_mib, write_json
from benchmarks.coverage.networks import Network, classifiers
from benchmarks.surgery.page import page
from fec_fast.utils.machine import describe_machine

RESULT, PAGE = RESULTS / "surgery.json", Path(__file__).parent.parent.parent / "docs" / "surgery.md"
PATIENCE = 180  # seconds for Torch-Pruning: on some networks it does not end


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def ours(model: nn.Module, image: torch.Tensor) -> None:
    fec_fast.prune(model, image, ratio=0.5, criterion="l1", verify=False)


def theirs(model: nn.Module, image: torch.Tensor) -> None:
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    pruner = tp.pruner.BasePruner(model, image, importance=importance, pruning_ratio=0.5, ignored_layers=[last])
    pruner.step()


def memory_of(name: str) -> dict[str, float]:
    """The memory of one surgery, in a process of its own: what others left behind would hide or add some."""
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with fresh:
        return fresh.submit(_memory_here, name).result()


def _memory_here(name: str) -> dict[str, float]:
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    network = next(network for network in classifiers() if network.name == name)
    model = network.build().eval()
    # With the smallest image, so that it is the surgery's memory and not that of the activations.
    extra = peak_extra_mib(lambda: ours(model, network.inputs[:1]))
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**20
    return {"memory": round(extra / held, 2), "model MiB": round(held, 1)}


def row_of(network: Network) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network.build().eval()
    size = max(network.inputs.shape[-1], 224) if network.name != "vit_h_14" else network.inputs.shape[-1]
    image = torch.randn(1, 3, size, size)
    taken = min(seconds(lambda: ours(model, image)) for _ in range(2))
    row: dict[str, Any] = {"image": size, "fec_fast": round(taken, 3), **memory_of(network.name)}
    try:
        signal.alarm(PATIENCE)
        rivals = [copy.deepcopy(model) for _ in range(2)]
        row["torch-pruning"] = round(min(seconds(lambda: theirs(rivals.pop(), image)) for _ in range(2)), 3)
    except Exception as error:
        row["torch-pruning"] = f"{type(error).__name__}: {error}".strip(": ")[:120]
    finally:
        signal.alarm(0)
    return row


def _out_of_patience(*_: Any) -> None:
    raise TimeoutError(f"no end after {PATIENCE} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks alone")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    signal.signal(signal.SIGALRM, _out_of_patience)
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"networks": {}}
    for network in [] if arguments.page_only else classifiers():
        if arguments.only and network.name not in arguments.only:
            continue
        result["networks"][network.name] = row_of(network)
        result |= {"machine": describe_machine(), "torch-pruning": version("torch-pruning")}
        result["networks"] = dict(sorted(result["networks"].items()))
        print(network.name, result["networks"][network.name], flush=True)
        write_json(RESULT, result)
    PAGE.write_text(page(result))


if __name__ == "__main__":
    main()
