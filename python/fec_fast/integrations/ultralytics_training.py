"""Ultralytics' trainers for pruned networks: they rebuild the network from its YAML file, and here narrow it again.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import nn

from ..plan.plan import Plan
from ..plan.surgery import apply_plan
from ..utils.errors import ArgumentError, LayerError, PlanError, missing_extra
from .tested_versions import warn_if_untested

try:
    from ultralytics import RTDETR as RTDETR
    from ultralytics import YOLO as YOLO
    from ultralytics.nn.tasks import BaseModel
except (ImportError, AttributeError) as error:
    raise missing_extra("ultralytics", "ultralytics", "fec_fast.integrations.ultralytics", error) from error

warn_if_untested("ultralytics", "8.4.190", "8.4")

_Base: Any = object  # a trainer of ultralytics
_PLAN = "fec_fast_plan"  # text, so that its files can be read where this package is not


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


def store_plan(model: Any, plan: Plan) -> None:
    """Lets a pruned network carry its plan, and sets the widths that only exported networks read.

    Args:
        model: The network inside a ``YOLO`` object.
        plan: Its plan against the network of the YAML file.
    """
    setattr(model, _PLAN, plan.to_json())
    for block in model.modules():
        # forward halves what cv1 gives; forward_split, which replaces it in exports, cuts at this attribute.
        if hasattr(block, "forward_split"):
            block.c = block.cv1.conv.out_channels // 2


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
    if not isinstance(model, BaseModel):
        raise ArgumentError(f"yolo: {yolo.model_name!r:.80} is an exported model; give the .pt or .yaml file to YOLO")
    if model.is_fused():
        raise ArgumentError(
            "yolo: fuse() has folded its batch norms into the convolutions; load it again, and prune before fuse()"
        )
    return model


class PrunedTrainer(_Base):  # type: ignore[misc]
    """A trainer whose networks have the widths of the pruned one. :func:`pruned_trainer` derives it for each task."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Builds the network at full width, narrows it and copies all weights.

        Args:
            cfg: The content of the YAML file, or its path.
            weights: The pruned network.
            verbose: Whether ultralytics logs the size.

        Returns:
            The network that is trained.

        Raises:
            ArgumentError: There are no weights of a pruned network.
            PlanError: The network is another than the one that was pruned, most often by its number of classes.
            LayerError: The weights are those of another network.
        """
        plan = None if weights is None else stored_plan(weights)
        if plan is None:
            raise ArgumentError(
                "this trains a pruned network, but ultralytics starts from "
                f"{'no weights' if weights is None else 'weights that were not pruned'}, so at full width: leave out "
                "pretrained=, and resume from the last.pt of a training of the pruned network"
            )
        classes = weights.yaml.get("nc"), self.data["nc"]
        model = super().get_model(copy.deepcopy(cfg), None, verbose=False)  # it writes the number of classes there
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
        """
        return super().train(trainer=pruned_trainer(trainer or self.task_map[self.task]["trainer"]), **kwargs)

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
    yolo.__class__ = PrunedRTDETR if isinstance(yolo, RTDETR) else PrunedYOLO
