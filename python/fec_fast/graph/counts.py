"""Counts and times: parameters, multiply-accumulates and latency of a model, and the machine they were taken on."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..utils.errors import ArgumentError
from ..utils.modules import modules_of
from ..utils.timing import timed_model
from .trace import trace


@dataclass(frozen=True)
class LayerCount:
    """Size of one layer.

    Attributes:
        parameters: Numbers of its own, those of its children not included.
        macs: Multiply-accumulates of its own in one call of the model, those of its children not included.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Size of a model.

    Attributes:
        parameters: Numbers in its parameters; a parameter shared by several layers counts once.
        macs: Multiply-accumulates of one call on the example inputs: half the floating-point operations that torch's
            counter gives (convolutions and matrix products; additions, activations and norms are not counted).
        by_layer: The same by layer, in the order of the model, for layers with either; ``""`` is the model itself.
            They add up to the totals.
    """

    parameters: int
    macs: int
    by_layer: dict[str, LayerCount] = field(default_factory=dict)


def count(model: nn.Module, example_inputs: Any) -> Counts:
    """Counts parameters and multiply-accumulates, in evaluation mode; the model is left as it was.

    Args:
        model: The model.
        example_inputs: What it is called on; a tensor or list is the single argument, a tuple the positional
            arguments, a dictionary the keyword arguments.

    Returns:
        The counts.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    return tally(model, ((cost.layer, cost.macs) for cost in trace(model, example_inputs).costs))


def tally(model: nn.Module, costs: Iterable[tuple[str, int]]) -> Counts:
    """Adds up the costs of a run by layer, beside the parameters.

    Args:
        model: The model.
        costs: For each operator the name of its module and its multiply-accumulates.

    Returns:
        The counts.
    """
    parameters: dict[str, int] = defaultdict(int)
    modules = modules_of(model)
    seen: set[int] = set()
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                parameters[name] += parameter.numel()
    macs: dict[str, int] = defaultdict(int)
    for layer, number in costs:
        macs[layer] += number
    by_layer = {name: LayerCount(parameters[name], macs[name]) for name in modules if parameters[name] or macs[name]}
    return Counts(sum(parameters.values()), sum(macs.values()), by_layer)


def comparison_table(before: Counts, after: Counts) -> str:
    """A table of two counts by layer, with the totals in the last row.

    Args:
        before: The counts of the original.
        after: The counts of the pruned model.

    Returns:
        Lines of text: layer, parameters before and after and their change, MACs before and after and their change.
    """
    nothing = LayerCount(0, 0)
    rows: list[tuple[str, ...]] = [("layer", "parameters", "after", "change", "MACs", "after", "change")]
    for name in dict.fromkeys([*before.by_layer, *after.by_layer]):
        old, new = before.by_layer.get(name, nothing), after.by_layer.get(name, nothing)
        rows.append(_row(name or "(model)", old, new))
    rows.append(
        _row("total", LayerCount(before.parameters, before.macs), LayerCount(after.parameters, after.macs)),
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(name: str, old: LayerCount, new: LayerCount) -> tuple[str, ...]:
    return (
        name,
        f"{old.parameters:,}",
        f"{new.parameters:,}",
        _change(old.parameters, new.parameters),
        f"{old.macs:,}",
        f"{new.macs:,}",
        _change(old.macs, new.macs),
    )


def _change(old: int, new: int) -> str:
    if old == new:
        return "="
    return f"{100 * (new - old) / old:+.1f} %" if old else "new"


def measure_latency(model: nn.Module, example_inputs: Any, min_run_time: float = 1.0) -> float:
    """Measures how long one call takes, in evaluation mode without gradients, with the threads torch is set to.

    Args:
        model: The model; it is left as it was.
        example_inputs: What it is called on, as for :func:`count`.
        min_run_time: How long to measure, in seconds.

    Returns:
        The median, in seconds.

    Raises:
        ArgumentError: min_run_time is not positive.
        InputError: The model cannot be run on the example inputs.
    """
    if not min_run_time > 0:
        raise ArgumentError(f"min_run_time={min_run_time!r}: give a positive number of seconds")
    return timed_model(model, example_inputs, claim=0.0, longest=min_run_time).seconds


@dataclass(frozen=True)
class Latency:
    """How long one call takes before and after pruning.

    Attributes:
        before: Seconds for the original, the median of several calls.
        after: Seconds for the pruned model.
        device: Where both ran: the name of the GPU, or ``"cpu"``.
        threads: Torch's threads on the CPU.
    """

    before: float
    after: float
    device: str
    threads: int

    def __str__(self) -> str:
        """One line, in milliseconds."""
        return (
            f"latency: {1e3 * self.before:.3g} ms before, {1e3 * self.after:.3g} ms after "
            f"({self.before / self.after:.2f} times as fast) on {self.device}, {self.threads} thread(s)"
        )


def compare_latency(original: nn.Module, pruned: nn.Module, example_inputs: Any, min_run_time: float = 1.0) -> Latency:
    """Measures two models one after the other, see :func:`measure_latency`.

    Args:
        original: The model before pruning; left as it was.
        pruned: The model after pruning; left as it was.
        example_inputs: What they are called on, as for :func:`count`; its batch size is the one that is measured.
        min_run_time: How long to measure each, in seconds.

    Returns:
        Both medians and where they were taken.

    Raises:
        ArgumentError: The models lie on different devices, or min_run_time is not positive.
        InputError: A model cannot be run on the example inputs.
    """
    places = [{tensor.device for tensor in [*model.parameters(), *model.buffers()]} for model in (original, pruned)]
    if places[0] != places[1]:
        words = [", ".join(sorted(map(str, place))) for place in places]
        raise ArgumentError(f"original is on {words[0]}, the pruned model on {words[1]}: move them to one device")
    device = ", ".join(
        torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
        for place in sorted(places[0], key=str)
    )
    before = measure_latency(original, example_inputs, min_run_time)
    after = measure_latency(pruned, example_inputs, min_run_time)
    return Latency(before, after, device, torch.get_num_threads())


def machine() -> dict[str, Any]:
    """Describes the machine for a table of measurements.

    Returns:
        Processor, number of cores this process may use, torch's threads, system, and versions.
    """
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux, where platform.processor() says little
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
