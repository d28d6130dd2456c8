"""The engine of :func:`fec_fast.finetune`: epochs, steps and states, for any task, on Hugging Face accelerate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..utils.errors import TrainingError, TrainingInterrupted
from ..utils.forward import restored_modes
from ..utils.random_state import generators_of, seed_all
from . import state as states
from .ema import Average
from .fsdp import copied, like, splits_weights, taken_apart, whole
from .history import Epoch, best_of
from .interrupt import deferred_interrupt
from .lr_schedule import Schedule
from .settings import TrainingSettings
from .tasks.base import Task
from .trackers import logged

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Job:
    """Who is trained on what.

    Attributes:
        task: What for.
        model: The network.
        teacher: The network to be imitated, if any.
        train_loader: Training data.
        val_loader: Held-out data, if any.
        settings: How.
        folder: Where the state of the training is kept, if anywhere.
    """

    task: Task
    model: nn.Module
    teacher: nn.Module | None
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    settings: TrainingSettings
    folder: Path | None

    def facts(self, batches: int, processes: int) -> dict[str, Any]:
        """Everything that the numbers depend on, but for data and model: what a state is compared by."""
        facts = {"task": self.task.name, "steps_per_epoch": batches, "processes": processes}
        return {**asdict(self.settings), **facts, "distilled": self.teacher is not None}


class Training:
    """One run of :func:`fec_fast.finetune`.

    Attributes:
        model: The network that is trained: the job's, or, where FSDP splits the weights, a copy of it.
        history: The finished epochs.
        stopped: What ended the training; ``None`` until then.
    """

    def __init__(self, accelerator: Accelerator, job: Job, facts: dict[str, Any]) -> None:
        """Moves everything to the device and wraps it; :meth:`close` undoes that."""
        self.accelerator, self.job, self.facts = accelerator, job, facts
        self.settings = job.settings
        self.history: list[Epoch] = []
        self.stopped: str | None = None
        self.best: dict[str, Tensor] = {}
        self.progress = 0.0
        self.cut = False
        self.validation_seconds: float | None = None
        self.schedule = Schedule.of(job.settings)
        self.modes = ExitStack()  # closed by close(), which restores the modes
        self.modes.enter_context(restored_modes(job.model, *([] if job.teacher is None else [job.teacher])))
        self.forward = vars(job.model).get("forward")
        job.model.to(accelerator.device)
        self.sharded = splits_weights(accelerator)
        self.model = copied(job.model) if self.sharded else job.model
        decay = self.settings.ema_decay
        self.average = None if decay is None else Average(self.model, decay, one_by_one=self.sharded)
        self.plain_optimizer = _optimizer((p for p in self.model.parameters() if p.requires_grad), self.settings)
        self.loader, self.held_out = self._shared(job.train_loader), self._shared(job.val_loader)
        loaders = (job.train_loader, self.loader, job.val_loader, self.held_out)
        self.generators = [generator for loader in loaders for generator in generators_of(loader)]
        if self.sharded:
            average = None if self.average is None else self.average.model
            self.prepared, self.optimizer = taken_apart(accelerator, self.model, self.plain_optimizer, average)
        else:
            self.prepared, self.optimizer = accelerator.prepare(self.model, self.plain_optimizer)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.batches = len(self.loader)  # of this process
        teacher = None if job.teacher is None else job.teacher.to(accelerator.device).eval()
        # Last: what it puts on the model is taken off by close().
        self.objective = job.task.objective(self.model, teacher, self.settings, accelerator)

    def _shared(self, loader: Any) -> Any:
        """A loader of which every process gets its part."""
        if isinstance(loader, DataLoader):
            return self.accelerator.prepare_data_loader(loader)
        return loader

    def close(self) -> None:
        """Takes accelerate's wrappers off the model and restores the modes."""
        self.objective.close()
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        # accelerate leaves an attribute that shadows the class's method.
        if self.forward is None:
            vars(self.job.model).pop("forward", None)
        else:
            self.job.model.forward = self.forward
        self.modes.close()

    def run(self, state: states.TrainingState | None, progress: bool) -> None:
        """Trains to the end, from a state if there is one, and leaves the resulting weights in the model."""
        if state is not None:
            self.restore(state)
        show = progress and self.accelerator.is_local_main_process
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with deferred_interrupt() as interrupted:
            try:
                with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
                    line = bar.add_task("", total=1.0)
                    while self.stopped is None:
                        row = self.epoch(_Line(bar, line), interrupted)
                        if row is not None:
                            self.history.append(row)
                            self.accelerator.log(logged(row), step=row.epoch)
                        self.stopped = self.reason()
                        self.keep(row)
            except KeyboardInterrupt as error:
                raise TrainingInterrupted(self.how_to_go_on()) from error
            except Exception as error:
                if interrupted():  # such as a worker of the loader that the same Ctrl-C has ended
                    raise TrainingInterrupted(self.how_to_go_on()) from error
                raise
        if self.evaluated is not self.job.model:
            self.job.model.load_state_dict(self.evaluated.state_dict())
        if self.best:
            self.job.model.load_state_dict(self.best)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and that results: the average where one is kept, put together if need be."""
        return self.job.model if self.average is None or self.sharded else self.average.model

    def put_together(self) -> None:
        """Gives the job's model the weights that result, where they lie in parts; all processes together."""
        if self.sharded:
            parts = self.model if self.average is None else self.average.model
            self.job.model.load_state_dict(whole(parts.state_dict()))

    def reason(self) -> str | None:
        """Why the training is over; ``None`` if it is not."""
        if self.cut:
            return "time"
        if len(self.history) == self.settings.epochs:
            return "epochs"
        if self.settings.patience is not None:
            best = best_of(self.history, self.job.task.main_metric)
            if best is not None and len(self.history) - best >= self.settings.patience:
                return "patience"
        return None

    def keep(self, row: Epoch | None) -> None:
        """Remembers the best weights and writes the state, after an epoch."""
        patient = self.settings.patience is not None and row is not None
        if patient and best_of(self.history, self.job.task.main_metric) == len(self.history):
            self.best = {key: value.detach().cpu().clone() for key, value in self.evaluated.state_dict().items()}
        if self.job.folder is not None:
            state = self.state()
            if self.accelerator.is_main_process:
                states.write(self.job.folder, state)
        self.accelerator.wait_for_everyone()

    def epoch(self, line: _Line, interrupted: Callable[[], bool]) -> Epoch | None:
        """One pass over the data; ``None`` if there was no time for a single step."""
        start = time.perf_counter()
        number = len(self.history)
        self.seed(number)
        self.prepared.train()
        loss_sum, images, rate = 0.0, 0, self.settings.lr
        for batch_number, batch in enumerate(self.loader):
            step = number * self.batches + batch_number
            if batch_number % self.settings.accumulate == 0:  # where a step of the optimizer begins
                self.progress = self.advance(step, time.perf_counter() - start, batch_number)
                if self.progress >= 1.0 and step:
                    self.cut = True
                    break
                rate = self.schedule.rate(min(self.progress, 1.0))
            loss, count = self.step(batch, rate, batch_number, f"step {step + 1} (epoch {number + 1})")
            loss_sum += loss * count
            images += count
            if interrupted():
                raise KeyboardInterrupt
            seen = images * self.accelerator.num_processes
            line.show(self, loss, seen / (time.perf_counter() - start))
        if not images:
            return None
        if self.settings.max_minutes is None:
            self.progress = (number + 1) / self.settings.epochs
        from accelerate.utils import gather_object

        loss_sum, images = (sum(part) for part in zip(*gather_object([(loss_sum, images)]), strict=True))
        metrics = self.objective.metrics()
        held_out = self.evaluate()
        seconds = time.perf_counter() - start
        return Epoch(number + 1, loss_sum / images, metrics, held_out, rate, images, seconds)

    def evaluate(self) -> dict[str, float] | None:
        """The metrics on held-out data."""
        for module in (self.model, *([] if self.average is None else [self.average.model])):
            self.agree(module)
        self.put_together()
        if self.held_out is None:
            return None
        start = time.perf_counter()
        together = self.accelerator if isinstance(self.held_out, DataLoader) else None
        metrics = self.job.task.evaluate(self.evaluated, self.held_out, together)
        self.validation_seconds = time.perf_counter() - start
        return metrics

    def agree(self, module: nn.Module) -> None:
        """Gives all processes the first one's buffers: batch norm's statistics are of each one's own images."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in module.buffers():
                buffer.copy_(broadcast(buffer.clone()))

    def advance(self, step: int, seconds: float, batch_number: int) -> float:
        """How much of the training is done before a step: by the count of steps, or by the clock if that is ahead."""
        share = step / (self.settings.epochs * self.batches)
        if self.settings.max_minutes is None:
            return share
        spent = sum(row.seconds for row in self.history) + seconds
        reserve = self.validation_seconds
        if reserve is None:
            # Until an evaluation was timed: without a backward pass, a batch takes about a third of a step.
            batches = len(self.held_out) if isinstance(self.held_out, Sized) else 0
            reserve = batches * seconds / max(1, batch_number) / 3
        allowed = max(60 * self.settings.max_minutes - reserve, spent, 1e-9)
        clock = torch.tensor(spent / allowed, device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            clock = broadcast(clock)
        return max(self.progress, share, float(clock))

    def step(self, batch: Any, rate: float, batch_number: int, where: str) -> tuple[float, int]:
        """One batch: its loss, and how many images it has."""
        for group in self.plain_optimizer.param_groups:
            group["lr"] = rate
        with self.accelerator.accumulate(self.prepared):
            loss = self.objective.loss(self.prepared, batch, where)
            value = loss.value.item()
            # Looked at before the weights change, so that they stay as they were when training stops here.
            if not math.isfinite(value):
                self.plain_optimizer.zero_grad()
                raise TrainingError(self.not_finite(value, where, rate))
            self.accelerator.backward(loss.value * self.share(batch_number))
            if self.accelerator.sync_gradients and self.settings.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.average is not None and self.accelerator.sync_gradients:
            self.average.update()
        return value, loss.images

    def share(self, batch_number: int) -> float:
        """What makes up for a last group of batches that is not full: accelerate divides by the full number."""
        number = self.settings.accumulate
        first = batch_number // number * number
        return number / min(number, self.batches - first)

    def seed(self, epoch: int) -> None:
        """Makes the randomness of an epoch depend on nothing but seed and epoch."""
        # Any fixed one-to-one mapping does; a large odd factor keeps neighbouring seeds apart.
        mixed = (self.settings.seed * 1_000_003 + epoch) % 2**32
        for generator in self.generators:
            generator.manual_seed(mixed)
        # Processes see different images, so their augmentation may differ too; their order may not.
        seed_all((mixed + self.accelerator.process_index * 715_827_883) % 2**32)
        if hasattr(self.loader, "iteration"):  # accelerate's count of epochs, for samplers with set_epoch
            self.loader.iteration = epoch

    def not_finite(self, value: float, where: str, rate: float) -> str:
        """Words for a loss that is infinite or NaN."""
        if self.job.folder is not None and self.history:
            last = f"the last good state is that after epoch {len(self.history)}, in {self.job.folder}"
        elif self.job.folder is not None:
            last = "no epoch was finished, so there is no state to go back to"
        else:
            last = "no state was kept (checkpoint=None)"
        return f"the loss is {value} at {where}, learning rate {rate:g}; {last}. Check the images for NaN, or lower lr"

    def how_to_go_on(self) -> str:
        """Words for Ctrl-C."""
        done = len(self.history)
        if self.job.folder is None:
            return f"interrupted in epoch {done + 1}; no state was kept (checkpoint=None)"
        if not done:
            return "interrupted in epoch 1; no epoch was finished, so there is no state to go on from"
        return (
            f"interrupted in epoch {done + 1}; the state after epoch {done} is in {self.job.folder}: go on with "
            "resume=True (--resume), which repeats the unfinished epoch and comes to the same numbers"
        )

    def state(self) -> states.TrainingState:
        """What is needed to go on after the last finished epoch; asked for by all processes together."""
        tensors = {
            f"{key}/{name}": value
            for name, parameter in self.named.items()
            for key, value in self.plain_optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        scaler = self.accelerator.scaler
        return states.TrainingState(
            epoch=len(self.history),
            settings=self.facts,
            history=[asdict(row) for row in self.history],
            progress=self.progress,
            stopped=self.stopped,
            scaler=None if scaler is None else scaler.state_dict(),
            model=whole(self.model.state_dict()),
            optimizer=whole(tensors),
            average={} if self.average is None else whole(self.average.state()),
            best=self.best,
        )

    def restore(self, state: states.TrainingState) -> None:
        """Goes back to a state that was checked to fit."""
        own = self.model.state_dict()
        self.model.load_state_dict({key: like(own[key], value) for key, value in state.model.items()})
        for key, value in state.optimizer.items():
            what, _, name = key.partition("/")
            parameter = self.named[name]
            # Copied into the layout of the parameter; a count of steps stays where the optimizer wants it.
            if value.ndim or not parameter.ndim:
                value = torch.empty_like(parameter).copy_(like(parameter, value))
            self.plain_optimizer.state[parameter][what] = value
        if self.average is not None:
            own = self.average.state()
            self.average.restore({key: like(own[key], value) for key, value in state.average.items()})
        self.put_together()
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.history = [Epoch(**row) for row in state.history]
        self.progress, self.stopped, self.best = state.progress, state.stopped, state.best


class _Line:
    """The progress bar's one line."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def show(self, training: Training, loss: float, speed: float) -> None:
        """Shows where the training is: loss, the last epoch's main metric, images/s over all processes."""
        metric = training.job.task.main_metric
        words = f"epoch {len(training.history) + 1}/{training.settings.epochs}  loss {loss:.3f}"
        if training.history:
            row = training.history[-1]
            known, kind = (row.metrics, "training") if row.held_out is None else (row.held_out, "held-out")
            if metric in known:
                words += f"  {kind} {metric} {known[metric]:.4f}"
        self.bar.update(self.task, completed=training.progress, description=f"{words}  {speed:,.0f} images/s")


def _optimizer(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
