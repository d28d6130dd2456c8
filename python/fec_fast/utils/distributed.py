"""Processes that share one job."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from .errors import TrainingError, missing_extra

if TYPE_CHECKING:
    pass


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
