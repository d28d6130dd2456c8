"""The optimizer of a training, from its settings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..utils.user_warnings import warn_user
from .settings import TrainingSettings

_COARSE = (torch.bfloat16, torch.float16)


def warn_of_coarse_weights(model: nn.Module) -> None:
    """Warns if trained weights are stored so coarsely that small steps of the optimizer change nothing."""
    coarse = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dtype in _COARSE}
    if coarse:
        name, parameter = next(iter(coarse.items()))
        # Rounded away are steps of less than half of the distance to the next number: eps / 4 to eps / 2 of a weight.
        least, dtype = torch.finfo(parameter.dtype).eps / 4, str(parameter.dtype).removeprefix("torch.")
        what = f"{len(coarse)} parameters, {name!r} first, are" if len(coarse) > 1 else f"the parameter {name!r} is"
        precision = "bf16" if parameter.dtype == torch.bfloat16 else "fp16"
        warn_user(
            f"{what} trained in {dtype} itself: steps of less than {least:.3g} of a weight are lost. Train "
            f"model.float(), with mixed_precision={precision!r} to compute in {dtype}, and convert it afterwards"
        )


def build_optimizer(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Builds the optimizer that the settings describe.

    Args:
        parameters: The parameters to be trained.
        settings: Gives ``optimizer``, ``lr``, ``momentum`` (SGD only) and ``weight_decay``.

    Returns:
        SGD, or AdamW with torch's default betas.
    """
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
