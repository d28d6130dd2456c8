"""Temporary accelerators: accelerate's objects for one training, without a trace in the process afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..utils.compat import ACCELERATE_ATTRIBUTES, accelerate_gradient_state, reset_accelerator_state
from ..utils.critical_section import put_back_by, surely_closed
from ..utils.distributed import check_accelerate, process_group_destroyed_at_exit
from ..utils.errors import BackendError

if TYPE_CHECKING:
    from accelerate import Accelerator


@surely_closed
def temporary_accelerator(
    mixed_precision: str, accumulate: int = 1, trackers: Any = None, log_dir: Path | None = None
) -> Iterator[Accelerator]:
    """Makes an accelerator and restores accelerate's shared state at the end.

    accelerate keeps its configuration in class attributes that all accelerators of the process share: the first one
    fixes the precision for all later ones, and a new one changes the accumulation of those before. Without the
    restoring, one call of ``finetune`` would decide how the next one trains, and would change an accelerator of the
    caller's.

    Args:
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        accumulate: Number of batches per optimizer step.
        trackers: The value of accelerate's argument ``log_with``.
        log_dir: Folder that the trackers write to.

    Yields:
        The accelerator.

    Raises:
        BackendError: The device does not support this precision, or an accelerator of the caller's has another one.
    """
    import accelerate
    from accelerate.utils import parse_flag_from_env

    first_in_process = not accelerate.state.is_initialized()
    gradient_state = accelerate_gradient_state()
    gradient_state_before = dict(gradient_state)
    with process_group_destroyed_at_exit():
        state = accelerate.PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"))
    # The state of the processes (PartialState) outlives the accelerator, because a process group can be joined once
    # only. But an accelerator that shards the weights overwrites this attribute of it.
    distributed_type_before = state.distributed_type

    def restore() -> None:
        # In place: all accelerators hold this one dictionary.
        gradient_state.clear()
        gradient_state.update(gradient_state_before)
        if first_in_process:
            reset_accelerator_state()
            state.distributed_type = distributed_type_before

    with put_back_by(restore):
        try:
            accelerator = accelerate.Accelerator(
                mixed_precision=mixed_precision,
                gradient_accumulation_steps=accumulate,
                log_with=trackers,
                project_dir=log_dir,
            )
        except ValueError as error:
            raise BackendError(f"mixed_precision={mixed_precision!r} is not supported here: {error}") from error
        # On some devices accelerate accepts the precision and then trains in float32.
        if mixed_precision != "no" and not accelerator.native_amp:
            device = accelerator.device.type
            raise BackendError(
                f"mixed_precision={mixed_precision!r} is not supported on {device!r}; use 'no' or 'bf16'"
            )
        yield accelerator


@surely_closed
def unprepared_at_end(model: nn.Module) -> Iterator[None]:
    """Takes what accelerate puts on a model off again, whatever happens.

    Args:
        model: The model that an accelerator prepares inside the context.

    Yields:
        Nothing.
    """
    own = vars(model)
    before = {name: own[name] for name in ACCELERATE_ATTRIBUTES if name in own}

    def restore() -> None:
        for name in ACCELERATE_ATTRIBUTES:
            own.pop(name, None)
        own.update(before)

    with put_back_by(restore):
        yield


def training_device() -> torch.device:
    """Finds the device that a training in this process would use.

    Returns:
        The device that accelerate selects: this process's GPU if there is one, otherwise the CPU.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    check_accelerate()
    with temporary_accelerator("no") as accelerator:
        return torch.device(accelerator.device)
