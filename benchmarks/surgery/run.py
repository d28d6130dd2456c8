"""Cost of tracing and surgery, compared with Torch-Pruning: CPU seconds on one thread, both sides in one run.

fec_fast: ``prune`` with ``verify=False`` and ``recover=None`` (Torch-Pruning neither proves nor recovers), with the L1
criterion and with the default one, ``"fec_l1"``: the traced run that finds the coupled channels, the scores, the pruned
copy, its counts and its trial run. Torch-Pruning: the dependency graph and one step of its magnitude pruner (L1), on
copies made before the clock starts. Ratio 0.5, one image of the size that a network is made for, random weights. All
are run three times, in turns, and the shortest counts. The table of budgets: ``prune`` of half of the MACs, as it is
called by default and without its recovery.

    pip install '.[bench]' && python -m benchmarks.surgery [--tables NAME ...] [--only NAME ...] [--page-only]

Writes benchmarks/results/surgery.json and docs/surgery.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

import fec_fast
from benchmarks.common.measuring import cpu_seconds, peak_extra_mib
from benchmarks.common.pages import write_page
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.coverage.networks import Network, classifiers
from benchmarks.surgery.budgets import NETWORKS, measure_budgets
from benchmarks.surgery.page import page

RESULT = RESULTS / "surgery.json"
TIME_LIMIT = 90  # seconds for Torch-Pruning, which does not finish on some networks
ROUNDS = 3
TABLES = ("networks", "budgets")
CRITERIA = {"l1": "l1", "default": None}


def prune_with_fec_fast(model: nn.Module, image: torch.Tensor, criterion: str | None = "l1") -> None:
    """Prunes a copy of the model."""
    fec_fast.prune(model, image, ratio=0.5, criterion=criterion, verify=False, recover=None)


def prune_with_torch_pruning(model: nn.Module, image: torch.Tensor) -> None:
    """Prunes the model in place."""
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    pruner = tp.pruner.BasePruner(model, image, importance=importance, pruning_ratio=0.5, ignored_layers=[classifier])
    pruner.step()


def memory(name: str) -> dict[str, float]:
    """The memory of one surgery, measured in a new process: memory that earlier ones left would change it.

    Args:
        name: The network's.

    Returns:
        ``memory`` (peak, divided by the size of the model) and ``model MiB``.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_memory_in_this_process, name).result()


def _memory_in_this_process(name: str) -> dict[str, float]:
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    network = next(network for network in classifiers() if network.name == name)
    model = network.build().eval()
    # The smallest image, so that the memory is that of the surgery and not of the activations.
    extra = peak_extra_mib(lambda: prune_with_fec_fast(model, network.inputs[:1]))
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**20
    return {"memory": round(extra / size, 2), "model MiB": round(size, 1)}


def measure(network: Network) -> dict[str, Any]:
    """The row of one network: CPU seconds of all sides and the memory; the error where Torch-Pruning fails."""
    torch.manual_seed(0)
    model = network.build().eval()
    size = max(network.inputs.shape[-1], 224) if network.name != "vit_h_14" else network.inputs.shape[-1]
    image = torch.randn(1, 3, size, size)
    seconds: dict[str, list[float]] = {name: [] for name in (*CRITERIA, "torch-pruning")}
    failure = ""
    for _ in range(ROUNDS):
        for name, criterion in CRITERIA.items():
            gc.collect()
            seconds[name].append(cpu_seconds(lambda given=criterion: prune_with_fec_fast(model, image, given)))
        if failure:
            continue
        copied = copy.deepcopy(model)
        gc.collect()
        try:
            signal.alarm(TIME_LIMIT)
            seconds["torch-pruning"].append(cpu_seconds(lambda copied=copied: prune_with_torch_pruning(copied, image)))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}".strip(": ")[:120]
        finally:
            signal.alarm(0)
    times: dict[str, Any] = {name: round(min(of_side), 3) for name, of_side in seconds.items() if of_side}
    return {"image": size, **times, **({"torch-pruning": failure} if failure else {}), **memory(network.name)}


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError(f"no end after {TIME_LIMIT} s")


def rows_of(table: str, only: list[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures a table: names and rows of the networks, of those asked for alone if some are."""
    for network in classifiers():
        if only and network.name not in only:
            continue
        if table == "networks":
            yield network.name, measure(network)
        elif network.name in NETWORKS:
            torch.manual_seed(0)
            yield network.name, measure_budgets(network.build().eval())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="measure these tables alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these networks alone")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    signal.signal(signal.SIGALRM, _raise_timeout)
    torch.set_num_threads(1)
    result = read_result(RESULT)
    for table in [] if arguments.page_only else arguments.tables:
        for name, row in rows_of(table, arguments.only):
            row |= {"run": run_number(result, "torchvision", "torch-pruning")}
            result[table] = dict(sorted((result.get(table, {}) | {name: row}).items()))
            print(name, row, flush=True)
            write_result(RESULT, result)
    write_page("surgery.md", page(result))


if __name__ == "__main__":
    main()
