"""Layers with filters: which of a model are scored, and their weights, checked."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..utils.compat import own_buffers, own_parameters
from ..utils.errors import ArgumentError, LayerError, WeightError, nearest
from ..utils.forward import undisturbed
from ..utils.modules import modules_of
from ..utils.weights import (
    FLOAT8_DTYPES,
    QUANTISED_LAYER,
    Trouble,
    is_quantised_class,
    is_quantised_layer,
    weight_trouble,
)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS_WITH_FILTERS = (*_CONVS, *TRANSPOSED, nn.Linear)
_SCRIPTED = "inside a scripted or traced module: score the module that it was made from"
_SCRIPTED_CONVOLUTIONS = {kind.__name__ for kind in (*_CONVS, *TRANSPOSED)}


@dataclass(frozen=True)
class LayerInfo:
    """A scored layer.

    Attributes:
        kind: The class of the module, such as ``"Conv2d"``.
        shape: The shape of its weight.
        axis: The axis of the weight on which its filters lie: 0, or 1 for transposed convolutions.
        groups: The groups of the layer; 1 for linear layers.
    """

    kind: str
    shape: tuple[int, ...]
    axis: int
    groups: int


def select(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Sequence[str | type[nn.Module]] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the layers with filters into those to be scored and the others.

    Args:
        model: The model, out of its wrappers.
        modules: Its modules by first name.
        layers: ``None`` for all convolutions, or names of layers and classes of modules.

    Returns:
        The modules to be scored by name, and the names of the others with the reason why they are not.

    Raises:
        ArgumentError: ``layers`` is not a list of names and module classes.
        LayerError: A name does not exist, or a layer has no filters.
        WeightError: A module is wrapped by ``FullyShardedDataParallel`` (FSDP 1), whose weights are parts of flat ones.
    """
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise ArgumentError(f"layers={layers!r}: give a list of layer names and module classes")
    # Classes are asked, and modules only where it depends on them: a model has few classes and many modules.
    kinds = {kind: _is_class_with_filters(kind) for kind in set(map(type, modules.values()))}
    if flat := {kind for kind in kinds if _is_flat_shard(kind)}:
        name = next(name for name, module in modules.items() if type(module) in flat)
        raise WeightError(
            f"{f'layer {name!r}' if name else 'the model'} is sharded by FullyShardedDataParallel, so this process has "
            "only a part of its weights: score the plain model before it is wrapped, or shard it with fully_shard",
            layer=name,
        )
    with_filters = {kind for kind, has_filters in kinds.items() if has_filters is not False}
    scorable = {
        name: module
        for name, module in modules.items()
        if type(module) in with_filters and (kinds[type(module)] or hasattr(module, "weight"))
    }
    wanted: set[str] = set()
    if layers is None:
        linear = {kind for kind in kinds if _is_linear(kind)}
        wanted = {name for name, module in scorable.items() if type(module) not in linear}
    else:
        for layer in layers:
            wanted |= _named_by(layer, model, modules, scorable)
    chosen = {name: module for name, module in scorable.items() if name in wanted}
    reason = "linear layers are scored on request: layers=[nn.Linear, ...]" if layers is None else "not asked for"
    unscored = dict.fromkeys([name for name in scorable if name not in wanted], reason)
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
        unscored |= {name: _SCRIPTED for name, module in modules.items() if _is_scripted_convolution(module)}
    return chosen, unscored


def _named_by(
    layer: str | type[nn.Module],
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    scorable: dict[str, nn.Module],
) -> set[str]:
    """Finds the names of the layers that one item of ``layers`` selects."""
    if isinstance(layer, str):
        if layer in scorable:
            return {layer}
        module = modules_of(model, every_name=True).get(layer)
        if module is None:
            raise LayerError(f"no layer {layer!r} in the {type(model).__name__}; {nearest(layer, scorable)}")
        first = next(name for name, other in modules.items() if other is module)
        if first in scorable:
            raise LayerError(f"layer {layer!r} is the same module as {first!r}; give that name")
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(f"layer {layer!r} is {_SCRIPTED}")
        raise LayerError(f"layer {layer!r} is a {type(module).__name__} and has no filters; {nearest(layer, scorable)}")
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        names = {name for name, module in scorable.items() if isinstance(module, layer)}
        if not names and not issubclass(layer, _LAYERS_WITH_FILTERS):
            raise LayerError(f"layers of class {layer.__name__} have no filters; give convolution classes or nn.Linear")
        return names
    raise ArgumentError(f"layers contains {layer!r}: give layer names and module classes")


@functools.lru_cache(maxsize=1024)
def _is_class_with_filters(kind: Any) -> bool | None:
    """Tells whether the modules of a class have filters; ``None`` if it depends on whether they have a weight.

    Quantised layers count, so that they are refused and not silently left out.
    """
    if is_quantised_class(kind):
        return None if any(word in kind.__name__ for word in ("Conv", "Linear")) else False
    return issubclass(kind, _LAYERS_WITH_FILTERS)


def _is_scripted_convolution(module: nn.Module) -> bool:
    """Tells whether a module is what TorchScript made of a convolution. Its class does not say what it was."""
    return isinstance(module, torch.jit.ScriptModule) and module.original_name in _SCRIPTED_CONVOLUTIONS


