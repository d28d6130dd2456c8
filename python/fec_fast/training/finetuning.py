"""The public function :func:`finetune`: checks its arguments, then runs the training loop on accelerate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..utils.arguments import check_network, check_path
from ..utils.critical_section import put_back_by
from ..utils.distributed import check_accelerate, launched_processes
from ..utils.errors import ArgumentError, BackendError, InputError
from ..utils.forward import restored_modes
from ..utils.modules import check_can_be_changed, unwrap
from ..utils.public_call import interruptible
from ..utils.random_state import restored_randomness, unseeded_generators
from ..utils.user_warnings import warn_user
from ..utils.weights import check_finite
from .accelerator import temporary_accelerator, unprepared_at_end
from .batches import batch_count, check_can_be_repeated, is_plain, length_of
from .engine import Trainer
from .fsdp import uses_fsdp2
from .history import FinetuneResult, best_epoch_of
from .inputs import TrainingInputs
from .optimizer import warn_of_coarse_weights
from .settings import TrainingSettings
from .sparsity import GroupLasso, GrowingPenalty, check_sparsity
from .state import check_extra_states, check_state_folder, has_state, read_state
from .tasks.base import Task
from .tasks.classification import Classification
from .trackers import check_log_folder, make_tracker, start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

_OF_TASKS = ("check", "objective", "evaluate")


@interruptible
def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    settings: TrainingSettings | None = None,
    val_loader: Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    task: Task | None = None,
    sparsify: GroupLasso | GrowingPenalty | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log_dir: str | Path | None = None,
    log_with: str = "csv",
    progress: bool = True,
    **overrides: Any,
) -> FinetuneResult:
    """Trains a network in place: in one process, or under ``accelerate launch`` on many GPUs and machines.

    Each epoch draws its random numbers from ``(seed, epoch)``. A resumed training therefore gives the same numbers as
    one that was never interrupted: bit for bit on the CPU, unless the loader keeps worker processes alive between
    epochs, its data set has a random generator of its own, or the clock decides (``max_minutes``). The caller's random
    state is restored. Ctrl-C ends the training at once while it waits for data or evaluates, and after the current step
    otherwise; resuming repeats the unfinished epoch. Under FSDP2 the model receives the trained weights after every
    epoch instead of every step.

    Args:
        model: The network. A classifier takes images ``[B, ...]`` and returns logits ``[B, classes]``; other tasks have
            their own form (see ``task``). It is moved to the device that accelerate selects (the GPU if there is one)
            and stays there.
        train_loader: The training data: yields pairs of images and labels int64 ``[B]`` (or what ``task`` requires)
            and has a length. It is gone through in every epoch, once more for a check before the training. With several
            processes each takes a share of the batches, so a step covers as many batches as there are processes.
        settings: The settings of the training; ``None`` uses the defaults, and ``epochs`` has to be among
            ``overrides``.
        val_loader: Held-out data, evaluated after every epoch; ``None`` evaluates nothing.
        teacher: A network to be imitated, for example the one before pruning; moved to the same device.
        task: What the network is trained for: :class:`fec_fast.training.tasks.classification.Classification` (used for
            ``None``), :class:`fec_fast.training.tasks.detection.Detection`, or an implementation of
            :class:`fec_fast.training.tasks.base.Task`.
        sparsify: Sparse training, before pruning: :class:`fec_fast.GrowingPenalty` lets the channels of a plan fade, so
            that the cut changes nothing; :class:`fec_fast.GroupLasso` shrinks all channels that can be removed.
            ``None`` trains without a penalty.
        checkpoint: Folder for the training state, which is saved after every epoch and replaces an older state there;
            ``None`` saves none.
        resume: Resumes the training whose state is in ``checkpoint``. If there is none, a warning is given and the
            training starts from the beginning.
        log_dir: Folder for logs, one row per epoch; ``None`` writes none.
        log_with: Format of the logs: ``"csv"`` (``metrics.csv``) or ``"tensorboard"``.
        progress: Shows a progress bar on the standard error.
        **overrides: Settings by name, such as ``epochs=20, lr=0.01``; they take precedence over ``settings``.

    Returns:
        The model and the history of the training.

    Raises:
        InputError: Before anything changes: a loader is empty or can be gone through only once, a label is outside the
            model's classes (in the first batches, or anywhere if the data set lists its labels; later batches are
            checked when they come), the model does not return logits or has no trainable parameter, or a number is out
            of its range, or a channel of ``sparsify`` cannot shrink.
        ArgumentError: A setting is unknown, an argument has the wrong type, or the call is in inference mode.
        WeightError: The model or the teacher has a parameter that is NaN or infinite, or a parameter or buffer without
            values.
        LayerError: A module of ``feature_layers`` does not exist.
        PlanError: The plan of ``sparsify`` is for another network.
        BackendError: The device does not support the precision, or the kind of distributed training is not supported.
        CheckpointError: The folder holds something else, its state belongs to another training or model, or it cannot
            hold what a module returns from ``get_extra_state``.
        TrainingError: The loss or a gradient became infinite or NaN, or an epoch had no batch. The model holds the
            weights before that step (under FSDP2, those after the last epoch).
        TrainingInterrupted: Ctrl-C was pressed (a ``KeyboardInterrupt``); the message says how to continue. The model
            holds the weights after the last step (under FSDP2, the last epoch).
        MissingExtraError: accelerate or torchmetrics is not installed, or tensorboard where it is requested.
    """
    check_accelerate()
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        where = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise ArgumentError(f"nothing can be trained inside {where}: call finetune outside of it")
    chosen = TrainingSettings.merge(settings, overrides)
    check_network("model", model)
    check_finite("model", model)
    if teacher is not None:
        check_network("teacher", teacher)
        check_finite("teacher", teacher)
    task = Classification() if task is None else task
    if isinstance(task, type) or not all(callable(getattr(task, name, None)) for name in _OF_TASKS):
        raise ArgumentError(f"task={task!r:.80}: give a Classification(), a Detection() or a task of your own")
    for name, value in (("train_loader", train_loader), ("val_loader", val_loader)):
        if isinstance(value, str | bytes) or not (value is None or isinstance(value, Iterable)):
            kind = type(value).__name__
            raise ArgumentError(f"{name}: a {kind} is no loader: give a DataLoader or a list of batches")
        if isinstance(value, DataLoader) and not is_plain(value) and launched_processes().world_size > 1:
            raise InputError(
                f"{name}: a {type(value).__name__} has an __iter__ of its own, whose batches cannot be shared among "
                "several processes: do what it does in the data set or in collate_fn"
            )
    batches = batch_count(train_loader, "train_loader")
    check_can_be_repeated(train_loader, "train_loader")
    if val_loader is not None:
        if length_of(val_loader) == 0:
            raise InputError("val_loader is empty")
        check_can_be_repeated(val_loader, "val_loader")
    if teacher is not None and not {id(p) for p in teacher.parameters()}.isdisjoint(map(id, model.parameters())):
        raise ArgumentError("teacher has parameters of the model itself; give a copy from before pruning")
    if resume and checkpoint is None:
        raise ArgumentError("resume=True needs the folder to resume from: checkpoint=...")
    if chosen.patience is not None and val_loader is None:
        raise ArgumentError("patience needs held-out data to measure: val_loader=...")
    if chosen.accumulate > 1 and not is_plain(train_loader):
        own = " without an __iter__ of its own" if isinstance(train_loader, DataLoader) else ""
        raise ArgumentError(f"accumulate={chosen.accumulate} needs a torch DataLoader{own} for train_loader")
    check_can_be_changed({"": model} if teacher is None else {"": model, "teacher": teacher})
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameter with requires_grad=True: nothing to train")
    warn_of_coarse_weights(model)
    if sparsify is not None:
        check_sparsity(model, sparsify, patience=chosen.patience)
    state_folder = None if checkpoint is None else check_path("checkpoint", checkpoint)
    if log_dir is not None:
        check_path("log_dir", log_dir)
    log_folder = check_log_folder(log_dir, log_with)
    with restored_randomness():
        task.check(model, teacher, train_loader, chosen, val_loader)
        if state_folder is not None:
            for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
                if generators := unseeded_generators(loader):
                    warn_user(
                        f"{name} has a random generator of its own, {generators[0]}, which is neither seeded nor "
                        "stored: a resumed training will not give the same numbers; draw from the global generators of "
                        "torch, NumPy or Python"
                    )
            check_state_folder(state_folder)
            check_extra_states(unwrap(model).state_dict())
        inputs = TrainingInputs(task, model, teacher, train_loader, val_loader, chosen, state_folder, sparsify)
        tracker = make_tracker(log_folder, log_with)
        networks = [model] if teacher is None else [model, teacher]
        with (
            restored_modes(*networks),
            unprepared_at_end(model),
            temporary_accelerator(chosen.mixed_precision, chosen.accumulate, tracker, log_folder) as accelerator,
        ):
            _check_distribution(accelerator, train_loader)
            if sparsify is not None and uses_fsdp2(accelerator):
                raise BackendError(
                    "sparsify needs the whole weights in every process, and FSDP2 shards them: train sparsely without "
                    "FSDP2 (accelerate config), and continue with it after the cut"
                )
            conditions = inputs.conditions(batches, accelerator.num_processes)
            state = None
            if resume and state_folder is not None and has_state(state_folder):
                state = read_state(state_folder, conditions, unwrap(model))
            elif resume:
                warn_user(f"nothing to resume in {state_folder}: training starts from the beginning")
            trainer = Trainer(accelerator, inputs, conditions)

            def end() -> None:
                trainer.close()
                # Not accelerator.end_training(), which would also leave the process group for good.
                for started in accelerator.trackers:
                    started.finish()

            with put_back_by(end):
                start_trackers(accelerator, conditions)
                trainer.run(state, progress)
    best = None if chosen.patience is None else best_epoch_of(trainer.history, task.main_metric)
    return FinetuneResult(model, trainer.history, str(trainer.stopped), best)


def _check_distribution(accelerator: Accelerator, loader: Iterable[Any]) -> None:
    """Checks that the work can be distributed over the processes in the way that accelerate is configured.

    Warns if FSDP is configured but not used.
    """
    from accelerate.utils import parse_flag_from_env

    if not uses_fsdp2(accelerator) and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        warn_user(
            "accelerate is configured to shard the weights (FSDP), but it does so only across several GPUs: here every "
            "process holds all weights"
        )
    if accelerator.num_processes > 1 and not isinstance(loader, DataLoader):
        raise InputError(f"several processes can share a torch DataLoader, not a {type(loader).__name__}")
