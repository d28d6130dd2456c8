"""Accuracy of a classifier on labelled batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from .batches import pair
from .errors import InputError
from .forward import evaluating
from .modules import device_of

if TYPE_CHECKING:
    pass


def evaluate(model: nn.Module, loader: Iterable[Any]) -> float:
    """Measures accuracy. The model's mode is restored and nothing else of it changes.

    Args:
        model: Takes images ``[B, ...]``, returns logits ``[B, classes]``; runs on the device it is on.
        loader: Yields pairs of images and labels int ``[B]``.

    Returns:
        The share of images whose largest logit is the label's, in [0, 1].

    Raises:
        InputError: The loader is empty, or a batch is no such pair.
    """
    device = device_of(model)
    right = total = 0
    with evaluating(model):
        for images, labels in map(pair, loader):
            images, labels = images.to(device), labels.to(device)
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    if total == 0:
        raise InputError("the loader to evaluate on is empty")
    return right / total
