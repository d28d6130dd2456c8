"""What a training borrows from the process and gives back: random states, and accelerate's shared state."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..utils.errors import BackendError, TrainingError, missing_extra

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_accelerate() -> None:
    """Makes sure that accelerate and torchmetrics are installed.

    Raises:
        MissingExtraError: One is not.
    """
    for package in ("accelerate", "torchmetrics"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(package, "train", "finetune") from error


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
    gradients = accelerate.state.GradientState._shared_state
    before = dict(gradients)
    with _group_left_at_exit():
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
            accelerate.state.AcceleratorState._reset_state()
            state.distributed_type = kind


@contextlib.contextmanager
def _group_left_at_exit() -> Iterator[None]:
    """Sees to it that a process group which is made meanwhile is left when the interpreter ends.

    With the group still there, one run in six aborted at its end (gloo, two processes, torch 2.14), its work done.
    """
    before = _in_group()
    yield
    if _in_group() and not before:
        atexit.register(_leave_group)


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave_group() -> None:
    if _in_group():
        torch.distributed.destroy_process_group()


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


@contextlib.contextmanager
def restored_randomness() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch (CPU and GPUs) at the end.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C wait until somebody asks for it; a second one does not wait.

    Handlers that are not Python's own, and threads other than the main one, are left alone.

    Yields:
        Tells whether Ctrl-C was pressed.
    """
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and GPUs).

    Args:
        seed: In [0, 2**32).
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators_of(loader: Any) -> list[torch.Generator]:
    """Finds the generators of its own that a loader draws its order from.

    Args:
        loader: A DataLoader, or anything else.

    Returns:
        None, one or several.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    found = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
    # What accelerate gives to a shuffling loader without one, for all processes to draw the same order.
    found.append(getattr(loader, "synchronized_generator", None))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


class Processes:
    """The processes that work together on one thing.

    Attributes:
        rank: The number of this one, from 0.
        number: How many there are.
    """

    def __init__(self, rank: int = 0, number: int = 1) -> None:
        """Takes down the place of this process."""
        self.rank, self.number = rank, number

    def together(self, work: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        """Does this process's share and gathers everybody's.

        Args:
            work: Does the share.

        Returns:
            What all processes found.

        Raises:
            TrainingError: It failed in another process; in the one where it failed, what it raised.
        """
        if self.number == 1:
            return work()
        from accelerate.utils import gather_object

        found: dict[Any, Any] = {}
        failure: Exception | None = None
        try:
            found = work()
        except Exception as error:  # told to the others first, who would wait for ever
            failure = error
        everybody = gather_object([(found, None if failure is None else f"process {self.rank}: {failure}")])
        if failure is not None:
            raise failure
        for _, words in everybody:
            if words is not None:
                raise TrainingError(f"another process failed: {words}")
        return {key: value for part, _ in everybody for key, value in part.items()}


def processes() -> Processes:
    """The processes that ``accelerate launch`` (or torchrun) started, of which this is one; or this one alone.

    Returns:
        Its place among them.

    Raises:
        MissingExtraError: Several were launched, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    check_accelerate()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    with _group_left_at_exit():
        # Asked for the CPU in so many words, or else it takes no notice of the other processes where there is no GPU.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)
