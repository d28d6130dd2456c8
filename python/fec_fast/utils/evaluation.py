"""Accuracy of a classifier on batches of images and labels, whether it is more than chance, and checked metrics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from .arguments import batches_of, check_network
from .batches import check_labels, images_and_labels
from .errors import ArgumentError, InputError
from .forward import call_model, describe_tensors, evaluation_mode
from .modules import check_can_be_changed, device_of
from .public_call import interruptible
from .user_warnings import warn_user

# An accuracy so little above that of guessing is that of a network that has lost what it had learnt.
_ABOVE_CHANCE = 0.02


@interruptible
def evaluate(model: nn.Module, loader: Iterable[Any]) -> float:
    """Measures a classifier's accuracy. Restores the modes of its modules and changes nothing else.

    Args:
        model: Takes images ``[B, ...]`` and returns logits ``[B, classes]``; it is run on the device it is on.
        loader: Yields pairs of images ``[B, ...]`` and integer labels ``[B]``.

    Returns:
        The share of images whose largest logit is the one of their label, in [0, 1].

    Raises:
        InputError: The loader is empty or raises, a batch is not a pair of images and labels, a label is none of the
            model's classes, or the model cannot be run or returns no logits.
        ArgumentError: Not a module, not a loader, or a module that cannot be set to evaluation mode.
        WeightError: The model has a parameter or buffer without values.
    """
    check_network("model", model)
    check_can_be_changed({"": model})
    device = device_of(model)
    right = total = 0
    with evaluation_mode(model):
        for images, labels in map(images_and_labels, batches_of(loader, "loader")):
            logits = call_model(model, images.to(device, copy=True))  # a model may write to its input
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
                raise InputError(
                    f"model: {type(model).__name__} returns {describe_tensors(logits)}, not logits [B, classes]: give "
                    "a classifier"
                )
            check_labels(labels, logits.shape[1], "the loader")
            right += int((logits.argmax(1) == labels.to(device)).sum())
            total += len(labels)
    if total == 0:
        raise InputError("loader: the loader to evaluate on is empty")
    return right / total


def is_at_chance(accuracy: float, classes: int) -> bool:
    """Whether an accuracy is about that of guessing: at most two points above one in ``classes``.

    Args:
        accuracy: In [0, 1].
        classes: The number of classes, at least 2 for an answer that says anything.

    Returns:
        True or false; false for one class.
    """
    return classes > 1 and accuracy <= 1 / classes + _ABOVE_CHANCE


def warn_if_at_chance(model: nn.Module, inputs: Tensor, accuracy: float, description: str) -> None:
    """Warns if a classifier's accuracy is about that of guessing.

    Args:
        model: The classifier; other models give no warning.
        inputs: What it can be called on, on its device.
        accuracy: In [0, 1].
        description: Which network it is, for the message.
    """
    with evaluation_mode(model):
        logits = call_model(model, inputs)
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
    if is_at_chance(accuracy, classes):
        warn_user(
            f"{description}: the accuracy of {accuracy:.4f} is about that of guessing among {classes} classes. Was too "
            "much removed, or do weights, labels or normalisation not belong together?"
        )


def measured_number(
    function: Callable[[nn.Module], Any], model: nn.Module, subject: str, description: str, advice: str
) -> float:
    """Calls a caller's function of a model, and checks that it returns a finite number.

    Args:
        function: From a model to a number.
        model: The model.
        subject: What the function is, for messages, such as ``"the metric"``.
        description: For which model, such as ``"with nothing removed"``.
        advice: What the caller can do if it raises.

    Returns:
        The number.

    Raises:
        InputError: The function raised an exception, or returned NaN or infinity.
        ArgumentError: It did not return a number.
    """
    try:
        value = function(model)
    except Exception as error:
        raise InputError(f"{subject} raised {type(error).__name__} {description}: {error}; {advice}") from error
    if isinstance(value, Tensor | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{subject} returned a {type(value).__name__} {description}: return a number")
    if not abs(value) <= sys.float_info.max:  # an integer may be beyond the range of float
        raise InputError(f"{subject} returned {value} {description}: return a finite number")
    return float(value)
