"""The optimizer of a training, from its settings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .settings import TrainingSettings


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
