"""Accuracy of a classifier on batches of images and labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .arguments import batches_of, check_network
from .batches import check_labels, images_and_labels
from .errors import InputError
from .forward import call_model, describe_tensors, evaluation_mode
from .modules import check_can_be_changed, device_of


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
            logits = call_model(model, images.to(device))
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
