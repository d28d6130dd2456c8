"""What scoring costs: our kernels and the other ways to get filter scores on ResNet-50, then a table of networks.

One thread, CPU seconds (time.process_time), medians. Parity with the float64 reference is checked before anything is
timed. Writes a JSON with the machine described.

    python benchmarks/bench_scoring.py [--out benchmarks/results/scoring.json] [--runs 5]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet50

from fec_fast import ops, reference, score_model
from fec_fast.backends import backends, cpu
from fec_fast.formula import Formula
from fec_fast.report import machine

CHANNELS, FILTERS = Formula("rms", axis="channels"), Formula("none", axis="filters")
PARITY = 2e-5  # nats, ours; the largest entropies are about ln 2048 = 7.6
PARITY_PLAIN = 1e-3  # nats, plain torch in float32: the matrix product in cdist cancels
NETWORKS = (
    "vgg16_bn",
    "resnet34",
    "resnet50",
    "resnet152",
    "wide_resnet101_2",
    "densenet201",
    "convnext_base",
    "mobilenet_v3_large",
)
# A plain-torch loop over all of ResNet-50 takes most of a minute: these layers are run, the rest is scaled by pairs.
LOOP_LAYERS = ("layer1.0.conv2", "layer2.1.conv1", "layer3.1.conv3", "layer3.1.conv1")


def cpu_seconds(function: Callable[[], object], runs: int) -> float:
    """The median CPU time of a call, after one that is not counted."""
    function()
    taken = []
    for _ in range(runs):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_extra_mib(function: Callable[[], object]) -> float:
    """How much the process grows while a function runs, sampled every half millisecond (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory used again would not show
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return (peak - before) / 2**20


def loop_entropy(weight: Tensor) -> Tensor:
    """The channel entropies in plain torch as one would first write them: one filter at a time."""
    v = weight.flatten(2).square().mean(-1).sqrt()
    tau = torch.stack([(f[:, None] - f).abs().mean() for f in v]).mean()
    return torch.stack([-torch.exp(-(f[:, None] - f).abs() / tau).mean(-1).log().mean() for f in v])


def cdist_entropy(weight: Tensor) -> Tensor:
    """The entropies between filters in plain torch, on its fastest distance (a matrix product)."""
    flat = weight.flatten(1)
    d = torch.cdist(flat, flat)
    return -torch.exp(-d / d.mean()).mean(-1).log()


def largest_error(weights: dict[str, Tensor], names: list[str], formula: Formula) -> float:
    """The largest difference from the float64 reference on some layers, in nats."""
    chosen = [weights[name] for name in names]
    got = ops.entropies(chosen, formula, axes=[0] * len(chosen), groups=[1] * len(chosen))
    wanted = [reference.entropy(weight, formula) for weight in chosen]
    return max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))


def parity(weights: dict[str, Tensor]) -> dict[str, float]:
    """Errors of everything that is timed; stops the benchmark if one is too large."""
    small = [name for name in LOOP_LAYERS if weights[name].numel() < 1 << 20]
    found = {
        "channels/rms": largest_error(weights, small, CHANNELS),
        "filters/none": largest_error(weights, list(LOOP_LAYERS), FILTERS),
    }
    name = LOOP_LAYERS[0]
    loop = loop_entropy(weights[name]).double() - reference.entropy(weights[name], CHANNELS)
    cdist = cdist_entropy(weights[name]).double() - reference.entropy(weights[name], FILTERS)
    found["plain torch loop"], found["torch.cdist"] = float(loop.abs().max()), float(cdist.abs().max())
    for what, error in found.items():
        if not error < (PARITY_PLAIN if "torch" in what else PARITY):
            sys.exit(f"{what} is {error:.1e} nats from the reference: not timed")
    return found


