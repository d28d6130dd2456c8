"""Which data the steps of ``prune`` get: criterion, policy, recovery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..recovery.calibration import DATA_FREE, calibration_batches, warn_if_few
from ..recovery.compensation import IMAGES
from ..scoring.formula import Formula
from ..utils.errors import ArgumentError
from .allocation.allocate import AllocationRequest
from .arguments import calibration_needs, check_calibration, default_choice, has_batch_norms, images_suffice
from .criteria import DEFAULT_CRITERION, ERROR_CRITERIA, Criterion

AUTO = "auto"
BARE = "recover=None for the bare cut"
REMEDY = f"give images as recover=, or {BARE}"


@dataclass(frozen=True)
class DataUse:
    """What is measured, and on which data.

    Attributes:
        criterion: A name or a callable.
        request: The amounts, with the policy and the data that criterion and policy measure on.
        recover: What the pruned network is recovered on: batches, ``"data-free"``, or ``None`` for no recovery.
        is_automatic: Whether the caller leaves the recovery to the library, which may then fail.
        why_not: Why it is left out in that case, for the user; empty if it is not.
        without_noise: What is done where noise that the caller did not ask for cannot be run; ``None`` if the caller
            asked for it, or there is none.
    """

    criterion: str | Criterion
    request: AllocationRequest
    recover: Any = None
    is_automatic: bool = False
    why_not: str = ""
    without_noise: DataUse | None = None


def choose_data(
    model: nn.Module,
    criterion: str | Criterion | None,
    request: AllocationRequest,
    recover: Any,
    *,
    formula: Formula | None,
    sides: str,
) -> DataUse:
    """Chooses what the caller has left open, and reads the images, once.

    Args:
        model: The network, or what a caller took for one.
        criterion: The caller's, or ``None``.
        request: The caller's amounts and calibration data.
        recover: The caller's: images, ``"data-free"``, ``"auto"`` or ``None``.
        formula: Of the entropies, or ``None``.
        sides: ``"both"`` or ``"producer"``.

    Raises:
        RatioError: Calibration data are missing, or nothing needs them.
        ArgumentError: Data of the wrong kind.
    """
    if isinstance(recover, str) and recover not in (AUTO, DATA_FREE):
        raise ArgumentError(
            f"recover={recover!r}: give images (a loader such as fec_fast.data.load('imagefolder:PATH')[0], an "
            f"iterable of batches, a tensor), {DATA_FREE!r} or {AUTO!r}"
        )
    is_automatic, why_not, calibration = isinstance(recover, str) and recover == AUTO, "", request.calibration
    if is_automatic:
        recover, why_not = automatic_recovery(model, calibration)
    chosen, ratios = default_choice(
        model,
        criterion,
        request.ratios,
        budget=request.budget,
        formula=formula,
        sides=sides,
        calibration=calibration,
        recover=recover,
    )
    own_noise = criterion is None and calibration is None and chosen in ERROR_CRITERIA
    own_noise = own_noise and (recover is None or (is_automatic and isinstance(recover, str)))
    asked = request
    request = replace(request, ratios=ratios)
    by_images, images = images_suffice(chosen, request.policy), recover
    # Loaders are read once, but one that gives labels too is left to what needs these, and read again for the recovery.
    if not (recover is None or isinstance(recover, str)) and (by_images or not is_automatic):
        images = [(batch,) for batch in calibration_batches(recover, IMAGES, model)]
    if own_noise:
        calibration = DATA_FREE
    elif by_images and (calibration is None or calibration is recover):
        calibration = images
    elif is_automatic and calibration is recover and not calibration_needs(chosen, request.policy):
        calibration = None  # the recovery alone uses it
    check_calibration(chosen, request.policy, calibration)
    if by_images and calibration is not images and not isinstance(calibration, str):
        batches = calibration_batches(calibration, IMAGES, model)
        if images is None or isinstance(images, str):  # the recovery warns of its own images
            warn_if_few(batches)
        calibration = [(batch,) for batch in batches]
    without_noise = None
    if own_noise and (asked.ratios is None or request.policy not in ERROR_CRITERIA):
        without_noise = DataUse(DEFAULT_CRITERION, asked, is_automatic=is_automatic)
    return DataUse(chosen, replace(request, calibration=calibration), images, is_automatic, why_not, without_noise)


def automatic_recovery(model: object, calibration: Any) -> tuple[Any, str]:
    """What a network is recovered on where the caller does not say it.

    Args:
        model: The network, or what a caller took for one.
        calibration: The calibration data of ``prune``, or ``None``.

    Returns:
        The images of the calibration, if it has some that can be read twice; else ``"data-free"``, if the model has
        batch norms; else ``None``. And why not, in the last case, for the user.
    """
    if not isinstance(model, nn.Module):
        return None, ""  # the trace says what is wrong
    tensors = [*model.named_parameters(), *model.named_buffers()]
    coarse = next((name for name, tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)), None)
    if coarse is not None:
        remedy = f"call .float() on the model and convert the result, or give {BARE}"
        return None, f"{coarse} is in half precision: {remedy}"
    if isinstance(calibration, Iterable) and not isinstance(calibration, str | Iterator):
        return calibration, ""
    if has_batch_norms(model):
        return DATA_FREE, ""
    return None, f"no batch norm says what the layers read: {REMEDY}"
