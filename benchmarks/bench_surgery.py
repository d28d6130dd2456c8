"""Graph and surgery beside Torch-Pruning: CPU seconds on one thread, both sides of a network in one run.

Ours is ``prune`` with the L1 criterion, from the run that finds the couplings to the pruned copy with its counts and
its trial run, without the proof (which Torch-Pruning has not); theirs is the dependency graph and one step of their
magnitude pruner, on copies made before the clock starts. Ratio 0.5, one image of the size a network is made for, the
better of two runs each. The results go to benchmarks/results/surgery.json and docs/surgery.md.

    python benchmarks/bench_surgery.py [--only NAME ...] [--page-only]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import signal
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from coverage_networks import Network, classifiers
from measuring import RESULTS, peak_extra_mib, write_json
from torch import nn

import fec_fast
from fec_fast.report import machine

RESULT, PAGE = RESULTS / "surgery.json", Path(__file__).parent.parent / "docs" / "surgery.md"
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


def row_of(network: Network) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network.build().eval()
    size = max(network.inputs.shape[-1], 224) if network.name != "vit_h_14" else network.inputs.shape[-1]
    image = torch.randn(1, 3, size, size)
    taken = min(seconds(lambda: ours(model, image)) for _ in range(2))
    # With the smallest image, so that it is the surgery's memory and not that of the activations.
    extra = peak_extra_mib(lambda: ours(model, network.inputs[:1]))
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**20
    row: dict[str, Any] = {"image": size, "fec_fast": round(taken, 3), "memory": round(extra / held, 2)}
    row["model MiB"] = round(held, 1)
    try:
        signal.alarm(PATIENCE)
        rivals = [copy.deepcopy(model) for _ in range(2)]
        row["torch-pruning"] = round(min(seconds(lambda: theirs(rivals.pop(), image)) for _ in range(2)), 3)
    except Exception as error:
        row["torch-pruning"] = f"{type(error).__name__}: {error}".strip(": ")[:120]
    finally:
        signal.alarm(0)
    return row


def page(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    networks, where = result["networks"], result["machine"]
    both = {n: r for n, r in networks.items() if isinstance(r["torch-pruning"], float)}
    times = {n: r["torch-pruning"] / r["fec_fast"] for n, r in both.items()}
    slowest = max(networks, key=lambda n: networks[n]["fec_fast"])
    large = {n: r["memory"] for n, r in networks.items() if r["model MiB"] >= 32}
    hungry = max(large, key=lambda n: large[n])
    lines = [
        "# Graph and surgery, beside Torch-Pruning",
        "",
        "Written by `python benchmarks/bench_surgery.py` (its head says what is timed): CPU seconds on one thread, "
        "`prune` with the L1 criterion beside one step of Torch-Pruning's magnitude pruner, ratio 0.5, one image, "
        "weights random.",
        f"Measured on {where['processor']}, Python {where['python']}, torch {where['torch']}, "
        f"Torch-Pruning {result['torch-pruning']}.",
        "",
        f"- Over the {len(both)} of {len(networks)} networks that Torch-Pruning gets through, `prune` is "
        f"{statistics.median(times.values()):.1f} times as fast in the median, "
        f"{min(times.values()):.1f} times ({min(times, key=times.__getitem__)}) to "
        f"{max(times.values()):.1f} times ({max(times, key=times.__getitem__)}).",
        f"- The slowest is {slowest} with {networks[slowest]['fec_fast']:.2f} s.",
        f"- Of the networks of 32 MiB and more, {hungry} takes the most memory on top of the model: "
        f"{large[hungry]:.2f} times the model, the pruned copy included.",
        "",
        "| network | image | fec_fast, s | Torch-Pruning, s | times as fast | extra memory / model |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in networks.items():
        other = row["torch-pruning"]
        shown = f"{other:.3f} | {times[name]:.1f}" if name in both else f"{other.partition(':')[0]} | -"
        lines.append(f"| {name} | {row['image']} | {row['fec_fast']:.3f} | {shown} | {row['memory']:.2f} |")
    return "\n".join(lines) + "\n"


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
        result |= {"machine": machine(), "torch-pruning": tp.__version__}
        result["networks"] = dict(sorted(result["networks"].items()))
        print(network.name, result["networks"][network.name], flush=True)
        write_json(RESULT, result)
    PAGE.write_text(page(result))


if __name__ == "__main__":
    main()