def pruning_toolkit(model: nn.Module, runs: int) -> dict[str, float | str]:
    """Torch-Pruning's own importances over every convolution's output channels."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"torch-pruning": "not installed"}
    with torch.enable_grad():  # it traces autograd
        graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 64, 64))
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d]))

    def score(importance: Any) -> None:
        for group in groups:
            importance(group)

    return {
        "torch-pruning magnitude": cpu_seconds(lambda: score(tp.importance.GroupMagnitudeImportance(p=2)), runs),
        "torch-pruning FPGM": cpu_seconds(lambda: score(tp.importance.FPGMImportance()), min(runs, 3)),
    }


def best_wall(function: Callable[[], object], runs: int) -> float:
    """The shortest wall time of a call."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def network_row(name: str, runs: int) -> dict[str, float]:
    """One network of the table. CPU milliseconds on one thread, but for the two-thread ratios (best wall times)."""
    model = get_model(name, weights=None).eval()
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    peak = max(peak_extra_mib(lambda f=f: score_model(model, formula=f)) for f in (CHANNELS, FILTERS))  # type: ignore[misc]
    scored = [w for w in weights if w.shape[1] > 1]
    axes, groups = [0] * len(scored), [1] * len(scored)
    row = {"layers": float(len(weights)), "peak extra MiB": peak}
    row["w.sum()"] = 1e3 * cpu_seconds(lambda: [w.sum() for w in weights], 9)
    for compress in ("rms", "absmean", "mean"):
        formula = Formula(compress, axis="channels")  # type: ignore[arg-type]
        row[f"channels/{compress}"] = 1e3 * cpu_seconds(partial(score_model, model, formula=formula), runs)
    kernels = 1e3 * cpu_seconds(lambda: cpu.entropies(scored, CHANNELS, axes=axes, groups=groups), runs)
    row["channels/rms, kernels"] = kernels
    row["overhead a layer, microseconds"] = 1e3 * (row["channels/rms"] - kernels) / len(weights)
    row["filters/none"] = 1e3 * cpu_seconds(partial(score_model, model, formula=FILTERS), runs)
    row["torch.cdist alone"] = 1e3 * cpu_seconds(lambda: [torch.cdist(w.flatten(1), w.flatten(1)) for w in weights], 3)
    row["channels/rms / w.sum()"] = row["channels/rms"] / row["w.sum()"]
    row["channels/rms, kernels / w.sum()"] = kernels / row["w.sum()"]
    row["filters/none / torch.cdist"] = row["filters/none"] / row["torch.cdist alone"]
    for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
        once = best_wall(partial(score_model, model, formula=formula), 3 * runs)
        torch.set_num_threads(2)
        twice = best_wall(partial(score_model, model, formula=formula), 3 * runs)
        torch.set_num_threads(1)
        row[f"{what}, two threads"] = once / twice
    return {key: round(value, 3) for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scoring.json")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = resnet50().eval()  # random weights: no kernel's time depends on the values
    weights = {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    every, ones = list(weights.values()), [1] * len(weights)

    def ours(formula: Formula, axis: int = 0, **choice: Any) -> Callable[[], object]:
        return lambda: cpu.entropies(every, formula, axes=[axis] * len(every), groups=ones, **choice)

    errors = parity(weights)
    memory = {
        "channels/rms": peak_extra_mib(lambda: score_model(model, formula=CHANNELS)),
        "filters/none": peak_extra_mib(lambda: score_model(model, formula=FILTERS)),
    }
    seconds: dict[str, float | str] = {
        "reading all weights (w.sum())": cpu_seconds(lambda: [w.sum() for w in every], 9)
    }
    for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
        seconds[f"score_model {what}"] = cpu_seconds(partial(score_model, model, formula=formula), arguments.runs)
    for name, usable in cpu.instruction_sets().items():
        for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
            key = f"fec_fast {what} on {name}"
            seconds[key] = cpu_seconds(ours(formula, instruction_set=name), arguments.runs) if usable else "not usable"
    for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
        seconds[f"fec_fast {what}, consumers' side"] = cpu_seconds(ours(formula, 1), arguments.runs)
    seconds["fec_fast channels/none"] = cpu_seconds(ours(Formula("none", axis="channels")), arguments.runs)
    seconds["torch.cdist filters/none"] = cpu_seconds(lambda: [cdist_entropy(w) for w in every], arguments.runs)
    loop = cpu_seconds(lambda: [loop_entropy(weights[name]) for name in LOOP_LAYERS], 1)
    pairs = {name: w.shape[0] * w.shape[1] ** 2 for name, w in weights.items()}
    share = sum(pairs[name] for name in LOOP_LAYERS) / sum(pairs.values())
    seconds["plain torch channels/rms, a filter at a time (extrapolated)"] = loop / share
    seconds |= pruning_toolkit(model, arguments.runs)

    networks = {}
    for name in NETWORKS:
        networks[name] = network_row(name, arguments.runs)
        print(name, networks[name], flush=True)

    result = {
        "networks": networks,
        "network": "torchvision resnet50, random weights, float32, 53 convolutions",
        "measure": f"CPU seconds on one thread, median of {arguments.runs}",
        "cpu_seconds": {k: round(v, 5) if isinstance(v, float) else v for k, v in seconds.items()},
        "peak_extra_mib": {k: round(v, 1) for k, v in memory.items()},
        "largest_error_nats": errors,
        "plain_torch_loop": {
            "layers": LOOP_LAYERS,
            "measured_seconds": round(loop, 3),
            "share_of_pairs": round(share, 4),
        },
        "machine": machine() | {"fec_fast cpu": backends()["cpu"].reason},
    }
    for key, value in seconds.items():
        print(f"{key:62} {value:10.4f}" if isinstance(value, float) else f"{key:62} {value:>10}")
    print(f"{'peak extra MiB':62} {memory}\n{'largest error, nats':62} {errors}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    part = arguments.out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(arguments.out)


if __name__ == "__main__":
    main()
