"""Gradients: how they are scaled, and whether they are finite before a step makes weights of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..utils.errors import TrainingError


def check_gradients(parameters: Mapping[str, nn.Parameter], message: Callable[[], str]) -> None:
    """Checks that the gradients are finite: a finite loss may have others, such as that of a square root at 0.

    Args:
        parameters: What is trained, by name. Sharded and sparse gradients are not looked at.
        message: Says where the training is.

    Raises:
        TrainingError: A gradient is infinite or NaN. The gradients are taken away.
    """
    gradients = {name: parameter.grad for name, parameter in parameters.items() if type(parameter.grad) is Tensor}
    dense = {name: grad for name, grad in gradients.items() if grad is not None and grad.layout == torch.strided}
    if not dense or math.isfinite(float(nn.utils.get_total_norm(list(dense.values()), math.inf))):
        return
    name = next(name for name, grad in dense.items() if not bool(grad.isfinite().all()))
    for parameter in parameters.values():
        parameter.grad = None
    raise TrainingError(f"{message()}; {name} is the first such parameter")


def accumulation_scale(batch_number: int, size: int, batches: int) -> float:
    """Scale of the loss in the last, incomplete group of batches.

    accelerate divides every loss by ``accumulate``, also where the epoch ends after fewer batches.

    Args:
        batch_number: The batch in the epoch, from 0.
        size: How many batches make a step.
        batches: How many an epoch has.

    Returns:
        1 in a whole group.
    """
    first = batch_number // size * size
    return size / min(size, batches - first)
