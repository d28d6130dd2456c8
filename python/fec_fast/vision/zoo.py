"""Networks by name: small ones of the pruning literature, those of torchvision, and factories in a user's file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..utils.errors import InputError, MissingExtraError, missing_extra, nearest
from .networks import (
    mobilenetv2_cifar,
    resnet20_cifar,
    resnet34_cifar,
    resnet56_cifar,
    resnet_digits,
    vgg16_cifar,
    vgg_digits,
)
from .ssd import ssd_small
from .user_file import load_function


class _ZooNetwork(NamedTuple):
    factory: Callable[..., nn.Module]
    input_shape: tuple[int, ...]


_CIFAR, _DIGITS = (1, 3, 32, 32), (1, 1, 8, 8)
_ZOO = {
    "vgg16-cifar": _ZooNetwork(vgg16_cifar, _CIFAR),
    "resnet20-cifar": _ZooNetwork(resnet20_cifar, _CIFAR),
    "resnet34-cifar": _ZooNetwork(resnet34_cifar, _CIFAR),
    "resnet56-cifar": _ZooNetwork(resnet56_cifar, _CIFAR),
    "mobilenetv2-cifar": _ZooNetwork(mobilenetv2_cifar, _CIFAR),
    "vgg-digits": _ZooNetwork(vgg_digits, _DIGITS),
    "resnet-digits": _ZooNetwork(resnet_digits, _DIGITS),
    "ssd-small": _ZooNetwork(ssd_small, _CIFAR),
}


def names() -> list[str]:
    """Lists the networks of the zoo.

    Returns:
        Names such as ``"zoo:vgg16-cifar"``, as :func:`build` takes them.
    """
    return [f"zoo:{name}" for name in _ZOO]


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of one image that a network of this name is made for.

    Args:
        name: A name as :func:`build` takes it.

    Returns:
        ``(1, 1, 8, 8)`` for the zoo's digits networks, ``(1, 3, 32, 32)`` for the rest of the zoo, and
        ``(1, 3, 224, 224)`` for all others.

    Raises:
        InputError: The zoo has no network of this name, or it is no text.
    """
    _check_name(name)
    if not name.startswith("zoo:"):
        return 1, 3, 224, 224
    return _zoo_network(name).input_shape


def build(name: str, **kwargs: Any) -> nn.Module:
    """Builds a network from its name, with fresh weights. Nothing is downloaded.

    Args:
        name: ``"torchvision:resnet50"``, ``"zoo:vgg16-cifar"`` or ``"path/to/file.py:factory"``. The file is
            executed, so name only files you trust.
        **kwargs: Arguments for the factory.

    Returns:
        The network, in the mode its factory left it in.

    Raises:
        InputError: The name has another form, the network, file or factory does not exist, or the factory raises or
            returns something other than a module.
        MissingExtraError: The name begins with ``torchvision:``, or is ``zoo:mobilenetv2-cifar``, and torchvision is
            not installed.
    """
    _check_name(name)
    prefix, colon, rest = name.rpartition(":")
    if not colon or not prefix or not rest:
        raise InputError(
            f"model {name!r}: write torchvision:NAME, zoo:NAME or path/to/file.py:factory; {nearest(name, names())}"
        )
    if prefix == "zoo":
        factory = _zoo_network(name).factory
    elif prefix == "torchvision":
        factory, kwargs = _torchvision_factory(rest, kwargs)
    else:
        factory = load_function(f"model {name!r}", Path(prefix), rest)
    random_state = torch.get_rng_state()
    try:
        model = factory(**kwargs)
    except MissingExtraError:
        raise
    except Exception as error:
        torch.set_rng_state(random_state)  # it may have drawn weights before
        raise InputError(f"model {name!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r}: its factory returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_name(name: object) -> None:
    if not isinstance(name, str) or "\0" in name:
        raise InputError(f"name={name!r:.80}: write torchvision:NAME, zoo:NAME or path/to/file.py:factory")


def _zoo_network(name: str) -> _ZooNetwork:
    """Looks a name such as ``"zoo:vgg16-cifar"`` up; underscores may stand for hyphens."""
    own_name = name.removeprefix("zoo:")
    network = _ZOO.get(own_name.replace("_", "-"))
    if network is None:
        raise InputError(f"model {name!r}: the zoo has no {own_name!r}; {nearest(own_name.replace('_', '-'), _ZOO)}")
    return network


def _torchvision_factory(name: str, kwargs: dict[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Returns a builder of torchvision and its arguments, with all downloads switched off."""
    try:
        from torchvision import models
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision", "vision", f"model 'torchvision:{name}'", error) from error
    networks = models.list_models()
    if name not in networks:
        raise InputError(f"model 'torchvision:{name}': torchvision has no {name!r}; {nearest(name, networks)}")
    factory: Callable[..., nn.Module] = models.get_model_builder(name)
    # The builders of detectors and segmentation networks download the backbone's weights by default.
    if "weights_backbone" in inspect.signature(factory).parameters:
        kwargs = {"weights_backbone": None, **kwargs}
    return factory, {"weights": None, **kwargs}
