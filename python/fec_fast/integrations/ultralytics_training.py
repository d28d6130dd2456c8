"""Ultralytics' trainers for pruned networks: they rebuild the network from its YAML file, and here narrow it again.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..plan.plan import Plan
from ..plan.surgery import apply_plan
from ..pruning.during_training.schedule import PruningSchedule
from ..pruning.during_training.stored_state import progress_of
from ..utils.compat import ULTRALYTICS_RECOVERY
from ..utils.errors import ArgumentError, CheckpointError, LayerError, PlanError, TrainingError, missing_extra
from . import trainer_callback
from .tested_versions import warn_if_untested

try:
    from ultralytics import RTDETR as RTDETR
    from ultralytics import YOLO as YOLO
    from ultralytics.nn.tasks import BaseModel
except (ImportError, AttributeError) as error:
    raise missing_extra("ultralytics", "ultralytics", "fec_fast.integrations.ultralytics", error) from error

warn_if_untested("ultralytics", "8.4.190", "8.4")

_Base: Any = object  # a trainer of ultralytics
PRUNED = "pruned"  # the folder with plan and weights that save writes
# Attributes of networks: text, so that ultralytics' files can be read where this package is not.
_PLAN, _ROUNDS = "fec_fast_plan", "fec_fast_rounds"

# The first row of the YAML content in a pruned network: no layer. Stock code that builds the full widths from it, and
# would copy the few weights that fit, ends with a KeyError of this text instead.
_STOP = [
    *(-1, 1),
    "this network was pruned by fec_fast, and stock code would train it at full width: open the file with "
    "fec_fast.integrations.ultralytics.from_checkpoint, or its folder with load",
    [],
]


def stored_plan(model: nn.Module) -> Plan | None:
    """The plan that a pruned network carries: copies of it and ultralytics' checkpoints have it too.

    Args:
        model: The network inside a ``YOLO`` object.

    Returns:
        The plan against the network of the YAML file; ``None`` for a network that was not pruned.

    Raises:
        PlanError: It is damaged.
    """
    text = getattr(model, _PLAN, None)
    return None if text is None else Plan.from_json(text)


def full_widths(model: Any) -> dict[str, Any]:
    """The content of the YAML file of a network, from which ultralytics builds it at full width.

    Args:
        model: The network inside a ``YOLO`` object; if it was pruned, its own ``yaml`` cannot be built.

    Returns:
        The content, a copy.
    """
    content = copy.deepcopy(model.yaml)
    if content["backbone"][0] == _STOP:
        del content["backbone"][0]
    return dict(content)


def store_plan(model: Any, plan: Plan) -> None:
    """Lets a pruned network carry its plan, keeps stock code from building it, and sets widths that exports read.

    Args:
        model: The network inside a ``YOLO`` object.
        plan: Its plan against the network of the YAML file.
    """
    setattr(model, _PLAN, plan.to_json())
    model.yaml = {**full_widths(model), "backbone": [_STOP, *full_widths(model)["backbone"]]}
    for block in model.modules():
        # forward halves what cv1 gives; forward_split, which replaces it in exports, cuts at this attribute.
        if hasattr(block, "forward_split"):
            block.c = block.cv1.conv.out_channels // 2


@dataclass(frozen=True)
class StoredRounds:
    """How far a pruning in rounds is, as a checkpoint of ultralytics holds it.

    Attributes:
        pruner: The state of the ``TrainingPruner``.
        earlier: The plan of the network before the training, against that of the YAML file; ``None`` if it was dense.
    """

    pruner: Mapping[str, Any]
    earlier: Plan | None

    @property
    def are_left(self) -> bool:
        """Whether rounds are left."""
        progress = progress_of(self.pruner)
        return not PruningSchedule(**self.pruner["schedule"]).is_over(progress.done, progress.size, progress.target)


def store_rounds(model: nn.Module, rounds: StoredRounds) -> None:
    """Lets a network carry how far its pruning is.

    Args:
        model: The average that ultralytics writes into its checkpoints.
        rounds: The state.
    """
    earlier = None if rounds.earlier is None else rounds.earlier.to_json()
    setattr(model, _ROUNDS, json.dumps({"earlier": earlier, "pruner": rounds.pruner}, allow_nan=False))


def stored_rounds(model: nn.Module) -> StoredRounds | None:
    """How far the pruning in rounds is of the training that has written a network.

    Args:
        model: The network inside a ``YOLO`` object.

    Returns:
        The state; ``None`` if it was not trained with a ``PruningCallback``.

    Raises:
        CheckpointError: It is damaged.
        PlanError: Its plan is damaged.
    """
    text = getattr(model, _ROUNDS, None)
    if text is None:
        return None
    try:
        content = json.loads(text)
        earlier, pruner = content["earlier"], content["pruner"]
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"the state of the pruning in rounds was edited or damaged: {error}") from error
    progress_of(pruner)
    return StoredRounds(pruner, None if earlier is None else Plan.from_json(earlier))


def rounds_of(callbacks: Mapping[str, Any]) -> Any:
    """The ``PruningCallback`` among the callbacks of a ``YOLO`` object or a trainer; ``None`` if there is none.

    Args:
        callbacks: Functions by event.
    """
    owners = (getattr(each, "__self__", None) for functions in callbacks.values() for each in functions)
    return next((each for each in owners if isinstance(each, trainer_callback.TrainerCallback)), None)


def network_of(yolo: Any) -> Any:
    """The network in a ``YOLO`` or ``RTDETR`` object, if it can be pruned and trained.

    Args:
        yolo: The object.

    Returns:
        Its network.

    Raises:
        ArgumentError: Another object, an exported model, or a network whose batch norms are fused.
    """
    if not isinstance(yolo, YOLO | RTDETR):
        raise ArgumentError(f"yolo: expected an ultralytics.YOLO or RTDETR object, got a {type(yolo).__name__}")
    model = yolo.model
    if isinstance(model, str) and (Path(model) / PRUNED).is_dir():
        raise ArgumentError(
            f"yolo: {model!r:.200} is a folder that save of fec_fast.integrations.ultralytics wrote: open it with load "
            "of the same module, not with YOLO"
        )
    if not isinstance(model, BaseModel):
        raise ArgumentError(
            f"yolo: {yolo.model_name!r:.80} is an exported model; give the .pt or .yaml file to YOLO, "
            "and the .pt of a pruned network to from_checkpoint"
        )
    if model.is_fused():
        raise ArgumentError(
            "yolo: fuse() has folded its batch norms into the convolutions; load it again, and prune before fuse()"
        )
    return model


class PrunedTrainer(_Base):  # type: ignore[misc]
    """A trainer whose networks have the widths of the pruned one. :func:`pruned_trainer` derives it for each task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes the trainer, and checks that it can be pruned in rounds if it has a ``PruningCallback``.

        Args:
            *args: For ultralytics.
            **kwargs: For ultralytics.

        Raises:
            ArgumentError: Several processes, distillation or quantisation.
        """
        super().__init__(*args, **kwargs)
        if rounds_of(self.callbacks) is None:
            return
        if self.ddp or self.world_size > 1:
            raise ArgumentError(
                f"device={self.args.device!r:.80}: ultralytics starts a process for each GPU from a file that it "
                "writes, which a PruningCallback cannot follow: train on one GPU, or prune before the training"
            )
        for name, is_set in (
            ("distill_model", self.args.distill_model is not None),
            ("quantize", self.args.quantize == 8),
        ):
            if is_set:
                raise ArgumentError(
                    f"{name}={getattr(self.args, name)!r:.80} wraps the network in another, which cannot be pruned in "
                    f"rounds: prune first, then train with {name}"
                )

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Builds the network at full width, narrows it and copies all weights.

        Args:
            cfg: The content of the YAML file, or its path; not read for a pruned network, whose weights hold it.
            weights: The pruned network.
            verbose: Whether ultralytics logs the size.

        Returns:
            The network that is trained.

        Raises:
            ArgumentError: There are no weights of a pruned network.
            PlanError: The network is another than the one that was pruned, most often by its number of classes.
            LayerError: The weights are those of another network.
        """
        plan, rounds = None if weights is None else stored_plan(weights), rounds_of(self.callbacks)
        if plan is None and rounds is not None and rounds.starts_dense:
            return super().get_model(cfg, weights, verbose)
        if plan is None:
            raise ArgumentError(
                "this trains a pruned network, but ultralytics starts from "
                f"{'no weights' if weights is None else 'weights that were not pruned'}, so at full width: leave out "
                "pretrained=, and resume from the last.pt of a training of the pruned network"
            )
        classes = weights.yaml.get("nc"), self.data["nc"]
        model = super().get_model(full_widths(weights), None, verbose=False)  # it writes the number of classes there
        try:
            apply_plan(model, plan)
        except PlanError as error:
            raise PlanError(
                f"the network was pruned with {classes[0]} classes, the data have {classes[1]}: train it on these data "
                "before it is pruned"
                if classes[0] != classes[1]
                else f"the network of the YAML file is not the one that was pruned: {error}"
            ) from error
        try:
            model.load_state_dict(weights.float().state_dict())
        except RuntimeError as error:
            raise LayerError(f"the weights are not those of the pruned network (fused?): {error}") from error
        store_plan(model, plan)
        if verbose:
            model.info()
        return model

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Ultralytics goes back to ``last.pt`` if the loss is not finite; over a round it cannot.

        Args:
            epoch: The epoch.

        Raises:
            TrainingError: ``last.pt`` has the widths before a round.
        """
        try:
            return bool(getattr(super(), ULTRALYTICS_RECOVERY)(epoch))
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise TrainingError(
                f"epoch {epoch + 1}: the loss or the fitness is not finite after a round of pruning, and last.pt is of "
                "the network before it: resume from last.pt (from_checkpoint, attach, train(resume=True)), or start "
                "with a smaller lr0"
            ) from error


@functools.cache
def pruned_trainer(trainer: type) -> type:
    """The trainer of a task, or the user's own one, for pruned networks.

    Args:
        trainer: A trainer of ultralytics, such as ``DetectionTrainer``, or a class derived from one.

    Returns:
        A class derived from it.
    """
    if issubclass(trainer, PrunedTrainer):
        return trainer
    return type(f"Pruned{trainer.__name__}", (PrunedTrainer, trainer), {"__module__": __name__})


class _Pruned(_Base):  # type: ignore[misc]
    """What the objects of pruned networks do otherwise than ``YOLO`` and ``RTDETR``."""

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Trains at the pruned widths; the arguments are those of ultralytics.

        Args:
            trainer: A trainer of your own, or ``None`` for that of the task.
            **kwargs: Ultralytics' settings.

        Raises:
            ArgumentError: A list of data sets with a ``PruningCallback``, rounds of a resumed training are left and
                there is no ``PruningCallback``, or there is no training to resume.
        """
        has_rounds = rounds_of(self.callbacks) is not None
        if has_rounds and isinstance(kwargs.get("data"), list | tuple):
            raise ArgumentError("data: a PruningCallback is for one training; train on one data set")
        if kwargs.get("resume") is True and not self._is_resumable():
            raise ArgumentError(
                "resume: this object holds no interrupted training, and ultralytics would start a new one on data of "
                "its own: open the last.pt of the interrupted training with from_checkpoint; without resume, train() "
                "goes on from the weights"
            )
        if kwargs.get("resume") and not has_rounds:
            rounds = stored_rounds(self.model)
            if rounds is not None and rounds.are_left:
                raise ArgumentError(
                    "resume: rounds of pruning are left; attach a PruningCallback with the budget and the schedule of "
                    "the interrupted training first"
                )
        return super().train(trainer=pruned_trainer(trainer or self.task_map[self.task]["trainer"]), **kwargs)

    def _is_resumable(self) -> bool:
        """Whether ultralytics can resume: it looks at the same, and otherwise starts anew."""
        checkpoint = self.ckpt or {}
        return checkpoint.get("epoch", -1) >= 0 and checkpoint.get("optimizer") is not None

    def tune(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: ultralytics starts ``yolo train`` for every trial, which trains at full width.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("tune() would train the full widths: tune the dense network, and prune it afterwards")


class PrunedYOLO(_Pruned, YOLO):  # type: ignore[misc]
    """A ``YOLO`` object that holds a pruned network: ``train`` keeps its widths."""


class PrunedRTDETR(_Pruned, RTDETR):  # type: ignore[misc]
    """An ``RTDETR`` object that holds a pruned network: ``train`` keeps its widths."""


def as_pruned(yolo: Any) -> type:
    """The class of objects that hold a pruned network.

    Args:
        yolo: A ``YOLO`` or ``RTDETR`` object.
    """
    return PrunedRTDETR if isinstance(yolo, RTDETR) else PrunedYOLO


def _name_of_exports(model: Any) -> Path:
    """The path whose name and folder exports take: that of the dense network must not be replaced."""
    file = getattr(model, "pt_path", None)
    path = Path(file) if file else Path(Path(model.yaml.get("yaml_file") or "network.yaml").name)
    return path if path.stem.endswith("-pruned") else path.with_name(f"{path.stem}-pruned.pt")


def adopt(yolo: Any, model: Any, plan: Plan) -> None:
    """Puts a pruned network into a ``YOLO`` or ``RTDETR`` object, which then trains at its widths.

    Args:
        yolo: The object; its class becomes :class:`PrunedYOLO` or :class:`PrunedRTDETR`.
        model: The network.
        plan: Its plan against the network of the YAML file.
    """
    store_plan(model, plan)
    if model is not yolo.model:
        # ultralytics trains on from `model` where `ckpt` is set, else from the YAML file with new weights.
        yolo.model, yolo.ckpt, yolo.ckpt_path, yolo.predictor = model, {"model": model}, None, None
        yolo.overrides.pop("pretrained", None)
        model.pt_path = str(_name_of_exports(model))
    yolo.__class__ = as_pruned(yolo)
