"""Checks of batches of images and labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .forward import describe_tensors


def images_and_labels(batch: Any, loader: str | None = None) -> tuple[Tensor, Tensor]:
    """Checks a batch and splits it into images and labels.

    Args:
        batch: A batch of a loader: a pair of images ``[B, ...]`` and labels ``[B]`` of any integer dtype.
        loader: The name of the argument that holds the loader, for the message; ``None`` names none.

    Returns:
        The images as they are, and the labels as int64.

    Raises:
        InputError: The batch does not have this form.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if integers and labels.ndim == 1 and images.ndim > 0 and len(labels) == len(images):
            return images, labels.long()
    where = "a batch" if loader is None else f"a batch of {loader}"
    raise InputError(f"{where} must be a pair of images [B, ...] and integer labels [B], not {describe_tensors(batch)}")


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Checks that every label is one of the model's classes.

    Args:
        labels: int64, any shape.
        classes: Number of the model's logits.
        where: Description of where the labels come from, for error messages.

    Raises:
        InputError: A label is negative or not below ``classes``.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise InputError(
            f"label {int(labels[wrong][0])} in {where} is not one of the model's {classes} classes (0 to {classes - 1})"
        )
