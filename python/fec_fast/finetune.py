"""Training of classifiers after pruning (or before it), on Hugging Face accelerate."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from . import resume as states
from .batches import check_data, check_labels, device_of, length, pair
from .errors import ArgumentError, InputError, TrainingError, nearest
from .surroundings import borrowed_accelerator, check_accelerate, generators_of, restored_randomness, seed_all

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean training loss.
        accuracy: Share of training images classified right while training, in [0, 1].
        val_accuracy: Share of held-out images classified right after it; ``None`` without a ``val_loader``.
        lr: Learning rate of its last step.
        seconds: Wall-clock time, evaluation included.
    """

    epoch: int
    loss: float
    accuracy: float
    val_accuracy: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class FinetuneResult:
    """A finished training.

    Attributes:
        model: The trained model, the same object that was given.
        history: One row an epoch, those before a resume included.
    """

    model: nn.Module
    history: list[Epoch]


@dataclass(frozen=True)
class _Settings:
    """Everything but data and model that the numbers of a training depend on."""

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    distilled: bool
    distill_weight: float
    temperature: float
    mixed_precision: str
    seed: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for name in ("epochs", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r}: give an integer")
        if self.epochs < 1:
            raise InputError(f"epochs={self.epochs}: give at least 1")
        for name, low, high, words in (
            ("lr", math.ulp(0.0), math.inf, "a positive number"),
            ("momentum", 0.0, 1.0, "a number in [0, 1)"),
            ("weight_decay", 0.0, math.inf, "a number that is not negative"),
            ("label_smoothing", 0.0, 1.0, "a number in [0, 1)"),
            ("distill_weight", 0.0, math.nextafter(1.0, 2.0), "a number in [0, 1]"),
            ("temperature", math.ulp(0.0), math.inf, "a positive number"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentError(f"{name}={value!r}: give {words}")
            if not low <= value < high:
                raise InputError(f"{name}={value!r}: give {words}")
        precisions = ("no", "fp16", "bf16")
        if self.mixed_precision not in precisions:
            raise InputError(f"mixed_precision={self.mixed_precision!r}: {nearest(self.mixed_precision, precisions)}")

    def lr_at(self, done: float) -> float:
        """Learning rate after a number of epochs, not necessarily whole: half a cosine from ``lr`` down to 0."""
        return 0.5 * self.lr * (1.0 + math.cos(math.pi * done / self.epochs))


def evaluate(model: nn.Module, loader: Iterable[Any]) -> float:
    """Measures accuracy. The model's mode is restored and nothing else of it changes.

    Args:
        model: Takes images ``[B, ...]``, returns logits ``[B, classes]``; runs on the device it is on.
        loader: Yields pairs of images and labels int ``[B]``.

    Returns:
        The share of images whose largest logit is the label's, in [0, 1].

    Raises:
        InputError: The loader is empty, or a batch is no such pair.
    """
    device = device_of(model)
    right = total = 0
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for images, labels in map(pair, loader):
                images, labels = images.to(device), labels.to(device)
                right += int((model(images).argmax(1) == labels).sum())
                total += len(labels)
    finally:
        for module, mode in modes:
            module.training = mode
    if total == 0:
        raise InputError("the loader to evaluate on is empty")
    return right / total


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    val_loader: Iterable[Any] | None = None,
    label_smoothing: float = 0.0,
    teacher: nn.Module | None = None,
    distill_weight: float = 0.5,
    temperature: float = 4.0,
    mixed_precision: str = "no",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FinetuneResult:
    """Trains a classifier in place with SGD and a cosine schedule.

    Every epoch draws its random numbers from ``(seed, epoch)``, so that a resumed training comes to the same numbers
    as one that was never interrupted (bit for bit on the CPU, unless the loader keeps worker processes alive between
    epochs). The caller's random state is restored.

    Args:
        model: Takes images ``[B, ...]``, returns logits ``[B, classes]``. It is trained on, and left on, the device
            that accelerate chooses: the GPU if there is one.
        train_loader: Yields pairs of images and labels int64 ``[B]``; has a length.
        epochs: Passes over the data.
        lr: Learning rate of the first step; falls to 0 along half a cosine.
        momentum: Of SGD.
        weight_decay: Of SGD, on every parameter.
        val_loader: Held-out data, evaluated after every epoch.
        label_smoothing: In [0, 1).
        teacher: A network whose logits are imitated, such as the one before pruning; it is moved to the same device.
        distill_weight: Share of the loss that is imitation, in [0, 1]; without a teacher it has no effect.
        temperature: Softens both networks' logits in the imitation loss (Hinton et al., 2015).
        mixed_precision: ``"no"``, ``"fp16"`` (GPU only) or ``"bf16"``.
        checkpoint: Folder for the state of the training, written anew after every epoch. A training state that is
            there already is replaced.
        resume: Go on from ``checkpoint``; with nothing there, a warning, and training starts from the beginning.
        seed: Of the order of the data, augmentation and dropout.
        progress: Show a bar on the standard error.

    Returns:
        The model and the history.

    Raises:
        InputError: Before anything changes: an empty loader, a label outside the model's classes (in the first
            batch, or anywhere if the data set lists its labels; a later batch is checked when it comes), a model
            that returns no logits or has nothing to train, or a number out of its range.
        ArgumentError: An argument of the wrong kind.
        BackendError: A precision that this device does not have.
        CheckpointError: The folder holds something else, or the state belongs to another training or model.
        TrainingError: The loss became infinite or NaN; the model holds the weights before that step.
        MissingExtraError: accelerate is not installed.
    """
    check_accelerate()
    settings = _Settings(
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        distilled=teacher is not None,
        distill_weight=distill_weight,
        temperature=temperature,
        mixed_precision=mixed_precision,
        seed=seed,
        steps_per_epoch=length(train_loader, "train_loader"),
    )
    if val_loader is not None and isinstance(val_loader, Sized) and len(val_loader) == 0:
        raise InputError("val_loader is empty")
    if teacher is model:
        raise ArgumentError("teacher is the model itself; give a copy from before pruning")
    if resume and checkpoint is None:
        raise ArgumentError("resume=True needs the folder to resume from: checkpoint=...")
    folder = None if checkpoint is None else Path(checkpoint)
    with restored_randomness():
        check_data(model, teacher, train_loader)
        state = None
        if folder is not None:
            states.check_folder(folder)
            if resume and states.exists(folder):
                state = states.read(folder, asdict(settings), model)
            elif resume:
                warnings.warn(f"nothing to resume in {folder}: training starts from the beginning", stacklevel=2)
        with borrowed_accelerator(mixed_precision) as accelerator:
            training = _Training(accelerator, model, teacher, train_loader, val_loader, settings, folder)
            try:
                training.run(state, progress)
            finally:
                training.close()
    return FinetuneResult(model, training.history)


class _Training:
    """One run of :func:`finetune`."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        teacher: nn.Module | None,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None,
        settings: _Settings,
        folder: Path | None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.settings = settings
        self.val_loader = val_loader
        self.folder = folder
        self.history: list[Epoch] = []
        self.generators = generators_of(train_loader)
        self.modes = [(module, module.training) for m in (model, teacher) if m for module in m.modules()]
        self.teacher = None if teacher is None else teacher.to(accelerator.device).eval()
        model.to(accelerator.device)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.sgd = torch.optim.SGD(
            self.named.values(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.forward = vars(model).get("forward")
        self.prepared, self.optimizer, self.loader = accelerator.prepare(model, self.sgd, train_loader)
        self.steps = len(self.loader)  # of this process

    def close(self) -> None:
        """Takes accelerate's wrappers off the model and restores the modes."""
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        # accelerate leaves an attribute that shadows the class's method.
        if self.forward is None:
            vars(self.model).pop("forward", None)
        else:
            self.model.forward = self.forward
        for module, mode in self.modes:
            module.training = mode

    def run(self, state: states.TrainingState | None, progress: bool) -> None:
        """Trains to the end, from a state if there is one."""
        if state is not None:
            self.restore(state)
        show = progress and self.accelerator.is_local_main_process
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
            done = len(self.history)
            task = bar.add_task("", total=self.settings.epochs * self.steps, completed=done * self.steps)
            for epoch in range(done, self.settings.epochs):
                self.history.append(self.epoch(epoch, bar, task))
                if self.folder is not None and self.accelerator.is_main_process:
                    states.write(self.folder, self.state())
                self.accelerator.wait_for_everyone()

    def epoch(self, epoch: int, bar: Progress, task: Any) -> Epoch:
        """One pass over the data."""
        start = time.perf_counter()
        self.seed(epoch)
        self.prepared.train()
        loss_sum = 0.0
        right = total = 0
        rate = self.settings.lr
        steps = self.steps
        for number, batch in enumerate(self.loader):
            rate = self.settings.lr_at(epoch + number / steps)
            loss, correct, count = self.step(batch, rate, f"step {epoch * steps + number + 1} (epoch {epoch + 1})")
            loss_sum += loss * count
            right += correct
            total += count
            bar.update(task, advance=1, description=f"epoch {epoch + 1}/{self.settings.epochs}  loss {loss:.3f}")
        accuracy = None if self.val_loader is None else evaluate(self.model, self.val_loader)
        seconds = time.perf_counter() - start
        return Epoch(epoch + 1, loss_sum / total, right / total, accuracy, rate, seconds)

    def step(self, batch: Any, rate: float, where: str) -> tuple[float, int, int]:
        """One step: its loss, how many images were classified right, and how many there were."""
        images, labels = (part.to(self.accelerator.device) for part in pair(batch))
        for group in self.sgd.param_groups:
            group["lr"] = rate
        logits = self.prepared(images)
        check_labels(labels, logits.shape[1], where)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                target = self.teacher(images).float()
            loss = torch.lerp(loss, self.imitation(logits, target), self.settings.distill_weight)
        value = loss.item()
        # Looked at before the weights change, so that they stay as they were when training stops here.
        if not math.isfinite(value):
            self.sgd.zero_grad()
            raise TrainingError(self.not_finite(value, where, rate))
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value, int((logits.argmax(1) == labels).sum()), len(labels)

    def imitation(self, logits: Tensor, target: Tensor) -> Tensor:
        """Divergence of softened logits, scaled so that its gradient does not fall with the temperature."""
        heat = self.settings.temperature
        student, wanted = F.log_softmax(logits / heat, 1), F.log_softmax(target / heat, 1)
        return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * heat**2

    def not_finite(self, value: float, where: str, rate: float) -> str:
        """Words for a loss that is infinite or NaN."""
        if self.folder is not None and self.history:
            last = f"the last good state is that after epoch {len(self.history)}, in {self.folder}"
        elif self.folder is not None:
            last = "no epoch was finished, so there is no state to go back to"
        else:
            last = "no state was kept (checkpoint=None)"
        return f"the loss is {value} at {where}, learning rate {rate:g}; {last}. Check the images for NaN, or lower lr"

    def seed(self, epoch: int) -> None:
        """Makes the randomness of an epoch depend on nothing but seed and epoch."""
        # Any fixed one-to-one mapping does; a large odd factor keeps neighbouring seeds apart.
        mixed = (self.settings.seed * 1_000_003 + epoch) % 2**32
        for generator in self.generators:
            generator.manual_seed(mixed)
        # Processes see different images, so their augmentation may differ too; their order may not.
        seed_all((mixed + self.accelerator.process_index) % 2**32)
        if hasattr(self.loader, "iteration"):  # accelerate's count of epochs, for samplers with set_epoch
            self.loader.iteration = epoch

    def state(self) -> states.TrainingState:
        """What is needed to go on after the last finished epoch."""
        momentum = {name: self.sgd.state[p].get("momentum_buffer") for name, p in self.named.items()}
        scaler = self.accelerator.scaler
        return states.TrainingState(
            epoch=len(self.history),
            settings=asdict(self.settings),
            history=[asdict(row) for row in self.history],
            scaler=None if scaler is None else scaler.state_dict(),
            model=self.model.state_dict(),
            momentum={name: value for name, value in momentum.items() if value is not None},
        )

    def restore(self, state: states.TrainingState) -> None:
        """Goes back to a state that was checked to fit."""
        self.model.load_state_dict(state.model)
        for name, value in state.momentum.items():
            parameter = self.named[name]
            self.sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(value)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.history = [Epoch(**row) for row in state.history]
