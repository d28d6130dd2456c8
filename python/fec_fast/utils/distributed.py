"""Processes of one distributed job: their ranks, merged results, and a clean exit."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .errors import TrainingError, missing_extra


def check_accelerate() -> None:
    """Checks that accelerate and torchmetrics are installed.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    for package in ("accelerate", "torchmetrics"):
        try:
            importlib.import_module(package)
        except (ImportError, AttributeError) as error:
            raise missing_extra(package, "train", "finetune", error) from error


@contextlib.contextmanager
def process_group_destroyed_at_exit() -> Iterator[None]:
    """Registers a process group that is created inside the context to be destroyed when the interpreter ends.

    A group that existed before belongs to the caller and is left alone. Without this, one run in six aborted at its
    end, with all its work done (gloo, two processes, torch 2.14).

    Yields:
        Nothing.
    """
    existed = _in_group()
    yield
    if _in_group() and not existed:
        atexit.register(_destroy_group)


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _destroy_group() -> None:
    if _in_group():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes of one job, seen from one of them.

    Attributes:
        rank: The rank of this process, from 0.
        world_size: The number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        """Stores the rank of this process.

        Args:
            rank: From 0, below ``world_size``.
            world_size: At least 1.
        """
        self.rank, self.world_size = rank, world_size

    def merge_results(self, work: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        """Runs this process's share of some work and merges the results of all processes.

        Every process has to call it, and each waits for all the others.

        Args:
            work: Computes the share of this process; its results must be picklable.

        Returns:
            The results of all processes in one dictionary, the same in every process.

        Raises:
            TrainingError: The work failed in another process. Where it failed here, its own exception is raised.
        """
        if self.world_size == 1:
            return work()
        from accelerate.utils import gather_object

        results: dict[Any, Any] = {}
        failure: Exception | None = None
        try:
            results = work()
        except Exception as error:  # raised below: the other processes wait for the message
            failure = error
        message = None if failure is None else f"process {self.rank}: {failure}"
        gathered = gather_object([(results, message)])
        if failure is not None:
            raise failure
        for _, other_message in gathered:
            if other_message is not None:
                raise TrainingError(f"another process failed: {other_message}")
        return {key: value for part, _ in gathered for key, value in part.items()}


def launched_processes() -> Processes:
    """The processes that ``accelerate launch`` (or torchrun) started; without a launcher, this process alone.

    Returns:
        The rank of this process and the number of all.

    Raises:
        MissingExtraError: Several processes were launched, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    check_accelerate()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    with process_group_destroyed_at_exit():
        # Without a GPU, PartialState ignores the other processes unless the CPU is asked for explicitly.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)
