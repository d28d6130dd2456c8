"""Networks by name: the small ones of the pruning literature, torchvision's, and any factory in a Python file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..utils.errors import InputError, missing_extra, nearest
from .networks import (
    resnet20_cifar,
    resnet34_cifar,
    resnet56_cifar,
    resnet_digits,
    vgg16_cifar,
    vgg_digits,
)
from .ssd import ssd_small
from .user_file import from_file

_ZOO: dict[str, Callable[..., nn.Module]] = {
    "vgg16-cifar": vgg16_cifar,
    "resnet20-cifar": resnet20_cifar,
    "resnet34-cifar": resnet34_cifar,
    "resnet56-cifar": resnet56_cifar,
    "vgg-digits": vgg_digits,
    "resnet-digits": resnet_digits,
    "ssd-small": ssd_small,
}


def names() -> list[str]:
    """The networks of the zoo.

    Returns:
        Names such as ``"zoo:vgg16-cifar"``, as :func:`build` takes them.
    """
    return [f"zoo:{name}" for name in _ZOO]


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of the images that a network of this name is made for.

    Args:
        name: As for :func:`build`.

    Returns:
        One image: ``(1, 1, 8, 8)`` for the zoo's digits networks, ``(1, 3, 32, 32)`` for the rest of the zoo, and
        ``(1, 3, 224, 224)`` for all others.
    """
    if not name.startswith("zoo:"):
        return 1, 3, 224, 224
    return (1, 1, 8, 8) if "digits" in name else (1, 3, 32, 32)


def build(name: str, **kwargs: Any) -> nn.Module:
    """Builds a network from its name, with fresh weights. Nothing is downloaded.

    Args:
        name: ``"torchvision:resnet50"``, ``"zoo:vgg16-cifar"`` or ``"path/to/file.py:factory"``. The file is
            executed, so name only files you trust.
        **kwargs: Handed to the factory.

    Returns:
        The network, in the mode its factory left it in.

    Raises:
        InputError: A name of another form, an unknown network, a file or factory that does not exist, or a factory
            that raises or returns something else than a module.
        MissingExtraError: ``torchvision:`` without torchvision.
    """
    prefix, colon, rest = name.rpartition(":")
    if not colon or not prefix or not rest:
        raise InputError(
            f"model {name!r}: write torchvision:NAME, zoo:NAME or path/to/file.py:factory; {nearest(name, names())}"
        )
    if prefix == "zoo":
        factory = _ZOO.get(rest.replace("_", "-"))
        if factory is None:
            raise InputError(f"model {name!r}: the zoo has no {rest!r}; {nearest(rest.replace('_', '-'), _ZOO)}")
    elif prefix == "torchvision":
        factory, kwargs = _torchvision_factory(rest, kwargs)
    else:
        factory = from_file(f"model {name!r}", Path(prefix), rest)
    try:
        model = factory(**kwargs)
    except Exception as error:
        raise InputError(f"model {name!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r}: its factory returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _torchvision_factory(rest: str, kwargs: dict[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    try:
        from torchvision import models
    except ImportError as error:
        raise missing_extra("torchvision", "vision", f"model 'torchvision:{rest}'") from error
    known = models.list_models()
    if rest not in known:
        raise InputError(f"model 'torchvision:{rest}': torchvision has no {rest!r}; {nearest(rest, known)}")
    factory: Callable[..., nn.Module] = models.get_model_builder(rest)
    # The detection and segmentation builders fetch their backbone's weights unless told not to.
    if "weights_backbone" in inspect.signature(factory).parameters:
        kwargs = {"weights_backbone": None, **kwargs}
    return factory, {"weights": None, **kwargs}
