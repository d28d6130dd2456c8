"""The metric of a sweep: what a network is worth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..pruning.allocation.sensitivity import check_labelled_loader
from ..training.tasks.base import Task
from ..utils.errors import ArgumentError
from ..utils.evaluation import evaluate, measured_number
from ..utils.model_index import ModelIndex

Metric = Callable[[nn.Module], float] | Task


@dataclass(frozen=True)
class SweepMetric:
    """A checked metric.

    Attributes:
        name: Its name.
        function: From a model to a number, higher being better.
        classes: The number of classes if it is the accuracy of a classifier; else ``None``.
        measured_on_recovery: Whether it is measured on the images that networks are recovered on.
    """

    name: str
    function: Callable[[nn.Module], Any]
    classes: int | None = None
    measured_on_recovery: bool = False

    def measure(self, model: nn.Module, description: str) -> float:
        """Measures a model.

        Args:
            model: The model, in evaluation mode.
            description: Which network it is, for messages.

        Returns:
            The number.

        Raises:
            InputError: The metric raised an exception, or returned NaN or infinity.
            ArgumentError: It did not return a number.
        """
        advice = "what was measured before is in results=, if you gave a folder"
        return measured_number(self.function, model, "the metric", f"for {description}", advice)


def checked_metric(
    index: ModelIndex, metric: Metric | None, loader: Any, val_loader: Iterable[Any] | None
) -> SweepMetric:
    """Checks the arguments that say what is measured.

    Args:
        index: The index of the model.
        metric: A function, a task, or ``None`` for accuracy.
        loader: What networks are recovered on.
        val_loader: What the metric is measured on; ``None``: on ``loader``.

    Returns:
        The metric.

    Raises:
        ArgumentError: An argument of the wrong kind, or nothing to measure on.
        InputError: For accuracy, data without labels or with wrong ones.
    """
    is_task = metric is not None and hasattr(metric, "main_metric") and hasattr(metric, "evaluate")
    if metric is not None and not is_task:
        if not callable(metric):
            kind = type(metric).__name__
            raise ArgumentError(f"metric: expected a function from a model to a number or a task, got {kind}")
        if val_loader is not None:
            raise ArgumentError("val_loader= is for accuracy and tasks: a metric that is a function has its own data")
        return SweepMetric(getattr(metric, "__name__", type(metric).__name__), metric)
    data, argument = (loader, "loader") if val_loader is None else (val_loader, "val_loader")
    if data is None or isinstance(data, str) or not isinstance(data, Iterable):
        raise ArgumentError(f"{argument}={data!r}: there is nothing to measure on; give labelled data as val_loader=")
    on_recovery = val_loader is None
    if metric is None:
        accuracy = functools.partial(evaluate, loader=data)
        return SweepMetric("accuracy", accuracy, check_labelled_loader(index, data, argument), on_recovery)
    task: Any = metric

    def main_metric(model: nn.Module) -> Any:
        return task.evaluate(model, data)[task.main_metric]

    classes = check_labelled_loader(index, data, argument) if task.name == "classification" else None
    return SweepMetric(task.main_metric, main_metric, classes, on_recovery)
