"""Checks of labelled batches, before they are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from .errors import InputError
from .forward import call_model, describe, undisturbed
from .modules import device_of


def pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Takes a batch apart.

    Args:
        batch: What a loader yielded.

    Returns:
        Images ``[B, ...]`` and labels ``[B]`` of an integer dtype.

    Raises:
        InputError: It is anything else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if integers and labels.ndim == 1 and images.ndim > 0 and len(labels) == len(images):
            return images, labels.long()
    raise InputError(f"a batch must be a pair of images [B, ...] and integer labels [B], not {describe(batch)}")


def length(loader: Iterable[Any], name: str) -> int:
    """Counts the batches of a loader.

    Args:
        loader: The loader.
        name: What to call it in messages.

    Returns:
        At least 1.

    Raises:
        InputError: It is empty or has no length.
    """
    try:
        count = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has __len__ and raises here
        count = None
    if count is None:
        raise InputError(f"{name} has no length; the schedule needs to know how many batches an epoch has")
    if count == 0:
        raise InputError(f"{name} is empty (with drop_last=True, a batch larger than the data set leaves nothing)")
    return count


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Makes sure that every label is one of the model's classes.

    Args:
        labels: int64, any shape.
        classes: Number of the model's logits.
        where: Where the labels are, for messages.

    Raises:
        InputError: A label is negative or not below ``classes``.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise InputError(
            f"label {int(labels[wrong][0])} in {where} is not one of the model's {classes} classes (0 to {classes - 1})"
        )


def check_data(model: nn.Module, teacher: nn.Module | None, loader: Iterable[Any]) -> None:
    """Tries one batch on the networks, and looks at all labels if the data set lists them.

    Args:
        model: The network to be trained; left as it is.
        teacher: The network to be imitated, if any; left as it is.
        loader: The training data.

    Raises:
        InputError: A batch is no pair of images and labels, the networks do not return logits ``[B, classes]`` for it,
            or a label is outside the classes.
    """
    images, labels = pair(next(iter(loader)))
    classes = _classes(model, images)
    if teacher is not None and _classes(teacher, images) != classes:
        raise InputError(f"the teacher has {_classes(teacher, images)} classes and the model {classes}")
    check_labels(labels, classes, "the first batch")
    known = _known_labels(getattr(loader, "dataset", None))
    if known is not None:
        check_labels(known, classes, "the training data")


def _classes(model: nn.Module, images: Tensor) -> int:
    with undisturbed(model):
        logits = call_model(model, images.to(device_of(model)))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise InputError(
            f"{type(model).__name__} returns {describe(logits)} for images {list(images.shape)}; only classifiers, "
            "which return logits [B, classes], can be trained here"
        )
    return int(logits.shape[1])


def _known_labels(dataset: Any) -> Tensor | None:
    """The labels that a data set lists without opening its images, if it does."""
    if isinstance(dataset, Subset):
        whole = _known_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    # The attribute of torchvision's data sets; what the loader yields differs from it under a transform.
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        return torch.as_tensor(targets).long()
    except (TypeError, ValueError, RuntimeError):
        return None
