"""Scoring whole networks: the table of torchvision networks, and ResNet-50 beside other ways to filter scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet50

from benchmarks.common.measuring import (
    checked,
    cpu_seconds,
    peak_extra_mib,
    plain_channel_entropy,
    plain_filter_entropy,
    thread_ratio,
)
from fec_fast import score_model
from fec_fast.scoring.backends import cpu
from fec_fast.scoring.formula import Formula

CHANNELS, FILTERS = Formula("rms", axis="channels"), Formula("none", axis="filters")
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
FEW = 8  # filters of each shape that the plain loop is timed on: it does one filter after another


def convolutions(model: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]


def kernels(weights: list[Tensor], formula: Formula, axis: int = 0, **choice: Any) -> Callable[[], object]:
    """The call of the extension alone, without the Python in front of it."""
    scored = [w for w in weights if w.shape[1 - axis] > 1]
    return partial(cpu.entropies, scored, formula, axes=[axis] * len(scored), groups=[1] * len(scored), **choice)


def network_row(name: str, runs: int) -> dict[str, float]:
    """One network of the table: CPU milliseconds on one thread, extra MiB, and what two threads gain."""
    model = get_model(name, weights=None).eval()
    weights = convolutions(model)
    row = {"layers": float(len(weights))}
    row["peak extra MiB"] = max(peak_extra_mib(partial(score_model, model, formula=f)) for f in (CHANNELS, FILTERS))
    sides: dict[str, Callable[[], object]] = {"w.sum()": lambda: [w.sum() for w in weights]}
    for compress in ("rms", "absmean", "mean"):
        formula = Formula(compress, axis="channels")  # type: ignore[arg-type]
        sides[f"channels/{compress}"] = partial(score_model, model, formula=formula)
    sides["channels/rms, kernels"] = kernels(weights, CHANNELS)
    row |= {side: 1e3 * seconds for side, seconds in cpu_seconds(sides, 3 * runs).items()}
    row["overhead a layer, microseconds"] = 1e3 * (row["channels/rms"] - row["channels/rms, kernels"]) / len(weights)
    pair: dict[str, Callable[[], object]] = {
        "filters/none": partial(score_model, model, formula=FILTERS),
        "torch.cdist alone": lambda: [torch.cdist(w.flatten(1), w.flatten(1)) for w in weights],
    }
    row |= {side: 1e3 * seconds for side, seconds in cpu_seconds(pair, runs).items()}
    row["channels/rms, two threads"] = thread_ratio(partial(score_model, model, formula=CHANNELS))
    row["filters/none, two threads"] = thread_ratio(partial(score_model, model, formula=FILTERS))
    return {key: round(value, 3) for key, value in row.items()}


def plain_seconds(weights: list[Tensor], formula: Formula) -> float:
    """CPU seconds of the plain loop over a network, from the first few filters of every shape of weight in it."""
    shapes = Counter(tuple(w.shape) for w in weights)
    total = 0.0
    for shape, count in shapes.items():
        weight = torch.randn(min(FEW, shape[0]), *shape[1:])
        seconds = cpu_seconds({"": partial(plain_channel_entropy, weight, formula)}, 1)[""]
        total += count * seconds * shape[0] / weight.shape[0]
    return total


def torch_pruning_importances(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Torch-Pruning's own importances over every convolution's output channels."""
    import torch_pruning as tp

    with torch.enable_grad():  # it traces autograd
        graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 64, 64))
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d]))
    importances = {"L2 magnitude": tp.importance.GroupMagnitudeImportance(p=2), "FPGM": tp.importance.FPGMImportance()}

    def score(importance: Any) -> None:
        for group in groups:
            importance(group)

    return {f"Torch-Pruning, {name}": partial(score, importance) for name, importance in importances.items()}


