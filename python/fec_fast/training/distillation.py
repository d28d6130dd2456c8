"""Imitation of a teacher: of its logits, and of its attention maps, for which the widths need not be the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError, LayerError, nearest
from ..utils.forward import call_model, describe, map_tensors, undisturbed
from ..utils.modules import device_of
from .settings import TrainingSettings


class FeatureImitation:
    """How differently a student and a teacher look at the same images, in the layers that are to be imitated."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        settings: TrainingSettings,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Listens to the modules that are to be imitated.

        Args:
            model: The student, not wrapped.
            teacher: In evaluation mode.
            settings: How much is imitated.
            autocast: Makes the context of the training's precision.
        """
        self.teacher, self.settings, self.autocast = teacher, settings, autocast
        self.own = _Listener(model, settings.feature_layers)
        self.wanted = _Listener(teacher, settings.feature_layers.values())

    def show(self, images: Any) -> None:
        """Shows the teacher images, without going on to what comes after its last layer that is imitated.

        Args:
            images: As its ``forward`` takes them.
        """
        with self.wanted.stopping(), torch.no_grad(), self.autocast():
            self.teacher(images)

    def apart(self) -> Tensor | float:
        """The weighted distances of the layers' attention maps, for the images that both have seen last.

        Returns:
            A scalar, to be added to the loss; 0 if no layer is imitated.

        Raises:
            InputError: The two had the images in different sizes.
        """
        apart: Tensor | float = 0.0
        for name, teachers in self.settings.feature_layers.items():
            own, wanted = self.own.outputs[name], self.wanted.outputs[teachers]
            if own.shape[2:] != wanted.shape[2:]:
                raise InputError(
                    f"feature_layers: in training {name!r} returns maps of {list(own.shape[2:])} and the teacher's "
                    f"{teachers!r} of {list(wanted.shape[2:])}: the networks have to resize images alike, and not at "
                    "random"
                )
            apart = apart + self.settings.feature_weight * attention_distance(own, wanted)
        self.own.outputs.clear()
        self.wanted.outputs.clear()
        return apart

    def close(self) -> None:
        """Stops listening."""
        self.own.close()
        self.wanted.close()


class Imitation(FeatureImitation):
    """What a student's loss becomes next to a teacher: its logits are imitated, too."""

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """Adds imitation to a loss.

        Args:
            images: What both networks look at.
            logits: What the student made of them, float ``[B, classes]``.
            loss: The loss by the labels.

        Returns:
            The loss to be minimised.
        """
        with torch.no_grad(), self.autocast():
            target = self.teacher(images).float()
        loss = torch.lerp(
            loss, imitated_logits(logits, target, self.settings.temperature), self.settings.distill_weight
        )
        return loss + self.apart()


def imitated_logits(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Divergence of softened logits (Hinton et al., 2015).

    Args:
        logits: Of the student, ``[B, classes]``.
        target: Of the teacher, ``[B, classes]``.
        temperature: Both are divided by it.

    Returns:
        The mean over the images in nats, times the square of the temperature, so that the gradient does not fall with
        it.
    """
    student, wanted = F.log_softmax(logits / temperature, 1), F.log_softmax(target / temperature, 1)
    return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * temperature**2


def attention_distance(own: Tensor, wanted: Tensor) -> Tensor:
    """How differently two layers look at the same images (Zagoruyko & Komodakis, 2017).

    A layer's attention map is the mean over its channels of its squares, scaled to length 1; how many channels there
    are is of no account, so a pruned layer can imitate a whole one with nothing to be learned in between.

    Args:
        own: Features ``[B, C1, H, W]``.
        wanted: Features ``[B, C2, H, W]``.

    Returns:
        The squared distance of the maps, in [0, 2], mean over the images.
    """
    maps = [F.normalize(x.float().square().mean(1).flatten(1), dim=1) for x in (own, wanted)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def check_features(model: nn.Module, teacher: nn.Module, layers: Mapping[str, str], images: Any) -> None:
    """Makes sure that the modules whose features are to be imitated exist and fit.

    Args:
        model: The student; left as it is.
        teacher: The teacher; left as it is.
        layers: Names of the student's modules, with the teacher's.
        images: A batch, as both take it.

    Raises:
        LayerError: A module that does not exist.
        InputError: A module that is not run once on images, or whose output is no map ``[B, C, H, W]`` of the same
            height and width in both.
    """
    shapes = []
    for network, names in ((model, list(layers)), (teacher, list(layers.values()))):
        listener = _Listener(network, names)
        try:
            with undisturbed(network):
                call_model(network, map_tensors(partial(Tensor.to, device=device_of(network)), images))
        finally:
            listener.close()
        for name in names:
            output = listener.outputs.get(name)
            if not isinstance(output, Tensor) or output.ndim != 4:
                what = "is not run" if output is None else f"returns {describe(output)}"
                raise InputError(f"feature_layers: {name!r} {what}; name a module that returns maps [B, C, H, W]")
        shapes.append([listener.outputs[name].shape[2:] for name in names])
    for (name, teachers), one, other in zip(layers.items(), *shapes, strict=True):
        if one != other:
            raise InputError(
                f"feature_layers: {name!r} returns maps of {list(one)} and the teacher's {teachers!r} of "
                f"{list(other)}; name modules with maps of the same size"
            )


class _HeardAll(Exception):
    """Nothing that comes after in the forward pass is of interest."""


class _Listener:
    """Holds what modules returned last."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.outputs: dict[str, Any] = {}
        self.stops = False
        modules = dict(model.named_modules())
        chosen = list(names)
        for name in chosen:
            if name not in modules:
                raise LayerError(f"feature_layers: there is no module {name!r}; {nearest(name, modules)}")
        self.chosen = set(chosen)
        self.handles = [modules[name].register_forward_hook(self._keep(name)) for name in chosen]

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Ends the network's forward pass when the last module has returned."""
        self.stops = True
        try:
            yield
        except _HeardAll:
            pass
        finally:
            self.stops = False

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs[name] = output
            if self.stops and self.outputs.keys() == self.chosen:
                raise _HeardAll

        return keep

    def close(self) -> None:
        """Stops listening."""
        for handle in self.handles:
            handle.remove()