@functools.lru_cache(maxsize=1024)
def _is_flat_shard(kind: Any) -> bool:
    """Tells whether a class is FSDP 1's wrapper; by its name, because importing FSDP takes a second."""
    return any(
        base.__name__ == "FullyShardedDataParallel" and base.__module__.startswith("torch.distributed.fsdp")
        for base in kind.__mro__
    )


@functools.lru_cache(maxsize=1024)
def _is_linear(kind: Any) -> bool:
    return issubclass(kind, nn.Linear) or (is_quantised_class(kind) and "Linear" in kind.__name__)


@functools.lru_cache(maxsize=4096)  # a call asks this for every layer; layers that are alike share one description
def described(kind: Any, shape: tuple[int, ...], groups: int, axis_compared: str) -> tuple[LayerInfo, str]:
    """Describes a layer, and whether it can be scored.

    Args:
        kind: The class of the module.
        shape: The shape of its weight.
        groups: Its groups, which divide the weight.
        axis_compared: The axis of the formula.

    Returns:
        The description, and why filters of such a layer have no score; empty where they have one.
    """
    axis = 1 if issubclass(kind, TRANSPOSED) else 0
    filters, channels = shape[axis], shape[1 - axis]
    if axis == 1:
        filters, channels = filters * groups, channels // groups
    reason = ""
    if axis_compared == "channels" and channels == 1:
        reason = "one channel per filter: it takes the score of the layer it is coupled with"
    elif filters == 1 and (axis_compared == "filters" or (axis_compared == "both" and channels == 1)):
        reason = "a single filter: there is no other to compare it with"
    own = next(base for base in kind.__mro__ if not base.__module__.startswith("torch.distributed"))  # fully_shard's
    return LayerInfo(own.__name__, tuple(shape), axis, groups), reason


def read_weight(name: str, module: nn.Module) -> Tensor:
    """Reads the weight of a layer.

    Args:
        name: The name of the layer, for messages.
        module: The layer.

    Returns:
        The weight as :func:`attached_weight` reads it, detached.

    Raises:
        WeightError: The weight is unfit.
    """
    return attached_weight(name, module).detach()


def attached_weight(name: str, module: nn.Module, copied: list[str] | None = None) -> Tensor:
    """Reads the weight of a layer, for kernels, which know no gradients.

    Args:
        name: The name of the layer, for messages.
        module: The layer.
        copied: The name is added to it where the weight has to be copied (:func:`fec_fast.utils.weights.plain_copy`).
            Without it such a weight is unfit.

    Returns:
        The weight: dense, with values, of a floating-point dtype, on its own device.

    Raises:
        WeightError: The weight is unfit (:func:`fec_fast.utils.weights.weight_trouble`); the message names the layer
            and the remedy.
    """
    kind: Any = type(module)  # a key: a model has few classes, so what follows from one is kept
    weight: Any = own_parameters(module).get("weight") if _reads_its_parameter(kind) else None
    if weight is None:
        weight = _computed_weight(name, module)
    if not isinstance(weight, Tensor):
        raise refusal(name, module, Trouble(f"is a {type(weight).__name__}", "a tensor is needed"))
    trouble = weight_trouble(weight)
    if trouble is not None and copied is not None:
        trouble = weight_trouble(weight, by_copy=True)
        if trouble is None and weight.dtype in FLOAT8_DTYPES:
            trouble = scale_trouble(weight.dtype, [*own_parameters(module), *own_buffers(module)])
        copied.append(name)
    if trouble is not None:
        raise refusal(name, module, trouble)
    return weight


def scale_trouble(dtype: torch.dtype, beside: Iterable[str]) -> Trouble | None:
    """Decides whether the values of a float8 weight are the weight: they are not where a scale stands beside it.

    Args:
        dtype: The dtype of the weight.
        beside: The names of the tensors of its layer, such as ``"weight_scale"``.
    """
    scale = next((name for name in beside if "scale" in name.lower()), None)
    if scale is None:
        return None
    what = f"is {str(dtype).removeprefix('torch.')} with a scale of its own, {scale!r}, which is not applied here"
    return Trouble(what, "multiply the weight by it and give the product as bfloat16")


@functools.lru_cache(maxsize=1024)
def _reads_its_parameter(kind: Any) -> bool:
    """Tells whether ``module.weight`` is the parameter of this name, if a module of this class has one.

    It is not where the class computes it: a property, as torch's parametrisations make one, or another look-up.
    """
    return not (hasattr(kind, "weight") or kind.__getattr__ is not nn.Module.__getattr__ or is_quantised_class(kind))


def _computed_weight(name: str, module: nn.Module) -> Any:
    """The weight of a layer as its attribute, whatever stands behind it."""
    if is_quantised_layer(module):
        raise refusal(name, module, QUANTISED_LAYER)
    if parametrize.is_parametrized(module, "weight"):
        # Reading a parametrised weight runs code that may change a buffer, such as a spectral norm's power iteration.
        with undisturbed(module.parametrizations.weight):  # type: ignore[union-attr,arg-type]
            return module.weight
    return module.weight


def refusal(name: str, module: nn.Module, trouble: Trouble) -> WeightError:
    """The error for a layer whose weight is unfit."""
    message = f"layer {name!r} ({type(module).__name__}): its weight {trouble.what}; {trouble.remedy}"
    return WeightError(message, layer=name)
