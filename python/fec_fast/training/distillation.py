"""Knowledge distillation: losses that pull a student towards a teacher's logits and attention maps.

An attention map has no channel dimension, so a pruned student can be compared with its wider teacher without learned
adapters in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.critical_section import put_back_by
from ..utils.errors import InputError, LayerError, nearest
from ..utils.forward import call_model, describe_tensors, map_tensors, undisturbed
from ..utils.modules import device_of, unwrap
from ..utils.user_warnings import warn_user
from .settings import TrainingSettings


class FeatureDistillation:
    """The loss between the attention maps of a student's and a teacher's layers (``feature_layers``).

    Forward hooks record the outputs of the layers in both networks. The student's are recorded during its ordinary
    training step; the teacher's when :meth:`run_teacher` is called.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: TrainingSettings,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Registers the forward hooks.

        Args:
            student: The network that is trained, without wrappers.
            teacher: The network that is imitated, in evaluation mode.
            settings: Gives the layers, the weights and the temperature.
            autocast: Returns a context manager for the precision of the training.
        """
        self.teacher, self.settings, self.autocast = teacher, settings, autocast
        self.student_outputs = _OutputRecorder(student, settings.feature_layers)
        self.teacher_outputs = _OutputRecorder(teacher, settings.feature_layers.values())
        self._never_run: set[str] | None = None  # known after the first step

    def run_teacher(self, images: Any) -> None:
        """Runs the teacher up to the last recorded layer; the rest of its forward pass is skipped.

        Args:
            images: The same images that the student was given, as the teacher's ``forward`` takes them.
        """
        with self.teacher_outputs.stop_when_complete(), torch.no_grad(), self.autocast():
            self.teacher(images)

    def feature_loss(self) -> Tensor | float:
        """Computes the weighted sum of the attention distances for the images that both networks saw last.

        A layer that either network has skipped on these images (stochastic depth does so at random) is left out.

        Returns:
            A scalar to be added to the loss; 0 if there are no ``feature_layers``.

        Raises:
            InputError: A student's map and its teacher's differ in height or width.
        """
        loss: Tensor | float = 0.0
        if self._never_run is None:
            self._never_run = set(self.settings.feature_layers)
        for name, teacher_name in self.settings.feature_layers.items():
            student_map = self.student_outputs.outputs.get(name)
            teacher_map = self.teacher_outputs.outputs.get(teacher_name)
            if student_map is None or teacher_map is None:
                continue
            self._never_run.discard(name)
            if student_map.shape[2:] != teacher_map.shape[2:]:
                raise InputError(
                    f"feature_layers: in training {name!r} returns maps of {list(student_map.shape[2:])} and the "
                    f"teacher's {teacher_name!r} of {list(teacher_map.shape[2:])}: the networks have to resize images "
                    "alike, and not at random"
                )
            loss = loss + self.settings.feature_weight * attention_distance(student_map, teacher_map)
        # Cleared here so that the maps do not stay in memory until the next step.
        self.student_outputs.outputs.clear()
        self.teacher_outputs.outputs.clear()
        return loss

    def close(self) -> None:
        """Removes the forward hooks, and warns of layers that no step has compared."""
        self.student_outputs.close()
        self.teacher_outputs.close()
        for name in sorted(self._never_run or ()):
            warn_user(
                f"feature_layers: {name!r} was never run in training, by the student and its teacher on the same "
                "images, so it was not imitated: name a module that training mode runs too"
            )


class Distillation(FeatureDistillation):
    """The loss of a classifier with a teacher: labels, the teacher's logits, and the attention maps."""

    def combined_loss(self, images: Tensor, logits: Tensor, label_loss: Tensor) -> Tensor:
        """Adds the distillation terms to the loss from the labels.

        Args:
            images: The images of the batch.
            logits: The student's logits for them, float ``[B, classes]``.
            label_loss: The loss from the labels, a scalar.

        Returns:
            The loss to be minimised, a scalar: ``(1 - distill_weight) * label_loss + distill_weight * divergence``
            plus the feature loss.
        """
        # The complete forward pass also records the teacher's features.
        with torch.no_grad(), self.autocast():
            teacher_logits = self.teacher(images).float()
        divergence = logit_divergence(logits, teacher_logits, self.settings.temperature)
        return torch.lerp(label_loss, divergence, self.settings.distill_weight) + self.feature_loss()


