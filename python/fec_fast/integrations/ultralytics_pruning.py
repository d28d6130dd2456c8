"""Ultralytics: a callback that prunes a network in rounds while ultralytics' own trainer trains it.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import unwrap_model

from ..plan.composition import compose
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.during_training.schedule import BATCH_NORM, EPOCHS, IMAGES, UNTIL_BUDGET, PruningSchedule
from ..pruning.during_training.stored_state import PruningRound
from ..pruning.during_training.training_pruner import TrainingPruner
from ..utils.errors import ArgumentError, CheckpointError
from . import trainer_callback
from .ultralytics_images import calibration_images, checked_size, training_images
from .ultralytics_training import (
    StoredRounds,
    as_pruned,
    network_of,
    rounds_of,
    store_plan,
    store_rounds,
    stored_plan,
    stored_rounds,
)

_EVENTS = (
    *("on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_epoch_start", "on_train_batch_end"),
    *("on_train_epoch_end", "on_train_end", "teardown"),
)


class PruningCallback(trainer_callback.TrainerCallback):
    """Prunes the network of a ``YOLO`` or ``RTDETR`` object in rounds; see :class:`fec_fast.TrainingPruner`.

    ``PruningCallback(...).attach(yolo)``, then ``yolo.train(...)``. Every round narrows the network, the states of the
    optimizer and the averaged weights (EMA) in place. ``best.pt`` is the best network since the last round, and early
    stopping counts epochs from the last round. ``last.pt`` holds the state of the pruning: open it with
    :func:`from_checkpoint`, attach a new callback with the same budget and schedule, and call
    ``yolo.train(resume=True)``.

    Attributes:
        pruner: The ``TrainingPruner`` of the last training; ``None`` before the first.
        model: The network that is trained. ``yolo.model`` holds ultralytics' ``best.pt`` after the training.
        plan: All rounds so far as one plan against the network before the training; ``None`` before the first.
        rounds: The rounds that were made.
    """

    _started_by = "yolo.train"
    _remedy = "call attach(yolo) before it"

    def __init__(
        self, *, budget: Budget, schedule: PruningSchedule, imgsz: int | None = None, images: Any = None, **options: Any
    ) -> None:
        """Stores the arguments; most are checked when the training starts.

        Args:
            budget: The size after the last round, relative to the network when the training starts.
            schedule: The rounds.
            imgsz: Height and width of the example image, in pixels, for which operations are counted; ``None``: that of
                the training. Smaller ones make the rounds faster.
            images: What every round is recovered on, if the schedule says so: a data set as for
                :func:`calibration_images`, of which 256 images are used, or a loader; ``None``: images of the training.
            **options: For :func:`fec_fast.prune`.

        Raises:
            ArgumentError: No schedule, or a size that is no multiple of 32.
        """
        if not isinstance(schedule, PruningSchedule):
            raise ArgumentError(
                f"schedule={schedule!r:.80}: give a fec_fast.PruningSchedule, such as "
                "PruningSchedule.cubic([5, 10, 15], unit='epochs')"
            )
        self._imgsz = None if imgsz is None else checked_size(imgsz)
        self._budget, self._schedule, self._images, self._options = budget, schedule, images, options
        self._yolo: Any = None
        self._class: Any = None
        self._average: nn.Module | None = None
        self._earlier: Plan | None = None
        self._resumed: StoredRounds | None = None
        self._is_complete = False

    def attach(self, yolo: Any) -> None:
        """Adds the callback to an object, for its next training alone.

        Args:
            yolo: A ``YOLO`` or ``RTDETR`` object, dense or pruned. Its class changes, as by :func:`prune`.

        Raises:
            ArgumentError: Not such an object; it has a ``PruningCallback``, or this one waits for another training.
        """
        network_of(yolo)
        if rounds_of(yolo.callbacks) is not None:
            raise ArgumentError("yolo: a PruningCallback is attached to it already; each is for one training")
        if self._yolo is not None:
            raise ArgumentError("this PruningCallback is attached to another YOLO object: make one for each")
        self._yolo, self._class, self._is_complete = yolo, type(yolo), False
        yolo.__class__ = as_pruned(yolo)
        for event in _EVENTS:
            yolo.add_callback(event, getattr(self, event))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the callback is no function for ``add_callback``.

        Args:
            *args: What ultralytics gives its callbacks.
            **kwargs: Likewise.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("a PruningCallback is not for add_callback: call attach(yolo) before yolo.train()")

    @property
    def starts_dense(self) -> bool:
        """Whether the object that trains holds a network that was not pruned yet."""
        return stored_plan(self._yolo.model) is None

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        """Reads the state of the pruning from the checkpoint, if a training is resumed.

        Args:
            trainer: Ultralytics' trainer.

        Raises:
            CheckpointError: The checkpoint has no such state.
            PlanError: Its plan is damaged.
        """
        self.pruner, self._resumed = None, None
        if trainer.resume:
            self._resumed = _rounds_in(trainer.args.model)

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Makes the pruner: network, optimizer and average exist, a resumed training has loaded them.

        Args:
            trainer: Ultralytics' trainer.

        Raises:
            FecError: As :class:`fec_fast.TrainingPruner` says.
        """
        self._check_is_long_enough(trainer)
        self._start(trainer, self._resumed)

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Goes back to ``last.pt`` with ultralytics, which does so if the loss was not finite.

        Args:
            trainer: Ultralytics' trainer.
        """
        if self._average is not trainer.ema.ema:
            self._start(trainer, _rounds_in(trainer.last))

    def on_train_batch_end(self, trainer: Any) -> None:
        """Counts the optimizer's steps, and makes a round if one is due.

        Args:
            trainer: Ultralytics' trainer.
        """
        if _is_finite(trainer):
            self._note(trainer, self._trained().step())

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Counts an epoch, makes a round if one is due, and adds the state to what ``last.pt`` will hold.

        Args:
            trainer: Ultralytics' trainer.
        """
        if not _is_finite(trainer):
            return  # ultralytics goes back to last.pt and trains this epoch again
        pruner = self._trained()
        self._note(trainer, pruner.step())  # after the last batch, a limit of time ends the epoch without a call
        self._note(trainer, pruner.end_epoch())
        if not pruner.is_finished:
            trainer.stopper.best_fitness = 0.0
        store_rounds(trainer.ema.ema, StoredRounds(pruner.state_dict(), self._earlier))

    def on_train_end(self, trainer: Any) -> None:
        """Warns if the training has ended before the last round.

        Args:
            trainer: Ultralytics' trainer.
        """
        self._is_complete = True
        self._warn_of_missing_rounds()

    def teardown(self, trainer: Any) -> None:
        """Takes the callback off the object, also after an error.

        Args:
            trainer: Ultralytics' trainer.
        """
        yolo, self._yolo = self._yolo, None
        for event in _EVENTS:
            yolo.callbacks[event].remove(getattr(self, event))
        # After a whole training ultralytics loads best.pt, which has a plan if there was a round.
        is_pruned = not self._is_complete or self._whole_plan() is not None
        if not is_pruned or (not self._is_complete and stored_plan(yolo.model) is None):
            yolo.__class__ = self._class

    def _start(self, trainer: Any, stored: StoredRounds | None) -> None:
        model = unwrap_model(trainer.model)
        self._earlier = stored_plan(model) if stored is None else stored.earlier
        size = trainer.args.imgsz if self._imgsz is None else self._imgsz
        drawn = torch.Generator().manual_seed(0)
        example = torch.rand(1, model.yaml.get("channels", 3), size, size, generator=drawn).to(trainer.device)
        self.pruner = TrainingPruner(
            trainer.model,
            trainer.optimizer,
            example,
            budget=self._budget,
            schedule=self._schedule,
            copies=[trainer.ema],
            images=self._images_of(trainer, size),
            state=None if stored is None else stored.pruner,
            **self._options,
        )
        self._average = trainer.ema.ema
        self._store_plan(trainer)

    def _images_of(self, trainer: Any, size: int) -> Any:
        if self._images is None and self._schedule.recover in (IMAGES, BATCH_NORM):
            return training_images(self._yolo, unwrap_model(trainer.model), trainer.data["train"], size)
        if isinstance(self._images, str | os.PathLike):
            return calibration_images(self._yolo, self._images, imgsz=size)
        return self._images

    def _check_is_long_enough(self, trainer: Any) -> None:
        """Raises if the training will end before the last round."""
        unit, last = self._schedule.unit, self._schedule.at[-1]
        most = trainer.epochs if unit == EPOCHS else trainer.epochs * len(trainer.train_loader)
        if last > most and not trainer.args.time:  # with a limit of time, epochs are only an estimate
            which = "first" if self._schedule.curve == UNTIL_BUDGET else "last"
            raise ArgumentError(
                f"the {which} round comes after {last} {unit}, but the training has at most {most}: train longer, or "
                "let the schedule end earlier"
            )

    def _note(self, trainer: Any, made: PruningRound | None) -> None:
        """After a round: the networks carry its plan, and figures of the wider network no longer count as the best."""
        if made is None or made.plan is None:
            return
        self._store_plan(trainer)
        trainer.best_fitness = trainer.fitness = None
        trainer.stopper.best_fitness = 0.0

    def _store_plan(self, trainer: Any) -> None:
        plan = self._whole_plan()
        if plan is not None:
            for model in unwrap_model(trainer.model), trainer.ema.ema:
                store_plan(model, plan)

    def _whole_plan(self) -> Plan | None:
        """The plan against the network of the YAML file."""
        own = None if self.pruner is None else self.pruner.plan
        return own if self._earlier is None else self._earlier if own is None else compose(self._earlier, own)


def _is_finite(trainer: Any) -> bool:
    return trainer.loss is None or bool(trainer.loss.isfinite())


def _rounds_in(file: Any) -> StoredRounds:
    """The state of the pruning in a checkpoint."""
    rounds = stored_rounds(load_checkpoint(file)[0])
    if rounds is None:
        raise CheckpointError(
            f"{file} has no state of a PruningCallback: resume the last.pt of a training that had one, or resume "
            "without attach"
        )
    return rounds
