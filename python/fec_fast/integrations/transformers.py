"""Hugging Face transformers: a callback that prunes during its ``Trainer``'s training; its models with their config."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..plan.checkpoint import Pruned, load, read_plan, save, warn_of_missing_rounds
from ..plan.checkpoint_files import check_can_be_replaced
from ..plan.plan import expect_plan
from ..pruning.allocation.budget import Budget
from ..pruning.during_training.schedule import PruningSchedule
from ..pruning.during_training.stored_state import narrow_as_stored, progress_of
from ..pruning.during_training.training_pruner import TrainingPruner
from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, CheckpointError, missing_extra
from ..utils.files import atomic_folder, check_writable, write_text
from ..utils.modules import in_evaluation, unwrap
from ..utils.reading import read_json
from . import trainer_callback
from .bounded_building import BoundedBuilding
from .tested_versions import warn_if_untested

try:
    from transformers import AutoConfig, PreTrainedModel, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except (ImportError, AttributeError) as error:
    raise missing_extra("transformers", "transformers", "fec_fast.integrations.transformers", error) from error

warn_if_untested("transformers", "5.3", "5.24")

_Callback: Any = TrainerCallback
_STATE, _CONFIG, _PRUNED = "fec_fast_pruning.json", "config.json", "pruned"
# What names code in a config: transformers up to 5.2 loaded such code even where it was told not to (CVE-2026-5241).
_CODE = re.compile(r"auto_map|trust_remote_code|(attn|experts)_implementation")


class PruningCallback(trainer_callback.TrainerCallback, _Callback):  # type: ignore[misc]
    """Prunes the model of a ``Trainer`` in rounds, in place; see :class:`fec_fast.TrainingPruner`.

    Every checkpoint of the ``Trainer`` gets the state of the pruning beside its other files. To resume, give the
    checkpoint to a new callback and to ``trainer.train``. The same ``Trainer`` can be resumed, after Ctrl-C, from a
    checkpoint in its ``output_dir`` that was written since the last round. After the training, :func:`save_pretrained`
    writes the model with its plan and its config.

    Attributes:
        pruner: The ``TrainingPruner`` of the last training; ``None`` before the first.
        model: The model that is pruned; ``fec_fast.save(callback, folder)`` and :func:`save_pretrained` take it.
        plan: All rounds so far as one plan against the original model; ``None`` before the first.
        rounds: The rounds that were made.
    """

    _started_by = "trainer.train"

    def __init__(
        self,
        example_inputs: Any,
        *,
        budget: Budget,
        schedule: PruningSchedule,
        copies: Any = (),
        images: Any = None,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        **options: Any,
    ) -> None:
        """Stores the arguments; most are checked when the training starts.

        Args:
            example_inputs: What the model is called on, such as ``{"pixel_values": torch.zeros(1, 3, 64, 64)}``, on
                the device of the training.
            budget: The size after the last round.
            schedule: The rounds.
            copies: Averages of the model's weights.
            images: What every round is recovered on, if the schedule says so.
            resume_from_checkpoint: The checkpoint from which the training goes on, a folder, or ``True`` for the last
                one in ``output_dir``: the same as for ``trainer.train``. The model, at full width, is narrowed when
                the ``Trainer`` is made, before it loads the weights; so give it ``model``, not ``model_init``.
            **options: For :func:`fec_fast.prune`.
        """
        if not isinstance(resume_from_checkpoint, bool | None):
            check_path("resume_from_checkpoint", resume_from_checkpoint)
        self._example_inputs, self._copies, self._resume = example_inputs, copies, resume_from_checkpoint
        self._options = {"budget": budget, "schedule": schedule, "images": images, **options}
        self._stored: Mapping[str, Any] | None = None
        self._stored_step = 0
        self._trainer: Any = None
        self._guard: Any = None

    def attach(self, trainer: Any) -> None:
        """Tells the callback its ``Trainer``, from which it takes the ``DistributedDataParallel`` of several processes.

        Args:
            trainer: The trainer that has this callback. In a single process this call is not needed.
        """
        self._trainer = trainer

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Narrows the model as the checkpoint says from which the training goes on.

        Args:
            args: The arguments of the training.
            state: Not used.
            control: Not used.
            model: The model.
            **kwargs: Not used.

        Raises:
            CheckpointError: The checkpoint has no state of a pruning.
            PlanError: It is of another model.
        """
        if self._resume:
            folder: Any = get_last_checkpoint(args.output_dir) if self._resume is True else self._resume
            if folder is None:
                raise CheckpointError(f"resume_from_checkpoint=True: there is no checkpoint in {args.output_dir}")
            content = _read_state(Path(folder))
            narrow_as_stored(content["pruner"], model, [getattr(each, "module", each) for each in self._all_copies()])
            self._stored, self._stored_step = content["pruner"], content["global_step"]
        self._watch_loading(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the pruner: the optimizer exists, and its state is loaded.

        Args:
            args: The arguments of the training.
            state: The state of the trainer.
            control: Not used.
            **kwargs: The model and the optimizer.

        Raises:
            CheckpointError: The training goes on from another checkpoint than the callback's, or from one without a
                state of the pruning.
            FecError: As :class:`fec_fast.TrainingPruner` says.
        """
        stored = self._state_at(Path(args.output_dir), state.global_step, kwargs["model"])
        self._watch_loading(kwargs["model"])
        wrapped = None if self._trainer is None else self._trainer.model_wrapped
        self.pruner = TrainingPruner(
            kwargs["model"],
            kwargs["optimizer"],
            self._example_inputs,
            copies=self._copies,
            ddp=wrapped if isinstance(wrapped, nn.parallel.DistributedDataParallel) else None,
            state=stored,
            **self._options,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step of the optimizer, and makes a round if one is due.

        Args:
            args: Not used.
            state: Not used.
            control: Not used.
            **kwargs: Not used.
        """
        self._trained().step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts an epoch, and makes a round if one is due.

        Args:
            args: Not used.
            state: Not used.
            control: Not used.
            **kwargs: Not used.
        """
        self._trained().end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the state of the pruning into the checkpoint that the trainer has just written.

        Args:
            args: The arguments of the training.
            state: The state of the trainer.
            control: Not used.
            **kwargs: Not used.
        """
        if state.is_world_process_zero:
            content = {"global_step": state.global_step, "pruner": self._trained().state_dict()}
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_text(folder / _STATE, json.dumps(content, allow_nan=False))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the check of :meth:`on_init_end` off the model, and warns if rounds are left.

        Args:
            args: Not used.
            state: The state of the trainer.
            control: Not used.
            **kwargs: Not used.
        """
        self._guard.remove()
        if state.is_world_process_zero:
            self._warn_of_missing_rounds()

    def _state_at(self, output: Path, step: int, model: nn.Module) -> Mapping[str, Any] | None:
        """The state of the pruning at the step at which a training starts: that of its checkpoint, if it has one."""
        goes_on = self.pruner is not None and self.pruner.model is model
        if step == 0 and goes_on:
            return self._earlier_state(model)
        if step == self._stored_step:
            return self._stored
        if not goes_on:
            raise CheckpointError(
                f"the training starts at step {step}, the pruning at step {self._stored_step}: give the "
                "same resume_from_checkpoint to PruningCallback and to trainer.train"
            )
        # The same Trainer is resumed: the state in memory is of steps after the checkpoint, and only its step is known.
        folder = output / f"checkpoint-{step}"
        if not folder.is_dir():
            raise CheckpointError(
                f"the training starts at step {step}, and {output} has no {folder.name}: the same Trainer is resumed "
                "from its output_dir alone; for another folder make a new model, Trainer and PruningCallback"
            )
        return dict(_read_state(folder)["pruner"])

    def _watch_loading(self, model: Any) -> None:
        if self._guard is not None:
            self._guard.remove()
        self._guard = model.register_load_state_dict_pre_hook(_refuse_other_widths)

    def _all_copies(self) -> list[nn.Module]:
        return [self._copies] if isinstance(self._copies, nn.Module) else list(self._copies)


def save_pretrained(result: Pruned, folder: str | os.PathLike[str]) -> Path:
    """Writes a pruned model of transformers: its config, and beside it plan and weights as :func:`fec_fast.save` does.

    Args:
        result: A :class:`PruningCallback`, a :class:`fec_fast.PruneResult`, or another object with ``model`` and
            ``plan``. The model is a ``PreTrainedModel``, possibly wrapped.
        folder: The folder; absent, empty, or written by this function before, which replaces it as a whole.

    Returns:
        The absolute path of the folder.

    Raises:
        ArgumentError: Not such a model, or nothing was pruned yet.
        CheckpointError: The folder holds something else, or cannot be replaced: a symbolic link, a mounted file
            system, the working folder.
        PlanError: The plan leaves other names or shapes than the model has.
        OSError: The folder cannot be written to. After any error an older one is whole.
    """
    model = unwrap(result.model)
    if not isinstance(model, PreTrainedModel):
        raise ArgumentError(
            f"result.model: expected a PreTrainedModel, got a {type(model).__name__}: use fec_fast.save"
        )
    warn_of_missing_rounds(result)
    expect_plan(result.plan, "result.plan")
    target = Path(os.path.abspath(check_path("folder", folder)))
    check_can_be_replaced(target)
    foreign = [each.name for each in target.iterdir()] if target.is_dir() else [target.name] * target.exists()
    if set(foreign) - {_CONFIG, _PRUNED}:
        raise CheckpointError(f"{folder} holds something other than a pruned model of transformers; name a new folder")
    check_writable(target.parent)
    with atomic_folder(target) as temporary:
        model.config.save_pretrained(temporary)
        for name in {each.name for each in temporary.iterdir()} - {_CONFIG}:
            (temporary / name).unlink()
        save(model, result.plan, temporary / _PRUNED)
    return target


def from_pretrained(model_class: Any, folder: str | os.PathLike[str]) -> Any:
    """Builds a model from the config in a folder, and narrows and fills it as :func:`fec_fast.load` does.

    Args:
        model_class: The model's class, such as ``ResNetForImageClassification``, or an Auto class.
        folder: What :func:`save_pretrained` has written.

    Returns:
        The pruned model, on the CPU in evaluation mode, as transformers' own function returns it.

    Raises:
        CheckpointError: The folder is missing or damaged, or is no such folder; its config names code, or describes a
            network that cannot be built, or is larger than the one that was pruned.
        PlanError: The class is not the one that was pruned.
        ArgumentError: Not a class of models.
    """
    path = check_path("folder", folder)
    if not (path / _CONFIG).is_file() or not (path / _PRUNED).is_dir():
        raise CheckpointError(f"{folder} has no {_CONFIG} or no folder {_PRUNED!r}: give what save_pretrained wrote")
    names = _config_without_code(path / _CONFIG).get("architectures")
    is_auto = hasattr(model_class, "from_config")
    if not is_auto and not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ArgumentError(f"model_class={model_class!r:.80}: give a class of models, such as {names!r:.200}")
    plan = read_plan(path / _PRUNED)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with BoundedBuilding(path / _CONFIG, plan, path / _PRUNED):
            model = model_class.from_config(config) if is_auto else model_class(config)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds for what is no config
        kind = type(error).__name__
        raise CheckpointError(f"{path / _CONFIG}: no network can be built from it ({kind}: {error})") from error
    return in_evaluation(load(model, path / _PRUNED))


def _config_without_code(file: Path) -> dict[str, Any]:
    """Reads a config, and raises if it names code or weights, which transformers might load from elsewhere."""
    config = read_json(file, dict[str, Any], CheckpointError)
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if code := next((name for name in value if _CODE.search(name)), None):
                raise CheckpointError(f"{file} has {code!r:.80}, which names code: give what save_pretrained wrote")
            if value.get("use_pretrained_backbone"):
                raise CheckpointError(
                    f"{file} has 'use_pretrained_backbone', which downloads weights that the checkpoint's own replace: "
                    "set it to false"
                )
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return config


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / _STATE
    if not file.is_file():
        raise CheckpointError(
            f"resume_from_checkpoint: {folder} has no {_STATE}: give a checkpoint of a training with a PruningCallback"
        )
    content: dict[str, Any] = read_json(file, dict[str, Any], CheckpointError)
    if set(content) != {"global_step", "pruner"} or not isinstance(content["global_step"], int):
        raise CheckpointError(f"{file} was edited or damaged")
    progress_of(content["pruner"])
    return content


def _refuse_other_widths(module: nn.Module, weights: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Raises instead of torch's list of sizes that differ, and says where they come from."""
    for name, own in itertools.chain(module.named_parameters(prefix), module.named_buffers(prefix)):
        given = weights.get(name)
        if given is not None and given.shape != own.shape:
            raise CheckpointError(
                f"the checkpoint has {name} of shape {list(given.shape)}, the model {list(own.shape)}: it is of "
                "another round of pruning. To resume from it, make a new model and a new Trainer, and give "
                "resume_from_checkpoint to its PruningCallback too; load_best_model_at_end cannot go back over a round"
            )