def logit_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Computes the Kullback-Leibler divergence between softened class distributions (Hinton et al., 2015).

    Args:
        student_logits: ``[B, classes]``.
        teacher_logits: ``[B, classes]``.
        temperature: Divisor of both networks' logits.

    Returns:
        The mean over the images in nats, times the square of the temperature. The factor keeps the size of the
        gradient independent of the temperature.
    """
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Computes the distance between the attention maps of two layers (Zagoruyko & Komodakis, 2017).

    The attention map of an image is the mean over the channels of the squared features, scaled to Euclidean length 1.

    Args:
        student: Features ``[B, C1, H, W]``.
        teacher: Features ``[B, C2, H, W]``; the number of channels may differ.

    Returns:
        The squared Euclidean distance of the maps, in [0, 2], mean over the images; a scalar.
    """
    maps = [F.normalize(x.float().square().mean(1).flatten(1), dim=1) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def check_feature_layers(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str], images: Any) -> None:
    """Checks that the layers to imitate exist and return maps of the same size.

    Args:
        student: The network to be trained. It is run once and not changed.
        teacher: The network to be imitated. It is run once and not changed.
        layers: Names of the student's modules, mapped to names of the teacher's modules.
        images: A batch of images, as both networks take it.

    Raises:
        LayerError: A module does not exist.
        InputError: A module is not run, its output is not a map ``[B, C, H, W]``, or the student's and the teacher's
            maps differ in height or width.
    """
    map_sizes = []
    for network, names in ((student, list(layers)), (teacher, list(layers.values()))):
        recorder = _OutputRecorder(network, names)
        with put_back_by(recorder.close), undisturbed(network):
            call_model(network, map_tensors(partial(Tensor.to, device=device_of(network), copy=True), images))
        for name in names:
            output = recorder.outputs.get(name)
            if not isinstance(output, Tensor) or output.ndim != 4:
                problem = "is not run" if output is None else f"returns {describe_tensors(output)}"
                raise InputError(f"feature_layers: {name!r} {problem}; name a module that returns maps [B, C, H, W]")
        map_sizes.append([recorder.outputs[name].shape[2:] for name in names])
    for (name, teacher_name), student_size, teacher_size in zip(layers.items(), *map_sizes, strict=True):
        if student_size != teacher_size:
            raise InputError(
                f"feature_layers: {name!r} returns maps of {list(student_size)} and the teacher's {teacher_name!r} of "
                f"{list(teacher_size)}; name modules with maps of the same size"
            )


class _AllRecorded(Exception):
    """Leaves a forward pass from inside a hook, once every output is recorded."""


class _OutputRecorder:
    """Records the last output of named modules, by forward hooks."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.outputs: dict[str, Any] = {}
        self.stops_when_complete = False
        modules = dict(unwrap(model).named_modules())
        self.names = dict.fromkeys(names)  # each name once, in the given order
        for name in self.names:
            if name not in modules:
                raise LayerError(f"feature_layers: there is no module {name!r}; {nearest(name, modules)}")
        self.handles = [modules[name].register_forward_hook(self._recording_hook(name)) for name in self.names]

    @contextlib.contextmanager
    def stop_when_complete(self) -> Iterator[None]:
        """Ends the forward pass inside the context as soon as every module has returned.

        A hook cannot end a forward pass except by an exception, so one is raised in the last hook and caught here. A
        detector's teacher is thereby spared its heads and its search for boxes.
        """
        self.stops_when_complete = True
        try:
            yield
        except _AllRecorded:
            pass
        finally:
            self.stops_when_complete = False

    def _recording_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs[name] = output
            if self.stops_when_complete and self.outputs.keys() == self.names.keys():
                raise _AllRecorded

        return record

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()
