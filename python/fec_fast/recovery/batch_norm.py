"""Batch norm re-estimated after surgery: what its inputs have come to be, by one pass over images, without labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import BatchNormBase
from ..utils.errors import ArgumentError, InputError
from ..utils.forward import call_model, describe, map_tensors, restored_modes
from ..utils.modules import device_of, unwrap


def recalibrate(model: nn.Module, loader: Iterable[Any]) -> None:
    """Re-estimates the means and variances of a model's batch norms, in place.

    Pruning takes terms out of every sum, so that the statistics that were gathered in training no longer fit; without
    re-estimation a network pruned in one step can look far worse than it is. Each statistic becomes the average over
    the batches (by their number of images) of what the batches show. Weights do not change; layers other than batch
    norm (dropout) stay in evaluation mode; modes and momenta are restored. A model without batch norm that keeps
    statistics is left as it is, with a warning.

    Args:
        model: Takes images ``[B, ...]``, or as detectors do a list of images; runs on the device it is on. Wrappers are
            looked through.
        loader: Yields images, or pairs or tuples that begin with images; labels are not looked at. A few thousand
            images are enough. Batches of less than about 32 images give poor variances.

    Raises:
        InputError: The loader is empty, a batch does not begin with images, the model cannot be run on one, or the
            images make a statistic NaN or infinite. The model is as it was.
        ArgumentError: Not a module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    norms = [m for m in model.modules() if isinstance(m, BatchNormBase) and m.track_running_stats]
    if not norms:
        warnings.warn(f"{type(model).__name__} has no batch norm: there is nothing to recalibrate", stacklevel=2)
        return
    momenta = [(norm, norm.momentum) for norm in norms]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    done = False
    try:
        with restored_modes(model):
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
            _average(model, norms, loader)
        done = True
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        if not done:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


def _average(model: nn.Module, norms: list[BatchNormBase], loader: Iterable[Any]) -> None:
    device, seen = device_of(model), 0
    with torch.no_grad():
        for batch in loader:
            images = _images(batch)
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen  # what makes a running average a plain one
            call_model(model, map_tensors(lambda image: image.to(device), images))
    if not seen:
        raise InputError("the loader to recalibrate on is empty")
    for name, module in model.named_modules():
        if module in norms and not all(bool(torch.isfinite(buffer).all()) for buffer in module.buffers()):
            raise InputError(f"the images to recalibrate on make statistics of {name!r} NaN or infinite; look at them")


def _images(batch: Any) -> Tensor | list[Tensor]:
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(images, list) and images and all(isinstance(image, Tensor) and image.ndim == 3 for image in images):
        return images
    if not isinstance(images, Tensor) or images.ndim < 2 or not len(images):
        raise InputError(f"a batch must be images [B, ...], or begin with them, not {describe(batch)}")
    return images
