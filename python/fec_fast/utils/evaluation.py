"""Accuracy of a classifier on batches of images and labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .batches import images_and_labels
from .errors import InputError
from .forward import evaluation_mode
from .modules import device_of
from .public_call import interruptible


@interruptible
def evaluate(model: nn.Module, loader: Iterable[Any]) -> float:
    """Measures a classifier's accuracy. Restores the modes of its modules and changes nothing else.

    Args:
        model: Takes images ``[B, ...]`` and returns logits ``[B, classes]``; it is run on the device it is on.
        loader: Yields pairs of images ``[B, ...]`` and integer labels ``[B]``.

    Returns:
        The share of images whose largest logit is the one of their label, in [0, 1].

    Raises:
        InputError: The loader is empty, or a batch is not a pair of images and labels.
    """
    device = device_of(model)
    right = total = 0
    with evaluation_mode(model):
        for images, labels in map(images_and_labels, loader):
            images, labels = images.to(device, copy=True), labels.to(device)  # a model may write to its input
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    if total == 0:
        raise InputError("the loader to evaluate on is empty")
    return right / total
