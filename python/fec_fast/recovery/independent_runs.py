"""Independent runs: whether runs of a model that take turns return what each would alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.model_index import ModelIndex
from ..utils.modules import device_of
from ..utils.outputs import named_tensors_in
from .calibration import FEWEST_IMAGES

# Relative to the largest value: what is mixed up differs by far more, and equal runs hardly at all.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2


def check_runs_apart(index: ModelIndex, in_turns: Any, run_alone: Callable[[], Any]) -> None:
    """Refuses a model whose runs have to do with one another, so that what its layers read in turns is not known.

    Args:
        index: The index of the model.
        in_turns: What it returned on a batch while others were run too.
        run_alone: Runs it on that batch again. A model that draws random numbers then, or returns something else the
            next time, is let pass: it cannot be told.

    Raises:
        InputError: The runs differ.
    """
    device = device_of(index.model)
    with torch.no_grad():
        state = _random_state(device)
        alone = run_alone()
        drew = not torch.equal(state, _random_state(device))
        if drew or _are_equal(in_turns, alone) or not _are_equal(alone, run_alone()):
            return
    raise InputError(
        f"{type(index.model).__name__} keeps what it computes outside itself, in a global variable, a buffer or an "
        "object that its copies share, so runs on several batches disturb one another: keep it in a plain attribute of "
        f"a module, or give one batch of at most {FEWEST_IMAGES} images, such as recover=images[:{FEWEST_IMAGES}]"
    )


def _random_state(device: torch.device) -> Tensor:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *on_device])


def _are_equal(left: Any, right: Any) -> bool:
    """Whether two runs returned the same but for rounding, as far as that can be compared."""
    pairs = zip(named_tensors_in(left), named_tensors_in(right), strict=False)
    return all(_is_close(a, b) for (_, a), (_, b) in pairs)


def _is_close(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.layout != torch.strided or left.is_complex():
        return left.shape == right.shape
    tolerance = _HALF_TOLERANCE if left.dtype in (torch.float16, torch.bfloat16) else _TOLERANCE
    left, right = left.double(), right.double()
    finite = right.isfinite()
    if not torch.equal(left[~finite].nan_to_num(), right[~finite].nan_to_num()):
        return False
    scale = right[finite].abs().amax() if bool(finite.any()) else 0
    return bool(((left[finite] - right[finite]).abs() <= tolerance * scale).all())
