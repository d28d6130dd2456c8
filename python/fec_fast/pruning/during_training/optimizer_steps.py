"""Watches optimizers: counts the steps of one, and refuses steps on states that a round has not narrowed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ...plan.optimizer_state import narrowed_states
from ...plan.plan import Plan
from ...utils.errors import PlanError
from ...utils.model_index import ModelIndex


class OptimizerSteps:
    """Counts the steps of the first of some optimizers, and looks at every other optimizer once after each round.

    A step that a ``GradScaler`` skips is not counted, and one whose class calls the ``step`` of its parent counts once.

    Attributes:
        taken: The steps so far.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Begins to count.

        Args:
            optimizers: Those that are narrowed in every round, the innermost of wrapped ones first.
        """
        self.taken = 0
        self._counted = weakref.ref(optimizers[0])
        self._own = weakref.WeakSet(optimizers)
        self._checked: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._names: dict[int, tuple[str, Tensor]] = {}
        self._round = 0
        self._begun: list[int] = []  # steps of the counted optimizer that run now, by the depth of the stack
        # Torch keeps the hooks, for all optimizers of the process, until they are removed: they must not keep this
        # object alive.
        this = weakref.ref(self)

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            watcher = this()
            if watcher is not None:
                watcher.begin(optimizer)
                watcher.refuse_forgotten(optimizer)

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            watcher = this()
            if watcher is not None:
                watcher.count(optimizer)

        for handle in (register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)):
            weakref.finalize(self, handle.remove)

    def narrowed(self, index: ModelIndex, plan: Plan, number: int) -> None:
        """Begins to look at optimizers again, after a round.

        Args:
            index: The index of the model.
            plan: The plan of the round.
            number: The round.
        """
        for name in plan.keep:
            self._names[id(index.tensors[name])] = name, index.tensors[name]
        self._round = number
        self._checked.clear()

    def begin(self, optimizer: Optimizer) -> None:
        """Notes that a step begins, perhaps inside another one of the same optimizer.

        Args:
            optimizer: Any optimizer of the process.
        """
        if optimizer is self._counted():
            depth = _stack_depth()
            # Those that are not outside of this one were left by an exception.
            self._begun = [*(each for each in self._begun if each < depth), depth]

    def count(self, optimizer: Optimizer) -> None:
        """Counts a step, if it is the watched optimizer's.

        Args:
            optimizer: An optimizer that has made a step.
        """
        if optimizer is not self._counted():
            return
        self._begun = self._begun[:-1]
        # Fused optimizers skip the step themselves, as the GradScaler tells them.
        skipped = getattr(optimizer, "found_inf", None)
        if not self._begun and (skipped is None or not float(skipped)):
            self.taken += 1

    def refuse_forgotten(self, optimizer: Optimizer) -> None:
        """Looks at an optimizer that is about to make a step.

        Args:
            optimizer: Any optimizer of the process.

        Raises:
            PlanError: It has states of the shapes before a round.
        """
        if not self._round or optimizer in self._own or optimizer in self._checked:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter), ("",))[0]
                if not name:
                    continue
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise PlanError(
                            f"the {type(optimizer).__name__} holds {name}, which round {self._round} of pruning has "
                            f"narrowed to {list(parameter.shape)}, but its {key} still has shape {list(value.shape)}: "
                            "give all optimizers of the model to TrainingPruner(optimizer=[...]), or call "
                            "fec_fast.remap_optimizer(optimizer, round.plan, model) right after the round"
                        )
        self._checked.add(optimizer)


def check_states(optimizers: Sequence[Optimizer], plan: Plan, index: ModelIndex) -> None:
    """Checks that the states of optimizers can be narrowed, before a round needs it.

    Args:
        optimizers: The optimizers, and wrappers that have a state of their own.
        plan: A plan that narrows the model.
        index: The index of the model.

    Raises:
        ArgumentError: One holds no parameter of the model.
        PlanError: A state is factored or otherwise not of its parameter's shape.
    """
    for optimizer in optimizers:
        narrowed_states(optimizer, plan, index)


def _stack_depth() -> int:
    frame, depth = inspect.currentframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
