"""Checks of batches of images and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .forward import describe_tensors

# How Hugging Face datasets call images and labels; a loader of theirs gives a dictionary per batch.
_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")


def image_key(batch: Mapping[str, Any]) -> str | None:
    """The key of the images in a batch that is a dictionary.

    Args:
        batch: The batch.

    Returns:
        The key; ``None`` if there is none, or more than one.
    """
    keys = [key for key in _IMAGE_KEYS if key in batch]
    return keys[0] if len(keys) == 1 else None


def pair_of(batch: Any) -> Any:
    """Makes a pair of images and labels of a batch that is a dictionary of them.

    Args:
        batch: A batch of a loader.

    Returns:
        The pair, if the batch is a dictionary of an image and a label, such as ``{"image": ..., "label": ...}``;
        anything else as it is.
    """
    if isinstance(batch, Mapping):
        images = image_key(batch)
        labels = [key for key in _LABEL_KEYS if key in batch]
        if images is not None and len(labels) == 1:
            return batch[images], batch[labels[0]]
    return batch


def _described(batch: Any) -> str:
    """The parts of a batch, for messages: a list of texts in place of labels shall be seen."""
    parts = batch if isinstance(batch, tuple | list) and 1 < len(batch) < 5 else [batch]
    return ", ".join(map(describe_tensors, parts))


def images_and_labels(batch: Any, loader: str | None = None) -> tuple[Tensor, Tensor]:
    """Checks a batch and splits it into images and labels.

    Args:
        batch: A batch of a loader: a pair of images ``[B, ...]`` and labels ``[B]`` of any integer dtype, or a
            dictionary of both (``image`` and ``label``, as loaders of Hugging Face datasets give it).
        loader: The name of the argument that holds the loader, for the message; ``None`` names none.

    Returns:
        The images as they are, and the labels as int64.

    Raises:
        InputError: The batch does not have this form.
    """
    is_record = isinstance(batch, Mapping)
    batch = pair_of(batch)
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if integers and labels.ndim == 1 and images.ndim > 0 and len(labels) == len(images):
            return images, labels.long()
    where = "a batch" if loader is None else f"a batch of {loader}"
    hint = "; fec_fast.data.load(DATASET) makes loaders of dictionaries" if is_record else ""
    raise InputError(f"{where} must be a pair of images [B, ...] and integer labels [B], not {_described(batch)}{hint}")


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
