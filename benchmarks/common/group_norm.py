"""Torch-Pruning's group norm pruner, with the settings of its CIFAR-10 script: one ranking of all groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_STEPS = 400  # small steps: a cut ends close to its target


def group_norm_pruner(model: nn.Module, example: Tensor) -> Any:
    """The pruner of a classifier, whose last linear layer keeps its outputs."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return tp.pruner.GroupNormPruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        reg=5e-4,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=[last],
    )


@contextlib.contextmanager
def sparse_training(pruner: Any, model: nn.Module) -> Iterator[None]:
    """Adds the pruner's penalty to the gradients before each step of an optimizer."""
    handle = register_optimizer_step_pre_hook(lambda *_: pruner.regularize(model))
    try:
        yield
    finally:
        handle.remove()


def cut_until(pruner: Any, reached: Callable[[], bool]) -> None:
    """Removes channels step by step until the target is reached.

    Raises:
        RuntimeError: All steps are done and the target is not reached.
    """
    for _ in range(_STEPS):
        if reached():
            return
        pruner.step()
    if not reached():
        raise RuntimeError(f"Torch-Pruning does not reach the target in {_STEPS} steps")