def beside_others(runs: int) -> dict[str, Any]:
    """ResNet-50: CPU seconds on one thread of ours and of the other ways, in turns."""
    model = resnet50().eval()  # random weights: no kernel's time depends on the values
    weights = convolutions(model)
    errors = {
        f"{formula}": max(checked(w, formula) for w in (weights[1], weights[2], weights[20]))
        for formula in (CHANNELS, FILTERS)
    }
    sides: dict[str, Callable[[], object]] = {
        "reading the weights once (w.sum())": lambda: [w.sum() for w in weights],
        "score_model, Formula('rms', axis='channels')": partial(score_model, model, formula=CHANNELS),
        "score_model, Formula()": partial(score_model, model, formula=FILTERS),
        "between filters, plain torch (cdist + entropy)": lambda: [plain_filter_entropy(w) for w in weights],
        "Formula('rms', axis='channels'), consumers' side": kernels(weights, CHANNELS, 1),
        "Formula(), consumers' side": kernels(weights, FILTERS, 1),
    }
    seconds = cpu_seconds(sides | torch_pruning_importances(model), runs)
    seconds["channels, plain torch, a filter at a time"] = plain_seconds(weights, CHANNELS)
    sets = {}
    for name, usable in cpu.instruction_sets().items():
        if usable:
            one = {
                what: kernels(weights, f, instruction_set=name)
                for what, f in (("channels/rms", CHANNELS), ("filters/none", FILTERS))
            }
            sets[name] = {what: round(s, 5) for what, s in cpu_seconds(one, runs).items()}
    return {
        "cpu_seconds": {what: round(s, 5) for what, s in seconds.items()},
        "kernels_by_instruction_set": sets,
        "largest_error_nats": errors,
    }


def formulas(runs: int) -> dict[str, dict[str, float]]:
    """ResNet-50, every formula of the channel axis: CPU seconds of ours and of the plain loop."""
    weights = convolutions(resnet50())
    found = {}
    for compress in ("rms", "none"):
        for entropy in ("similarity", "softmax", "distance"):
            formula = Formula(compress, entropy, "channels")  # type: ignore[arg-type]
            checked(weights[2], formula)
            ours = cpu_seconds({"": kernels(weights, formula)}, runs)[""]
            plain = plain_seconds(weights, formula)
            found[f"{compress}, {entropy}"] = {"fec_fast": round(ours, 4), "plain torch": round(plain, 2)}
    return found


def pairwise_kernel(runs: int) -> list[dict[str, float]]:
    """The O(C^2) kernel alone, on 3x3 layers of ResNet-50's widths with ``compress="none"``: ns an ordered pair."""
    rows = []
    for width in (64, 128, 256, 512):
        weight = torch.randn(width, width, 3, 3)
        for entropy in ("similarity", "softmax", "distance"):
            formula = Formula("none", entropy, "channels")  # type: ignore[arg-type]
            some = weight[:FEW]
            sides = {"ours": kernels([weight], formula), "plain": partial(plain_channel_entropy, some, formula)}
            seconds = cpu_seconds(sides, runs)
            pairs = width**2
            ours, plain = 1e9 * seconds["ours"] / (pairs * width), 1e9 * seconds["plain"] / (pairs * FEW)
            rows.append(
                {"channels": width, "entropy": entropy, "fec_fast": round(ours, 3), "plain torch": round(plain, 2)}
            )
    return rows


def memory(runs: int) -> list[dict[str, Any]]:
    """ResNet-50 in every dtype and in channels_last: CPU milliseconds and extra MiB, for both axes."""
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for last in (False, True):
            model = resnet50().eval().to(dtype)
            if last:
                model = model.to(memory_format=torch.channels_last)
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "channels_last": last}
            row["weights MiB"] = round(sum(w.numel() * w.element_size() for w in convolutions(model)) / 2**20, 1)
            for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
                score = partial(score_model, model, formula=formula)
                row[f"{what} extra MiB"] = round(peak_extra_mib(score), 1)
                row[f"{what} ms"] = round(1e3 * cpu_seconds({"": score}, runs)[""], 1)
            rows.append(row)
    return rows
