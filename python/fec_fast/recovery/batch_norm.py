"""Batch norm recovery: statistics re-estimated after pruning, from one pass over images without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.arguments import check_network
from ..utils.compat import BatchNormBase
from ..utils.critical_section import put_back_by
from ..utils.errors import InputError
from ..utils.forward import call_model, map_tensors, restored_modes
from ..utils.modules import device_of, unwrap
from ..utils.plain_code import as_written
from ..utils.public_call import interruptible
from ..utils.undo import undone_upon_error
from ..utils.user_warnings import warn_user
from .calibration import count_images, inputs_from, without_single_images


@interruptible
def recalibrate(model: nn.Module, loader: Tensor | Iterable[Any]) -> None:
    """Re-estimates the means and variances of a model's batch norms, in place.

    Pruning takes terms out of every sum, so the statistics that were gathered in training no longer fit. Without
    re-estimation, a network pruned in one step can look far worse than it is. Each statistic becomes its average over
    the batches, weighted by their number of images. Weights do not change. Other layers (dropout) stay in evaluation
    mode. Modes and momenta are restored. A model whose batch norms keep no statistics, or that has none, is left
    unchanged, with a warning.

    Args:
        model: A model that takes images ``[B, ...]`` or, as detectors do, a list of images. It runs on the device it is
            on. Wrappers are looked through.
        loader: A tensor of images ``[N, ...]``; or what yields images, dictionaries of keyword arguments, or pairs or
            tuples that begin with one of these; labels are ignored. A few thousand images are enough. Batches of fewer
            than about 32 images give poor variances; those of one image are joined with their neighbours.

    Raises:
        InputError: The loader is empty, a batch does not begin with images, the model cannot be run on one, or the
            images make a statistic NaN or infinite. The model is unchanged.
        ArgumentError: Not a module, or not a loader.
        WeightError: A parameter or buffer has no values.
    """
    if not reestimate(model, loader):
        kind = type(unwrap(model)).__name__
        warn_user(f"{kind} has no batch norm: there is nothing to recalibrate")


def reestimate(model: nn.Module, loader: Tensor | Iterable[Any]) -> bool:
    """Does what :func:`recalibrate` does, without a warning.

    Args:
        model: See :func:`recalibrate`.
        loader: See :func:`recalibrate`.

    Returns:
        Whether the model has batch norms that keep statistics.

    Raises:
        FecError: As :func:`recalibrate` says.
    """
    model = unwrap(model)
    norms = [m for m in model.modules() if isinstance(m, BatchNormBase) and m.track_running_stats]
    if not norms:
        return False
    check_network("model", model)
    momenta = [(norm, norm.momentum) for norm in norms]

    def restore_momenta() -> None:
        for norm, momentum in momenta:
            norm.momentum = momentum

    with as_written(model), undone_upon_error() as undo, put_back_by(restore_momenta), restored_modes(model):
        for norm in norms:
            for buffer in norm.buffers():
                undo.values(buffer)
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        _average_statistics(model, norms, loader)
    return True


def _average_statistics(model: nn.Module, norms: list[BatchNormBase], loader: Iterable[Any]) -> None:
    """Runs all batches through the model and checks that the statistics are finite."""
    device, images_so_far = device_of(model), 0
    with torch.no_grad():
        for images in without_single_images(inputs_from(loader, model)):
            number = count_images(images)
            images_so_far += number
            # Batch norm computes new = (1 - momentum) * old + momentum * batch. This momentum decreases from batch to
            # batch and makes the result the plain average over all images so far.
            for norm in norms:
                norm.momentum = number / images_so_far
            given = map_tensors(lambda image: image.to(device, copy=True), images)
            call_model(model, given, "the images")
    if not images_so_far:
        raise InputError("the loader to recalibrate on is empty: give one that yields images")
    for name, module in model.named_modules():
        if module in norms and not all(bool(torch.isfinite(buffer).all()) for buffer in module.buffers()):
            raise InputError(
                f"the images to recalibrate on make statistics of {name!r} NaN or infinite: check the images' values"
            )
