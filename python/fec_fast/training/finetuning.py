"""Training after pruning (or before it), on Hugging Face accelerate: the public call, and what it checks first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from ..utils.batches import length
from ..utils.distributed import check_accelerate
from ..utils.errors import ArgumentError, InputError
from ..utils.evaluation import evaluate
from ..utils.random_state import restored_randomness
from . import state as states
from .accelerator import borrowed_accelerator
from .engine import Job, Training
from .fsdp import splits_weights
from .history import Epoch, FinetuneResult, best_of
from .settings import TrainingSettings
from .tasks.base import Task
from .tasks.classification import Classification
from .trackers import check_logs, start, tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Epoch", "FinetuneResult", "evaluate", "finetune"]


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    settings: TrainingSettings | None = None,
    val_loader: Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    task: Task | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log_dir: str | Path | None = None,
    log_with: str = "csv",
    progress: bool = True,
    **given: Any,
) -> FinetuneResult:
    """Trains a network in place: on one processor, or, started by ``accelerate launch``, on many GPUs and machines.

    Every epoch draws its random numbers from ``(seed, epoch)``, so that a resumed training comes to the same numbers
    as one that was never interrupted (bit for bit on the CPU, unless the loader keeps worker processes alive between
    epochs or the clock has a say, ``max_minutes``). The caller's random state is restored. Ctrl-C ends the training
    after the step that is being computed; what was not finished of the epoch is repeated on resuming. Where accelerate
    was told to split the weights (FSDP2), the model is filled after every epoch, not every step.

    Args:
        model: A classifier takes images ``[B, ...]`` and returns logits ``[B, classes]``; see ``task``. It is trained
            on, and left on, the device that accelerate chooses: the GPU if there is one.
        train_loader: Yields pairs of images and labels int64 ``[B]``; has a length. Under several processes each
            takes a share of its batches, so that the batch of a step is as many times as large.
        settings: How to train; see :class:`fec_fast.TrainingSettings`.
        val_loader: Held-out data, evaluated after every epoch.
        teacher: A network to be imitated, such as the one before pruning; it is moved to the same device.
        task: What the network is trained for; ``None`` is
            :class:`fec_fast.training.tasks.classification.Classification`.
        checkpoint: Folder for the state of the training, written anew after every epoch. A training state that is
            there already is replaced.
        resume: Go on from ``checkpoint``; with nothing there, a warning, and training starts from the beginning.
        log_dir: Folder for logs, one row an epoch; ``None`` keeps none.
        log_with: ``"csv"`` (``metrics.csv``, written anew after every epoch) or ``"tensorboard"``.
        progress: Show a bar on the standard error.
        **given: Settings by name, such as ``epochs=20, lr=0.01``; they prevail over ``settings``.

    Returns:
        The model and the history.

    Raises:
        InputError: Before anything changes: an empty loader, a label outside the model's classes (in the first
            batch, or anywhere if the data set lists its labels; a later batch is checked when it comes), a model
            that returns no logits or has nothing to train, or a number out of its range.
        ArgumentError: An unknown setting, or an argument of the wrong kind.
        LayerError: A module of ``feature_layers`` that does not exist.
        BackendError: A precision that this device does not have, or a way of sharing the work that is not supported.
        CheckpointError: The folder holds something else, or the state belongs to another training or model.
        TrainingError: The loss became infinite or NaN; the model holds the weights before that step (under FSDP2,
            those after the last epoch).
        TrainingInterrupted: Ctrl-C (a ``KeyboardInterrupt``); the message tells how to go on. The model holds the
            weights after the last step (under FSDP2, the last epoch).
        MissingExtraError: accelerate or torchmetrics is not installed, or tensorboard where it is asked for.
    """
    check_accelerate()
    chosen = TrainingSettings.of(settings, given)
    task = task or Classification()
    batches = length(train_loader, "train_loader")
    if val_loader is not None and isinstance(val_loader, Sized) and len(val_loader) == 0:
        raise InputError("val_loader is empty")
    if teacher is model:
        raise ArgumentError("teacher is the model itself; give a copy from before pruning")
    if resume and checkpoint is None:
        raise ArgumentError("resume=True needs the folder to resume from: checkpoint=...")
    if chosen.patience is not None and val_loader is None:
        raise ArgumentError("patience needs held-out data to look at: val_loader=...")
    if chosen.accumulate > 1 and not isinstance(train_loader, DataLoader):
        raise ArgumentError(f"accumulate={chosen.accumulate} needs a torch DataLoader for train_loader")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameter with requires_grad=True: nothing to train")
    folder = None if checkpoint is None else Path(checkpoint)
    logs = check_logs(log_dir, log_with)
    with restored_randomness():
        task.check(model, teacher, train_loader, chosen)
        if folder is not None:
            states.check_folder(folder)
        job = Job(task, model, teacher, train_loader, val_loader, chosen, folder)
        tracks = tracker(logs, log_with)
        with borrowed_accelerator(chosen.mixed_precision, chosen.accumulate, tracks, logs) as accelerator:
            _check_sharing(accelerator, train_loader)
            facts = job.facts(batches, accelerator.num_processes)
            state = None
            if resume and folder is not None and states.exists(folder):
                state = states.read(folder, facts, model)
            elif resume:
                warnings.warn(f"nothing to resume in {folder}: training starts from the beginning", stacklevel=2)
            training = Training(accelerator, job, facts)
            try:
                start(accelerator, facts)
                training.run(state, progress)
            finally:
                training.close()
                for opened in accelerator.trackers:
                    opened.finish()
    best = None if chosen.patience is None else best_of(training.history, task.main_metric)
    return FinetuneResult(model, training.history, str(training.stopped), best)


def _check_sharing(accelerator: Accelerator, loader: Iterable[Any]) -> None:
    """Makes sure that the work can be shared in the way that accelerate was told to."""
    from accelerate.utils import parse_flag_from_env

    if not splits_weights(accelerator) and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        words = "accelerate was told to split the weights (FSDP), which it does among several GPUs only"
        warnings.warn(f"{words}: every process has all of them here", stacklevel=3)
    if accelerator.num_processes > 1 and not isinstance(loader, DataLoader):
        raise InputError(f"several processes can share a torch DataLoader, not a {type(loader).__name__}")
