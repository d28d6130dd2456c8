"""What a training borrows from the process and gives back: random states, and accelerate's shared state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..utils.compat import accelerate_gradient_state, reset_accelerator_state
from ..utils.distributed import check_accelerate, process_group_destroyed_at_exit
from ..utils.errors import BackendError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def borrowed_accelerator(
    mixed_precision: str, accumulate: int = 1, trackers: Any = None, log_dir: Path | None = None
) -> Iterator[Accelerator]:
    """Makes an accelerator that leaves nothing behind in the process, as accelerate's shared states would have it.

    Args:
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        accumulate: So many batches make one step of the optimizer.
        trackers: What accelerate takes as ``log_with``.
        log_dir: Where they write.

    Yields:
        The accelerator.

    Raises:
        BackendError: The device does not have this precision, or an accelerator of the caller's has another.
    """
    import accelerate
    from accelerate.utils import parse_flag_from_env

    ours = not accelerate.state.is_initialized()
    gradients = accelerate_gradient_state()
    before = dict(gradients)
    with process_group_destroyed_at_exit():
        state = accelerate.PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"))
    kind = state.distributed_type  # an accelerator that splits the weights writes over it
    try:
        try:
            accelerator = accelerate.Accelerator(
                mixed_precision=mixed_precision,
                gradient_accumulation_steps=accumulate,
                log_with=trackers,
                project_dir=log_dir,
            )
        except ValueError as error:
            raise BackendError(f"mixed_precision={mixed_precision!r} is not to be had here: {error}") from error
        # On some devices accelerate takes the word and then trains in float32 all the same.
        if mixed_precision != "no" and not accelerator.native_amp:
            device = accelerator.device.type
            raise BackendError(
                f"mixed_precision={mixed_precision!r} is not to be had on {device!r}; take 'no' or 'bf16'"
            )
        yield accelerator
    finally:
        gradients.clear()
        gradients.update(before)
        if ours:
            reset_accelerator_state()
            state.distributed_type = kind


def training_device() -> torch.device:
    """The device that a training in this process would take.

    Returns:
        What accelerate chooses: a GPU of this process's own, if there is one.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    check_accelerate()
    with borrowed_accelerator("no") as accelerator:
        return torch.device(accelerator.device)
