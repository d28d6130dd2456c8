"""Timings of scoring whole networks: eight torchvision networks, and ResNet-50 compared with other filter scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet50

from benchmarks.common.measuring import median_cpu_seconds, peak_extra_mib, two_thread_speedup
from benchmarks.common.parity import require_parity
from benchmarks.scoring.plain_torch import channel_entropies, filter_entropies
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
TIMED_FILTERS = 8  # of each shape, for the plain loop: its time is proportional to the number of filters


def convolution_weights(model: nn.Module) -> list[Tensor]:
    """The weights of all two-dimensional convolutions."""
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]


def kernel_call(weights: list[Tensor], formula: Formula, axis: int = 0, **choice: Any) -> Callable[[], object]:
    """A call of the compiled extension, without the Python of ``score_model``.

    Args:
        weights: One weight per layer, [N, C, *kernel].
        formula: The formula of the entropies.
        axis: The axis of the weights that filters are on.
        choice: ``algorithm`` and ``instruction_set`` of the CPU backend.
    """
    scored = [w for w in weights if w.shape[1 - axis] > 1]
    return partial(cpu.entropies, scored, formula, axes=[axis] * len(scored), groups=[1] * len(scored), **choice)


def network_row(name: str, runs: int) -> dict[str, float]:
    """One row of the table: CPU milliseconds on one thread, extra MiB, and the speedup by a second thread."""
    model = get_model(name, weights=None).eval()
    weights = convolution_weights(model)
    row = {"layers": float(len(weights))}
    row["peak extra MiB"] = max(peak_extra_mib(partial(score_model, model, formula=f)) for f in (CHANNELS, FILTERS))
    sides: dict[str, Callable[[], object]] = {"w.sum()": lambda: [w.sum() for w in weights]}
    for compress in ("rms", "absmean", "mean"):
        formula = Formula(compress, axis="channels")  # type: ignore[arg-type]
        sides[f"channels/{compress}"] = partial(score_model, model, formula=formula)
    sides["channels/rms, kernels"] = kernel_call(weights, CHANNELS)
    row |= {side: 1e3 * seconds for side, seconds in median_cpu_seconds(sides, 3 * runs).items()}
    row["overhead a layer, microseconds"] = 1e3 * (row["channels/rms"] - row["channels/rms, kernels"]) / len(weights)
    pair: dict[str, Callable[[], object]] = {
        "filters/none": partial(score_model, model, formula=FILTERS),
        "torch.cdist alone": lambda: [torch.cdist(w.flatten(1), w.flatten(1)) for w in weights],
    }
    row |= {side: 1e3 * seconds for side, seconds in median_cpu_seconds(pair, runs).items()}
    row["channels/rms, two threads"] = two_thread_speedup(partial(score_model, model, formula=CHANNELS))
    row["filters/none, two threads"] = two_thread_speedup(partial(score_model, model, formula=FILTERS))
    return {key: round(value, 3) for key, value in row.items()}


def plain_torch_seconds(weights: list[Tensor], formula: Formula) -> float:
    """CPU seconds of plain torch over a network, from the time of the first few filters of each shape of weight."""
    shapes = Counter(tuple(w.shape) for w in weights)
    total = 0.0
    for shape, count in shapes.items():
        weight = torch.randn(min(TIMED_FILTERS, shape[0]), *shape[1:])
        seconds = median_cpu_seconds({"": partial(channel_entropies, weight, formula)}, 1)[""]
        total += count * seconds * shape[0] / weight.shape[0]
    return total


def torch_pruning_importances(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Calls of Torch-Pruning's importances for the output channels of every convolution."""
    import torch_pruning as tp

    with torch.enable_grad():  # the dependency graph is read from autograd
        graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 64, 64))
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d]))
    importances = {"L2 magnitude": tp.importance.GroupMagnitudeImportance(p=2), "FPGM": tp.importance.FPGMImportance()}

    def score(importance: Any) -> None:
        for group in groups:
            importance(group)

    return {f"Torch-Pruning, {name}": partial(score, importance) for name, importance in importances.items()}


