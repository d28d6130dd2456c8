"""The training loop of :func:`fec_fast.finetune`: epochs, steps and saved states, for any task, on accelerate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..utils.arguments import batches_of
from ..utils.errors import TrainingError, TrainingInterrupted
from ..utils.evaluation import is_at_chance
from ..utils.modules import unwrap
from ..utils.random_state import generators_of, seed_all
from ..utils.user_warnings import warn_user
from .batches import is_plain
from .ema import ModelEma
from .fsdp import copy_for_sharding, gather_tensors, shard, shard_like, uses_fsdp2
from .gradients import accumulation_scale, check_gradients
from .history import Epoch, best_epoch_of
from .inputs import TrainingInputs
from .interrupt import Interrupt, deferred_interrupt
from .lr_schedule import LRSchedule
from .optimizer import build_optimizer
from .progress import TrainingProgress
from .progress_bar import ProgressBar
from .sparsity import SparseTraining
from .state import TrainingState, copied_state, write_state
from .trackers import log_values

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trainer:
    """One training.

    Three networks may exist. ``inputs.model`` is the caller's, and ``callers`` the same without wrappers. ``model``
    holds the weights that the optimizer changes: it is ``callers``, or a sharded copy of it under FSDP2.
    ``average.model`` holds their moving average.

    Attributes:
        model: The network that the optimizer changes, without wrappers.
        history: The finished epochs.
        stopped: What ended the training; ``None`` until then.
    """

    def __init__(self, accelerator: Accelerator, inputs: TrainingInputs, conditions: dict[str, Any]) -> None:
        """Moves the networks to the accelerator's device and wraps model, optimizer and loaders.

        Args:
            accelerator: Gives device, precision and processes.
            inputs: What to train.
            conditions: The result of :meth:`TrainingInputs.conditions`; saved in the state.
        """
        self.accelerator, self.inputs, self.conditions = accelerator, inputs, conditions
        self.settings = inputs.settings
        self.history: list[Epoch] = []
        self.stopped: str | None = None
        self.best_weights: dict[str, Any] = {}
        self.out_of_time = False
        self.schedule = LRSchedule.from_settings(inputs.settings)
        inputs.model.to(accelerator.device)  # its value is not used, nor train's and eval's: some models' are nothing
        self.sharded = uses_fsdp2(accelerator)
        self.callers = unwrap(inputs.model)
        self.model = copy_for_sharding(self.callers) if self.sharded else self.callers
        decay = self.settings.ema_decay
        self.average = None if decay is None else ModelEma(self.model, decay, per_tensor=self.sharded)
        self.plain_optimizer = build_optimizer((p for p in self.model.parameters() if p.requires_grad), self.settings)
        self.loader, self.held_out = self._prepare_loader(inputs.train_loader), self._prepare_loader(inputs.val_loader)
        loaders = (inputs.train_loader, self.loader, inputs.val_loader, self.held_out)
        self.generators = [generator for loader in loaders for generator in generators_of(loader)]
        average = None if self.average is None else self.average.model
        if self.sharded:
            self.network, self.optimizer = shard(accelerator, self.model, self.plain_optimizer, average)
        else:
            prepared = accelerator.prepare(inputs.model, self.plain_optimizer, device_placement=[False, None])
            self.network, self.optimizer = prepared
        self.sparse = SparseTraining(inputs.sparsify, self.model, average)
        # Listed after sharding, which replaces the parameters.
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.batches = len(self.loader)  # of this process
        self.progress = TrainingProgress(self.settings, self.batches, self.held_out, accelerator)
        if inputs.teacher is not None:
            inputs.teacher.to(accelerator.device)
            inputs.teacher.eval()
        # Last, because it puts hooks on the networks that only close() removes.
        self.objective = inputs.task.objective(self.model, inputs.teacher, self.settings, accelerator)

    def _prepare_loader(self, loader: Any) -> Any:
        """Shares the batches of a DataLoader among the processes; other iterables are returned as they are."""
        return self.accelerator.prepare_data_loader(loader) if is_plain(loader) else loader

    def close(self) -> None:
        """Removes hooks and wrappers from the networks, and the gradients of a step that was not finished."""
        self.objective.close()
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        self.plain_optimizer.zero_grad()

    def run(self, state: TrainingState | None, show_progress: bool) -> None:
        """Trains to the end and leaves the resulting weights in the caller's model.

        Args:
            state: The state to resume from; ``None`` starts from the beginning.
            show_progress: Shows a progress bar in one process per machine.

        Raises:
            TrainingError: The loss became infinite or NaN.
            TrainingInterrupted: Ctrl-C was pressed.
        """
        shown = show_progress and self.accelerator.is_local_main_process
        self.model.zero_grad()  # of a backward pass before, also where a parameter is not trained
        with deferred_interrupt() as interrupt:
            try:
                if state is not None:
                    self._restore_state(state)
                with ProgressBar(self.settings.epochs, self.inputs.task.main_metric, shown=shown) as bar:
                    while self.stopped is None:
                        interrupt.raise_if_pressed()
                        row = self.train_epoch(bar, interrupt)
                        if row is not None:
                            self.history.append(row)
                            bar.end_epoch(row)
                            self.accelerator.log(log_values(row), step=row.epoch)
                        self.stopped = self._stop_reason()
                        self.finish_epoch(row)
                self.sparse.finish()
                if self.resulting is not self.inputs.model:
                    self.callers.load_state_dict(self.resulting.state_dict())
                if self.best_weights:
                    self.callers.load_state_dict(self.best_weights)
                interrupt.raise_if_pressed()
            except KeyboardInterrupt as error:
                raise TrainingInterrupted(self._interrupted_message()) from error
            except Exception as error:
                # The same Ctrl-C also ends the loader's worker processes, which then fails here as another error.
                if interrupt.pressed:
                    raise TrainingInterrupted(self._interrupted_message()) from error
                raise

    @property
    def resulting(self) -> nn.Module:
        """The full network that is evaluated and that results: the moving average if there is one."""
        # Under FSDP2 the caller's model has received the weights, averaged or not, from _gather_weights.
        return self.inputs.model if self.average is None or self.sharded else self.average.model

    def train_epoch(self, bar: ProgressBar, interrupt: Interrupt) -> Epoch | None:
        """Makes one pass over the training data and evaluates the network.

        Args:
            bar: Shows the progress.
            interrupt: Tells whether Ctrl-C was pressed.

        Returns:
            The figures of the epoch; ``None`` if ``max_minutes`` left no time for a single step.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            TrainingError: The data gave no batch, or the loss became infinite or NaN.
        """
        start = time.perf_counter()
        number = len(self.history)
        earlier_seconds = sum(row.seconds for row in self.history)
        self._seed_epoch(number)
        self.network.train()
        loss_sum, images, lr = 0.0, 0, self.settings.lr
        batches, end = batches_of(self.loader, "train_loader"), object()
        # Asked once more after the last batch: accelerate's loader ends its part of the epoch then.
        for batch_number in range(self.batches + 1):
            with interrupt.at_once():  # a loader may take long, and nothing has changed yet
                batch = next(batches, end)
            if (batch is end) != (batch_number == self.batches):
                self._check_batch_count(batch_number, number)
            if batch is end or batch_number == self.batches:
                break
            step = number * self.batches + batch_number
            if batch_number % self.settings.accumulate == 0:  # an optimizer step begins
                self.progress.begin_step(step, batch_number, earlier_seconds, time.perf_counter() - start)
                if self.progress.share >= 1.0 and step:
                    self.out_of_time = True
                    break
                lr = self.schedule.lr_at(min(self.progress.share, 1.0))
            loss, count = self._train_step(batch, lr, batch_number, f"step {step + 1} (epoch {number + 1})")
            loss_sum += loss * count
            images += count
            interrupt.raise_if_pressed()
            speed = images * self.accelerator.num_processes / (time.perf_counter() - start)
            bar.update(self.history, self.progress.share, loss, speed)
        if not images:
            return None
        self.progress.end_epoch(number + 1)
        # Sums over images, not means over batches: batches and processes may have different numbers of images.
        from accelerate.utils import gather_object

        loss_sum, images = (sum(part) for part in zip(*gather_object([(loss_sum, images)]), strict=True))
        metrics = self.objective.metrics()
        held_out = self._evaluate(interrupt)
        if number == 0 and held_out is not None:
            self._warn_if_at_chance(held_out)
        return Epoch(number + 1, loss_sum / images, metrics, held_out, lr, images, time.perf_counter() - start)

    def _train_step(self, batch: Any, lr: float, batch_number: int, where: str) -> tuple[float, int]:
        """Trains on one batch; returns its loss and its number of images."""
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr
        # Inside this context accelerate's wrapper of the optimizer skips the step until a group of batches is complete.
        with self.accelerator.accumulate(self.network):
            loss = self.objective.loss(self.network, batch, where)
            value = loss.value.item()
            # Checked before the backward pass, so that the weights are still those before the step.
            if not math.isfinite(value):
                self.plain_optimizer.zero_grad()
                raise TrainingError(self._not_finite_message(value, where, lr))
            self.accelerator.backward(
                loss.value * accumulation_scale(batch_number, self.settings.accumulate, self.batches)
            )
            if self.accelerator.sync_gradients and self.accelerator.scaler is None:
                check_gradients(
                    self.trained, lambda: self._not_finite_message("finite, but not its gradient,", where, lr)
                )
            if self.accelerator.sync_gradients and self.settings.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            if self.average is not None:
                self.average.update()
            self.sparse.step(lr, self.progress)
        return value, loss.images

    def _seed_epoch(self, epoch: int) -> None:
        """Seeds all random numbers of an epoch from ``(seed, epoch)`` alone.

        This is what makes a resumed training give the same bits: no random state has to be stored, and an epoch does
        not depend on how many numbers the epochs before it drew.
        """
        # The constants are arbitrary. A large odd factor keeps the epochs of neighbouring seeds apart.
        epoch_seed = (self.settings.seed * 1_000_003 + epoch) % 2**32
        for generator in self.generators:
            generator.manual_seed(epoch_seed)
        # The order of the data has to be the same in all processes (the generators above); augmentation, mixup and
        # dropout should differ between them, because they see different images.
        seed_all((epoch_seed + self.accelerator.process_index * 715_827_883) % 2**32)
        if hasattr(self.loader, "iteration"):  # accelerate passes it to the set_epoch of samplers
            self.loader.iteration = epoch

    def _check_batch_count(self, batches: int, epoch: int) -> None:
        """Reports a loader that gives fewer or more batches than its length says."""
        if batches == 0:
            raise TrainingError(
                f"train_loader gave no batch in epoch {epoch + 1}, though its length is {self.batches}: it can be gone "
                "through only once; give a torch DataLoader, or a list of batches"
            )
        gave, rest = f"{batches} batches", "the learning rate follows the length"
        if batches == self.batches:
            gave, rest = "more batches", "the rest is left out"
        warn_user(f"train_loader gave {gave} in epoch {epoch + 1}, its length is {self.batches}: {rest}")

    def _evaluate(self, interrupt: Interrupt) -> dict[str, float] | None:
        """Returns the metrics on the held-out data; ``None`` without such data."""
        for network in (self.model, *([] if self.average is None else [self.average.model])):
            self._broadcast_buffers(network)
        self._gather_weights()
        if self.held_out is None:
            return None
        start = time.perf_counter()
        # Only a plain DataLoader is shared among the processes; otherwise each of them evaluates all held-out data.
        accelerator = self.accelerator if is_plain(self.inputs.val_loader) else None
        with interrupt.at_once():
            metrics = self.inputs.task.evaluate(self.resulting, self.held_out, accelerator)
        self.progress.evaluation_seconds = time.perf_counter() - start
        return metrics

    def _warn_if_at_chance(self, held_out: Mapping[str, float]) -> None:
        """Warns if a classifier knows nothing of the held-out data after the first epoch."""
        # Objectives of other tasks, which users may write, do not count classes.
        classes = getattr(self.objective, "classes", None)
        accuracy = held_out.get("accuracy")
        if not self.accelerator.is_main_process or classes is None or accuracy is None:
            return
        if is_at_chance(accuracy, classes):
            warn_user(
                f"after the first epoch the held-out accuracy of {accuracy:.4f} is about that of guessing among "
                f"{classes} classes: was too much pruned, is the learning rate of {self.settings.lr:g} too high, or do "
                "labels and normalisation differ between the loaders?"
            )

    def _broadcast_buffers(self, network: nn.Module) -> None:
        """Broadcasts rank 0's buffers.

        Each process updates batch norm's running statistics from its own images, so they differ between processes.
        """
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in network.buffers():
                buffer.copy_(broadcast(buffer.clone()))

    def _gather_weights(self) -> None:
        """Under FSDP2, copies the resulting weights into the caller's model. Collective: all processes call it."""
        if self.sharded:
            source = self.model if self.average is None else self.average.model
            self.callers.load_state_dict(gather_tensors(source.state_dict()))

    def _stop_reason(self) -> str | None:
        """Returns why the training is over; ``None`` if it is not."""
        if self.out_of_time:
            return "time"
        if len(self.history) == self.settings.epochs:
            return "epochs"
        if self.settings.patience is not None:
            best = best_epoch_of(self.history, self.inputs.task.main_metric)
            if best is not None and len(self.history) - best >= self.settings.patience:
                return "patience"
        return None

    def finish_epoch(self, row: Epoch | None) -> None:
        """Keeps the weights if they are the best so far, and saves the state.

        Args:
            row: The figures of the epoch; ``None`` if it had no step.
        """
        selects_best = self.settings.patience is not None and row is not None
        if selects_best and best_epoch_of(self.history, self.inputs.task.main_metric) == len(self.history):
            self.best_weights = copied_state(unwrap(self.resulting))
        if self.inputs.state_folder is not None:
            state = self._capture_state()  # collective under FSDP2, so not in the main process alone
            if self.accelerator.is_main_process:
                write_state(self.inputs.state_folder, state)
        self.accelerator.wait_for_everyone()

    def _capture_state(self) -> TrainingState:
        """Collects what is needed to resume after the last finished epoch. Collective under FSDP2."""
        optimizer_tensors = {
            f"{entry}/{name}": value
            for name, parameter in self.trained.items()
            for entry, value in self.plain_optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        scaler = self.accelerator.scaler
        return TrainingState(
            epoch=len(self.history),
            settings=self.conditions,
            history=[asdict(row) for row in self.history],
            progress=self.progress.share,
            stopped=self.stopped,
            scaler=None if scaler is None else scaler.state_dict(),
            model=gather_tensors(self.model.state_dict()),
            optimizer=gather_tensors(optimizer_tensors),
            average={} if self.average is None else gather_tensors(self.average.state_dict()),
            best=self.best_weights,
        )

    def _restore_state(self, state: TrainingState) -> None:
        """Restores a state that was checked to fit this training."""
        for network, stored in ((self.model, state.model), (self.average, state.average)):
            if network is not None:
                own = network.state_dict()
                network.load_state_dict({key: shard_like(own[key], value) for key, value in stored.items()})
        for key, value in state.optimizer.items():
            entry, _, name = key.partition("/")
            parameter = self.trained[name]
            # Momentum and the like get the device, memory format and sharding of the parameter. A count of steps stays
            # on the CPU and in float32, where torch's optimizers keep it.
            if entry != "step":
                value = torch.empty_like(parameter).copy_(shard_like(parameter, value))
            self.plain_optimizer.state[parameter][entry] = value
        self._gather_weights()
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.history = [Epoch(**row) for row in state.history]
        self.progress.share, self.stopped, self.best_weights = state.progress, state.stopped, state.best

    def _not_finite_message(self, value: float | str, where: str, lr: float) -> str:
        """Error message for a loss that is infinite or NaN."""
        if self.inputs.state_folder is None:
            last = "no state was kept (checkpoint=None)"
        elif self.history:
            last = f"the last good state is the one after epoch {len(self.history)}, in {self.inputs.state_folder}"
        else:
            last = "no epoch was finished, so there is no state to resume from"
        return f"the loss is {value} at {where}, learning rate {lr:g}; {last}. Check the images for NaN, or lower lr"

    def _interrupted_message(self) -> str:
        """Error message for Ctrl-C: where the state is, and how to continue."""
        done = len(self.history)
        if self.stopped is not None:
            return f"interrupted after the last epoch, {done}: the training is finished, and the model has its weights"
        if self.inputs.state_folder is None:
            return f"interrupted in epoch {done + 1}; no state was kept: checkpoint= (--state) names a folder for it"
        if not done:
            return "interrupted in epoch 1; no epoch was finished, so there is no state to resume from"
        return (
            f"interrupted in epoch {done + 1}; the state after epoch {done} is in {self.inputs.state_folder}: continue "
            "with resume=True (--resume), which repeats the unfinished epoch and gives the same numbers"
        )
