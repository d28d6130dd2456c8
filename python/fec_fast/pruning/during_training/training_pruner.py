"""``TrainingPruner``: prunes a network in rounds while any training loop trains it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ...plan.composition import compose
from ...plan.optimizer_state import StateChange, held_parameters, narrowed_states, set_states
from ...plan.plan import Plan, check_plan
from ...plan.shapes import fingerprint
from ...plan.surgery import prune_in_place
from ...utils.compat import ULTRALYTICS_AVERAGED
from ...utils.critical_section import one_thread_at_a_time
from ...utils.errors import ArgumentError, FecError, PlanError, TrainingError, list_some
from ...utils.model_index import ModelIndex
from ...utils.public_call import interruptible
from ...utils.undo import UndoLog, all_or_nothing
from ...utils.user_warnings import warn_user
from ..allocation.budget import Budget
from .arguments import (
    check_reachable,
    checked_copies,
    checked_network,
    checked_optimizers,
    checked_options,
    listed_copies,
)
from .optimizer_steps import OptimizerSteps, check_states
from .progress_text import missing_rounds, one_line, table_of_rounds, warn_of_missing_calls
from .ranks import agreed, check_can_be_renewed, check_equal, from_first, number_of_processes, renew, wrapper_around
from .round_plan import RoundPlan, plan_round
from .schedule import EPOCHS, STEPS, PruningSchedule
from .stored_state import (
    Progress,
    PruningRound,
    check_same_settings,
    narrow,
    progress_of,
    settings_of,
    stored_plan_for,
    to_state,
)

_IDLE_CALLS = 1000


class TrainingPruner:
    """Prunes a network in rounds while it is trained, in any training loop.

    Call :meth:`step` after every batch (or every step of the optimizer) and :meth:`end_epoch` after every epoch. In a
    round that is due, the pruner plans on the present weights and narrows the model, the states of its optimizers and
    copies such as averaged weights, in place: all of them, or after any exception and Ctrl-C none. Parameters, groups
    of parameters, schedulers of learning rates and a ``GradScaler`` stay the same objects and need nothing.

    A step is one of the optimizer: batches that only accumulate gradients, and steps that a ``GradScaler`` skips, do
    not count. A round comes right after a step, so no gradients are pending; what is in ``grad`` is set to ``None``.

    Attributes:
        model: The model as it was given.
        schedule: The schedule.
        budget: The budget.
    """

    @interruptible
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        example_inputs: Any,
        *,
        budget: Budget,
        schedule: PruningSchedule,
        copies: Any = (),
        images: Any = None,
        ddp: nn.Module | None = None,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Checks everything, also that the budget can be met. Nothing is changed unless ``state`` is given.

        Args:
            model: The network. ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` are looked through;
                give the ``DistributedDataParallel`` itself, which stays usable.
            optimizer: All optimizers that hold parameters of the model; steps are those of the first. They may be
                wrapped (accelerate, timm's Lookahead).
            example_inputs: As for :func:`fec_fast.prune`; a small batch is enough.
            budget: The size after the last round, relative to the model before the first.
            schedule: The rounds.
            copies: Averages of the weights: torch's ``AveragedModel``, timm's ``ModelEmaV3``, Ultralytics'
                ``ModelEMA`` (the object itself, not its ``ema``: it also holds lists of tensors), or any copy of the
                model.
            images: What every round is recovered on, if the schedule says ``recover="images"`` or ``"batch-norm"``:
                a tensor, a loader or a list, as for :func:`fec_fast.compensate`, that can be read many times.
            ddp: The ``DistributedDataParallel`` where it holds the model as a part of another module.
            state: What :meth:`state_dict` returned, of a training that goes on; the same as a call of
                :meth:`load_state_dict`, and the way for a model that is narrow already.
            **options: For :func:`fec_fast.prune` in every round: ratios, calibration, criterion, formula, sides,
                ignore, min_channels, round_to, norms, verify.

        Raises:
            ArgumentError: An argument of the wrong kind, several processes without ``DistributedDataParallel``, an
                optimizer of another model, or a copy that is none.
            BudgetError: The budget cannot be met; the nearest that can be met is named.
            WeightError: The model is sharded (FSDP): prune it before sharding. Or it has weights that cannot be scored,
                or are too coarse to be recovered.
            RatioError: ``ratio``, or a calibration that is missing or not needed.
            InputError: The model cannot be run on the example inputs, or there are too few images.
            PlanError: The state of an optimizer is factored or otherwise not of its parameter's shape.
        """
        self._network = checked_network(model)
        self._ddp = wrapper_around(model, ddp)
        if self._ddp is not None:
            check_can_be_renewed(self._ddp)
        index = ModelIndex.of(self._network)
        self._optimizers = checked_optimizers(optimizer, index)
        self._holders = listed_copies(copies)
        self._copies = checked_copies(self._holders, self._network)
        self._options = checked_options(self._network, schedule, budget, images, options)
        self._images, self._example_inputs = images, example_inputs
        self.model, self.schedule, self.budget = model, schedule, budget
        self._settings = settings_of(schedule, budget, options)
        self._held = self._held_names(index)
        self._trial: Plan | None = None
        self._idle = 0
        if state is None:
            size, target, self._trial = check_reachable(self._network, example_inputs, budget, options)
            check_states(self._optimizers, self._trial, index)
            self._progress = Progress(fingerprint(index), size, target)
            self._steps = OptimizerSteps(self._optimizers)
        else:
            self._steps = OptimizerSteps(self._optimizers)
            self._progress = progress_of(state)
            self.load_state_dict(state)

    @property
    def plan(self) -> Plan | None:
        """All rounds so far as one plan against the original; ``None`` before the first. It is ``fec_fast.save``'s."""
        return self._progress.plan

    @property
    def rounds(self) -> tuple[PruningRound, ...]:
        """The rounds that were made."""
        return self._progress.rounds

    @property
    def is_finished(self) -> bool:
        """Whether no round is left."""
        progress = self._progress
        return self.schedule.is_over(progress.done, progress.size, progress.target)

    @property
    def missing_rounds(self) -> str | None:
        """What was reached and which rounds are left, in words; ``None`` after the last. ``save`` warns of it."""
        return missing_rounds(self._progress, self.schedule, self.budget.quantity)

    def __repr__(self) -> str:
        """One line; ``str()`` gives a table of the rounds."""
        return one_line(self._progress, self.schedule, self.budget.quantity)

    def __str__(self) -> str:
        """A table of the rounds."""
        return "\n".join(filter(None, [repr(self), table_of_rounds(self._progress, self.budget.quantity)]))

    def step(self) -> PruningRound | None:
        """Counts the optimizer's steps since the last call, and makes a round if one is due.

        Call it after ``optimizer.step()`` (and after the update of averaged weights), in all processes alike. A call
        without a new step of the optimizer does nothing.

        Returns:
            The round, if one was made.

        Raises:
            TrainingError: Another process failed, or the processes disagree.
            ArgumentError: The optimizers no longer hold the model's parameters.
            FecError: As :func:`fec_fast.prune` and the recovery say. After any error and Ctrl-C, everything is as it
                was before the call.
        """
        new = self._steps.taken - self._progress.seen
        if not new:
            self._idle += 1
            if self._idle == _IDLE_CALLS and not self.is_finished:
                kind = type(self._optimizers[0]).__name__
                warn_user(
                    f"step() was called {_IDLE_CALLS} times without a step of the {kind}: nothing will be pruned; give "
                    "the optimizer whose step() trains the model"
                )
            return None
        self._idle = 0
        if self._trial is not None:
            self._check_first_states(self._trial)
        counted = replace(self._progress, steps=self._progress.steps + new, seen=self._steps.taken)
        warn_of_missing_calls(self._progress, counted, self.schedule, self._steps.taken)
        return self._go_on(counted, STEPS, counted.steps)

    def end_epoch(self) -> PruningRound | None:
        """Counts an epoch, and makes a round if one is due. Call it after the last step of the epoch.

        Returns:
            The round, if one was made.

        Raises:
            FecError: As :meth:`step`.
        """
        counted = replace(self._progress, epochs=self._progress.epochs + 1)
        warn_of_missing_calls(self._progress, counted, self.schedule, self._steps.taken)
        return self._go_on(counted, EPOCHS, counted.epochs)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold besides the states of model, optimizers, copies and schedulers.

        Returns:
            A dictionary of text, numbers and lists: ``torch.save``, JSON and any other format can hold it.

        Raises:
            TrainingError: The optimizer has made a step that :meth:`step` has not counted, so that the resumed
                training would differ: call :meth:`step` first.
        """
        if self.schedule.unit == STEPS and not self.is_finished and self._steps.taken != self._progress.seen:
            raise TrainingError(
                "state_dict: the optimizer has made a step since the last call of step(): call step() before the "
                "checkpoint is written, or the resumed training will differ"
            )
        return to_state(self._progress, self._settings)

    @interruptible
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Narrows model, copies and optimizers to where a stored training was; load their own states afterwards.

        Args:
            state: What :meth:`state_dict` returned, of a training with the same schedule, budget and options.

        Raises:
            CheckpointError: It is something else, or of a training with other settings.
            PlanError: The model is neither the original nor what the stored rounds have made of it. After any error
                everything is as it was.
        """
        check_same_settings(state, self._settings)
        progress = replace(progress_of(state), seen=self._steps.taken)
        index = ModelIndex.of(self._network)
        plans = [(index, stored_plan_for(index, progress, "the model"))]
        for number, copy in enumerate(self._copies):
            of_copy = ModelIndex.of(copy)
            plans.append((of_copy, stored_plan_for(of_copy, progress, f"copies[{number}]")))
        plan = progress.plan
        changes = [] if plan is None else self._narrowed_states(plan, index, pruned_too=True)
        with all_or_nothing() as undo:
            self._renewed_if_undone(undo)
            narrow(plans, undo)
            _drop_tensor_lists(self._holders, undo)
            set_states(changes, undo)
            if self._ddp is not None and plans[0][1] is not None:
                renew(self._ddp)
            self._set_progress(progress, undo)
        self._trial = None
        if plan is not None:
            self._steps.narrowed(index, plan, progress.done)

    def _go_on(self, counted: Progress, unit: str, count: int) -> PruningRound | None:
        """Makes a round if one is due, and counts in any case."""
        due = self.schedule.due(count) if unit == self.schedule.unit else 0
        if due <= counted.done or self.is_finished:
            self._progress = counted
            return None
        return self._make_round(counted, due)

    @interruptible
    def _make_round(self, counted: Progress, number: int) -> PruningRound:
        together = number_of_processes() > 1
        network, done = self._network, counted.done
        index = ModelIndex.of(network)
        if together:
            check_equal("the round", (number, counted.steps, counted.epochs, fingerprint(index)))

        def size_wanted(present: float) -> float:
            return self.schedule.size_after(number, done, counted.size_before, present, counted.target)

        def planned() -> RoundPlan:
            try:
                with one_thread_at_a_time():
                    return plan_round(
                        *(network, self._copies, self._example_inputs, self.budget),
                        *(size_wanted, self.schedule, self._images, self._options),
                    )
            except FecError as error:
                error.add_note(f"in round {number} of pruning, after {counted.steps} steps; nothing was changed")
                raise

        agreed(lambda: self._check_before(index), together)
        found = from_first(planned) if together else planned()
        made = PruningRound(number, counted.steps, counted.epochs, found.size_before, found.size_after, found.plan)
        plan, rounds = found.plan, (*counted.rounds, made)
        if plan is None:
            self._progress = replace(counted, rounds=rounds)
            return made
        whole = plan if counted.plan is None else compose(counted.plan, plan)
        progress = replace(counted, rounds=rounds, plan=whole)
        indices, changes = agreed(lambda: self._prepared(plan, index), together)
        with all_or_nothing() as undo:
            self._renewed_if_undone(undo)
            for each, values in zip(indices, found.values, strict=True):
                _drop_gradients(each, undo)
                values = {name: value.to(each.tensors[name].device) for name, value in values.items()}
                prune_in_place(each, plan, undo, values)
            _drop_tensor_lists(self._holders, undo)
            set_states(changes, undo)
            if self._ddp is not None:
                renew(self._ddp)
            self._set_progress(progress, undo)
        self._steps.narrowed(index, plan, number)
        if "torch._dynamo" in sys.modules:
            # What was compiled for the old shapes is of no use, and counts towards torch's limit of recompilations,
            # beyond which it runs uncompiled.
            torch.compiler.reset()
        return made

    def _check_before(self, index: ModelIndex) -> None:
        """Checks, before a round, that the training still is what it was."""
        if self._ddp is not None:
            check_can_be_renewed(self._ddp)
        self._check_shapes(index)
        lost = self._held - self._held_names(index)
        if lost:
            raise ArgumentError(
                f"the optimizers no longer hold {list_some(sorted(lost))} of the model: they were replaced, as "
                "load_state_dict(assign=True) does; make a new optimizer and a new TrainingPruner, with state= of "
                "this one"
            )

    def _prepared(self, plan: Plan, index: ModelIndex) -> tuple[list[ModelIndex], list[StateChange]]:
        """Checks that a plan fits this process's models, and computes what the optimizers' states become."""
        indices = [index, *map(ModelIndex.of, self._copies)]
        for each in indices:
            check_plan(plan, each)
        return indices, self._narrowed_states(plan, index)

    def _narrowed_states(self, plan: Plan, index: ModelIndex, *, pruned_too: bool = False) -> list[StateChange]:
        return [
            change
            for optimizer in self._optimizers
            for change in narrowed_states(optimizer, plan, index, pruned_too=pruned_too)
        ]

    def _check_shapes(self, index: ModelIndex) -> None:
        whole = self._progress.plan
        if fingerprint(index) != (self._progress.original if whole is None else whole.pruned_fingerprint):
            raise PlanError(
                f"{type(index.model).__name__} has other shapes than this pruner left: another pruner or apply_plan "
                "has changed it; prune it by one TrainingPruner alone"
            )

    def _check_first_states(self, trial: Plan) -> None:
        """Checks, after the first step, the states it has made: before days of training, not in the first round."""
        index = ModelIndex.of(self._network)
        self._check_shapes(index)
        check_states(self._optimizers, trial, index)
        self._trial = None

    def _held_names(self, index: ModelIndex) -> frozenset[str]:
        return frozenset(
            index.first_names[id(one)] for optimizer in self._optimizers for one in held_parameters(optimizer, index)
        )

    def _renewed_if_undone(self, undo: UndoLog) -> None:
        if self._ddp is not None:
            undo.action("the buckets of DistributedDataParallel", functools.partial(renew, self._ddp))

    def _set_progress(self, progress: Progress, undo: UndoLog) -> None:
        undo.entry(vars(self), "_progress")
        self._progress = progress


def _drop_gradients(index: ModelIndex, undo: UndoLog) -> None:
    """Removes gradients: they were of the weights before the step that has just been made."""
    for tensor in {id(each): each for each in index.tensors.values()}.values():
        if tensor.grad is not None:
            undo.tensor(tensor)
            tensor.grad = None


def _drop_tensor_lists(holders: Sequence[Any], undo: UndoLog) -> None:
    """Removes the lists of aliased tensors of Ultralytics' ``ModelEMA``, which makes them anew at its next update.

    They would be those of the old shapes, and the average would silently stay as it is.
    """
    for holder in holders:
        own = getattr(holder, "__dict__", {})
        if own.get(ULTRALYTICS_AVERAGED) is not None and not isinstance(holder, nn.Module):
            undo.entry(own, ULTRALYTICS_AVERAGED)
            own[ULTRALYTICS_AVERAGED] = None