def other_scores(runs: int) -> dict[str, Any]:
    """ResNet-50: CPU seconds of fec_fast and of other filter scores, in turns."""
    model = resnet50().eval()  # random weights: the time of no kernel depends on the values
    weights = convolution_weights(model)
    errors = {
        f"{formula}": max(require_parity(w, formula) for w in (weights[1], weights[2], weights[20]))
        for formula in (CHANNELS, FILTERS)
    }
    sides: dict[str, Callable[[], object]] = {
        "reading the weights once (w.sum())": lambda: [w.sum() for w in weights],
        "score_model, Formula('rms', axis='channels')": partial(score_model, model, formula=CHANNELS),
        "score_model, Formula()": partial(score_model, model, formula=FILTERS),
        "between filters, plain torch (cdist + entropy)": lambda: [filter_entropies(w) for w in weights],
        "Formula('rms', axis='channels'), consumers' side": kernel_call(weights, CHANNELS, 1),
        "Formula(), consumers' side": kernel_call(weights, FILTERS, 1),
    }
    seconds = median_cpu_seconds(sides | torch_pruning_importances(model), runs)
    seconds["channels, plain torch, a filter at a time"] = plain_torch_seconds(weights, CHANNELS)
    sets = {}
    for name, usable in cpu.instruction_sets().items():
        if usable:
            calls = {
                what: kernel_call(weights, f, instruction_set=name)
                for what, f in (("channels/rms", CHANNELS), ("filters/none", FILTERS))
            }
            sets[name] = {what: round(s, 5) for what, s in median_cpu_seconds(calls, runs).items()}
    return {
        "cpu_seconds": {what: round(s, 5) for what, s in seconds.items()},
        "kernels_by_instruction_set": sets,
        "largest_error_nats": errors,
    }


def formulas(runs: int) -> dict[str, dict[str, float]]:
    """ResNet-50, every formula on the channel axis: CPU seconds of fec_fast and of plain torch."""
    weights = convolution_weights(resnet50())
    rows = {}
    for compress in ("rms", "none"):
        for entropy in ("similarity", "softmax", "distance"):
            formula = Formula(compress, entropy, "channels")  # type: ignore[arg-type]
            require_parity(weights[2], formula)
            ours = median_cpu_seconds({"": kernel_call(weights, formula)}, runs)[""]
            plain = plain_torch_seconds(weights, formula)
            rows[f"{compress}, {entropy}"] = {"fec_fast": round(ours, 4), "plain torch": round(plain, 2)}
    return rows


def pairwise_kernel(runs: int) -> list[dict[str, float]]:
    """The O(C^2) kernel on 3x3 layers of ResNet-50's widths, ``compress="none"``: nanoseconds per ordered pair."""
    rows = []
    for width in (64, 128, 256, 512):
        weight = torch.randn(width, width, 3, 3)
        for entropy in ("similarity", "softmax", "distance"):
            formula = Formula("none", entropy, "channels")  # type: ignore[arg-type]
            first = weight[:TIMED_FILTERS]
            sides = {"ours": kernel_call([weight], formula), "plain": partial(channel_entropies, first, formula)}
            seconds = median_cpu_seconds(sides, runs)
            pairs = width**2
            ours, plain = 1e9 * seconds["ours"] / (pairs * width), 1e9 * seconds["plain"] / (pairs * TIMED_FILTERS)
            rows.append(
                {"channels": width, "entropy": entropy, "fec_fast": round(ours, 3), "plain torch": round(plain, 2)}
            )
    return rows


def memory(runs: int) -> list[dict[str, Any]]:
    """ResNet-50 in every dtype, contiguous and channels_last: CPU milliseconds and extra MiB, for both axes."""
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for last in (False, True):
            model = resnet50().eval().to(dtype)
            if last:
                model = model.to(memory_format=torch.channels_last)
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "channels_last": last}
            row["weights MiB"] = round(sum(w.numel() * w.element_size() for w in convolution_weights(model)) / 2**20, 1)
            for what, formula in (("channels/rms", CHANNELS), ("filters/none", FILTERS)):
                score = partial(score_model, model, formula=formula)
                row[f"{what} extra MiB"] = round(peak_extra_mib(score), 1)
                row[f"{what} ms"] = round(1e3 * median_cpu_seconds({"": score}, runs)[""], 1)
            rows.append(row)
    return rows
