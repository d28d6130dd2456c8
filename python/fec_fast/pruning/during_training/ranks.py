"""Several processes that train one model: all take the plan of rank 0, or none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...plan.plan import Plan
from ...utils.compat import communication_hooks, compiled_module
from ...utils.errors import ArgumentError, TrainingError
from .round_plan import RoundPlan

_R = TypeVar("_R")


def number_of_processes() -> int:
    """How many processes ``torch.distributed`` has joined; 1 where it is not used."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def wrapper_around(model: nn.Module, given: nn.Module | None) -> DistributedDataParallel | None:
    """Finds the ``DistributedDataParallel`` that synchronises a model's gradients.

    Args:
        model: The model as it was given, possibly wrapped.
        given: The wrapper that the caller has named, if it holds the model deeper inside; also inside
            ``torch.compile``.

    Returns:
        The wrapper; ``None`` in a single process without one.

    Raises:
        ArgumentError: There are several processes and no wrapper, the named one does not hold the model, or it cannot
            be renewed after a round.
    """
    module: nn.Module | None = model if given is None else given
    while isinstance(module, nn.Module) and not isinstance(module, DistributedDataParallel):
        module = module.module if isinstance(module, nn.DataParallel) else compiled_module(module)
    if not isinstance(module, DistributedDataParallel):
        if given is not None:
            raise ArgumentError(f"ddp: expected a DistributedDataParallel, got a {type(given).__name__}")
        if number_of_processes() > 1:
            raise ArgumentError(
                f"torch.distributed runs {number_of_processes()} processes, but the model is not wrapped by "
                "DistributedDataParallel: give the wrapper, not ddp.module, or name it by ddp=; its buckets have to be "
                "renewed in every round"
            )
        return None
    if given is not None and not any(each is model for each in module.modules()):
        raise ArgumentError("ddp: this DistributedDataParallel does not hold the model: give the one that trains it")
    if module.process_group is not torch.distributed.group.WORLD:
        raise ArgumentError(
            "the DistributedDataParallel has a process group of its own, with which it cannot be renewed after a "
            "round: wrap the model without process_group="
        )
    return module


def check_can_be_renewed(ddp: DistributedDataParallel) -> None:
    """Checks that nothing would be lost when a wrapper's buckets are made anew.

    Args:
        ddp: The wrapper.

    Raises:
        ArgumentError: It has a communication hook.
    """
    if communication_hooks(ddp):
        raise ArgumentError(
            "the DistributedDataParallel has a communication hook, which may hold buckets of the old shapes: train "
            "without register_comm_hook while the model is pruned"
        )


def renew(ddp: DistributedDataParallel) -> None:
    """Makes a wrapper's gradient buckets anew, for the present shapes. The wrapper stays the same object.

    It is what copying by ``pickle`` does with its state; nothing else of it changes.

    Args:
        ddp: The wrapper, over the default process group.
    """
    ddp.__setstate__(ddp.__getstate__())  # type: ignore[no-untyped-call]


def agreed(work: Callable[[], _R], together: bool) -> _R:
    """Does some work in every process; where it fails in one, all raise.

    Args:
        work: The work of this process; it must not communicate.
        together: Whether there are other processes, which call this too.

    Returns:
        Its result.

    Raises:
        TrainingError: It failed in another process. Where it failed here, its own exception is raised.
    """
    if not together:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # raised below: the others wait for the message
        failure = error
    rank = torch.distributed.get_rank()
    messages: list[str | None] = [None] * number_of_processes()
    message = None if failure is None else f"process {rank}: {type(failure).__name__}: {failure}"
    torch.distributed.all_gather_object(messages, message)
    if failure is not None:
        raise failure
    for other in messages:
        if other is not None:
            raise TrainingError(f"no process was pruned, because another one failed: {other}")
    return result  # type: ignore[return-value]


def check_equal(what: str, value: Any) -> None:
    """Checks that all processes have the same value.

    Args:
        what: What it is, for the message.
        value: A value that can be compared and sent.

    Raises:
        TrainingError: They have not.
    """
    values: list[Any] = [None] * number_of_processes()
    torch.distributed.all_gather_object(values, value)
    for rank, other in enumerate(values):
        if other != value:
            raise TrainingError(
                f"the processes disagree on {what}: {value} here, {other} in process {rank}; make the same calls in "
                "all of them, with the same arguments"
            )


def from_first(work: Callable[[], RoundPlan]) -> RoundPlan:
    """Plans in the first process and gives the round to all.

    Args:
        work: Plans the round.

    Returns:
        The round; its tensors are on the CPU, except in the first process.

    Raises:
        TrainingError: It failed in the first process, where its own exception is raised.
    """
    is_first = torch.distributed.get_rank() == 0
    planned, failure = None, None
    if is_first:
        try:
            planned = work()
        except Exception as error:  # raised below: the others wait for the message
            failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    # Text, numbers and bytes: the plan as JSON, the tensors as safetensors.
    sent: list[Any] = [message, None if planned is None else _sendable(planned)]
    torch.distributed.broadcast_object_list(sent, src=0)
    if failure is not None:
        raise failure
    if sent[0] is not None:
        raise TrainingError(f"no process was pruned, because the first one failed: {sent[0]}")
    return _received(*sent[1]) if planned is None else planned


def _sendable(planned: RoundPlan) -> tuple[str | None, list[bytes], float, float]:
    values = [
        save({name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in each.items()})
        for each in planned.values
    ]
    return None if planned.plan is None else planned.plan.to_json(), values, planned.size_before, planned.size_after


def _received(plan: str | None, values: list[bytes], size_before: float, size_after: float) -> RoundPlan:
    tensors = [load(each) for each in values]
    return RoundPlan(None if plan is None else Plan.from_json(plan), tensors, size_before, size_after)
