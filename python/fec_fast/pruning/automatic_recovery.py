"""What ``recover="auto"`` of ``prune`` stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..recovery.calibration import DATA_FREE
from ..utils.user_warnings import warn_user
from .arguments import has_batch_norms

AUTO = "auto"
BARE = "recover=None for the bare cut"
REMEDY = f"give images as recover=, or {BARE}"


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


def warn_not_recovered(reason: str) -> None:
    """Warns that a network is as it was cut.

    Args:
        reason: Why, and the remedy.
    """
    warn_user(f"not recovered, so most of the accuracy may be lost: {reason}")
