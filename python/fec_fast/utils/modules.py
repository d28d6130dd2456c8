"""Modules and tensors of a model by name, wrappers around models, and sharded parameters.

The walks here are loops over dictionaries. Those of torch are generators inside generators, and on a large model they
take longer than the surgery.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .compat import (
    compiled_module,
    has_modules,
    is_traceable_wrapper_subclass,
    own_buffers,
    own_modules,
    own_parameters,
)
from .errors import ArgumentError, WeightError

_M = TypeVar("_M", bound=nn.Module)


def modules_of(model: nn.Module, *, every_name: bool = False) -> dict[str, nn.Module]:
    """The modules of a model by name, in the order of ``named_modules``.

    Args:
        model: The model.
        every_name: Whether a module that several modules hold is listed under each of its names, or only under the
            first.

    Returns:
        Names to modules; the model itself is ``""``.
    """
    by_name: dict[str, nn.Module] = {"": model}
    if every_name:
        _add_children(own_modules(model), "", by_name)
        return by_name
    seen = {id(model)}
    waiting = [(own, child) for own, child in own_modules(model).items()][::-1]
    while waiting:
        name, module = waiting.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        by_name[name] = module
        waiting += [(f"{name}.{own}", child) for own, child in own_modules(module).items()][::-1]
    return by_name


def _add_children(children: Mapping[str, nn.Module | None], prefix: str, by_name: dict[str, nn.Module]) -> None:
    """Adds modules, and those inside them, by every name they have, in the order of ``named_modules``."""
    for own, child in children.items():
        if child is not None:
            name = prefix + own
            by_name[name] = child
            if has_modules(child):
                _add_children(own_modules(child), name + ".", by_name)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by every name they have.

    Args:
        model: The model.

    Returns:
        Names to tensors, parameters first; a tied tensor is listed under each of its names.
    """
    return tensors_of(modules_of(model, every_name=True))


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters and buffers of some modules.

    Args:
        modules: The modules by name, as :func:`modules_of` returns them.

    Returns:
        Names to tensors, parameters first.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        for collected, tensors in ((parameters, own_parameters(module)), (buffers, own_buffers(module))):
            for own, tensor in tensors.items():
                if tensor is not None:
                    collected[prefix + own] = tensor
    return parameters | buffers


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside its wrappers. Public functions call this once, internal ones get what it returned.

    Args:
        model: A module, possibly inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

    Returns:
        The module inside, or the module itself.

    Raises:
        ArgumentError: The argument is not a module, or is scripted or traced by TorchScript.
    """
    if not isinstance(model, nn.Module):
        hint = "; load the state dict into a model first" if isinstance(model, Mapping) else ""
        if isinstance(getattr(model, "model", None), nn.Module):
            hint = "; give its .model"
        if isinstance(model, type) and issubclass(model, nn.Module):
            hint = f", the class {model.__name__}: give an instance"
        raise ArgumentError(f"model: expected a torch.nn.Module, got a {type(model).__name__}{hint}")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        else:
            inner = compiled_module(model)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            f"model: a scripted or traced {type(model).__name__}; give the module that torch.jit.script or trace "
            "was called on, and script the result"
        )
    return model


def unwrap_for_surgery(model: nn.Module) -> nn.Module:
    """Returns the model inside its wrappers, if it can be changed in place there.

    ``DataParallel`` and ``torch.compile`` notice new shapes at their next call. ``DistributedDataParallel`` does not:
    its gradient buckets keep the shapes they were built with, so training would fail afterwards.

    Args:
        model: A module, possibly inside ``DataParallel`` or ``torch.compile``.

    Returns:
        The module inside, or the module itself.

    Raises:
        ArgumentError: The argument is not a module, or there is a ``DistributedDataParallel`` in it.
        WeightError: The parameters are sharded, or were made in inference mode.
    """
    inner = unwrap(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            where = f"{name!r} is" if name else "the model is"
            raise ArgumentError(
                f"{where} wrapped by DistributedDataParallel, whose buckets keep the shapes from before and could not "
                "be trained afterwards: change the module inside (ddp.module) and wrap it again"
            )
    modules = modules_of(inner)
    check_not_sharded(modules)
    check_not_made_for_inference(modules)
    return inner


def check_can_be_changed(modules: Mapping[str, nn.Module]) -> None:
    """Checks that a model has no parts whose weights or mode cannot be changed.

    Args:
        modules: The modules of the model, out of its wrappers, by name.

    Raises:
        ArgumentError: A module was exported by torch.export, or frozen by TorchScript.
    """
    for name, module in modules.items():
        if "train" not in (own := module.__dict__) and "training" in own:
            continue
        where = f"layer {name!r}" if name else "the model"
        if "train" in own:  # exported modules have one that raises; their class is not public
            raise ArgumentError(
                f"model: {where}, a {type(module).__name__}, has replaced train(), as modules exported by torch.export "
                "have: their graph cannot be run in another mode; prune the module that was exported, and export it "
                "again"
            )
        if not hasattr(module, "training"):
            raise ArgumentError(
                f"model: {where} is a frozen {type(module).__name__}, whose weights are constants; prune the module "
                "that torch.jit.freeze was called on, and freeze the result"
            )


def check_not_made_for_inference(modules: Mapping[str, nn.Module]) -> None:
    """Checks that no parameter or buffer was made in torch's inference mode.

    Args:
        modules: The modules of the model by name.

    Raises:
        WeightError: One was; the layer is named.
    """
    for name, module in modules.items():
        for own, tensor in [*own_parameters(module).items(), *own_buffers(module).items()]:
            if tensor is not None and not is_lazy(tensor) and tensor.is_inference():
                raise WeightError(
                    f"layer {name!r}: its {own} was made inside torch.inference_mode(), so that it cannot be changed "
                    "outside; give copy.deepcopy(model), made outside of it",
                    layer=name,
                )


def is_sharded(tensor: Any) -> bool:
    """Tells whether a tensor is sharded, its parts on several processes.

    Args:
        tensor: Any tensor, or ``None``.

    Returns:
        True for a DTensor and similar classes. They are recognised by their module, because a torch built without
        ``torch.distributed`` does not have the class.
    """
    return is_traceable_wrapper_subclass(tensor) and type(tensor).__module__.startswith("torch.distributed")


def check_not_sharded(modules: Mapping[str, nn.Module]) -> None:
    """Checks that no parameter or buffer is sharded.

    Args:
        modules: The modules of the model, out of its wrappers, by name.

    Raises:
        WeightError: A module is wrapped by FSDP, or holds a DTensor; the layer is named.
    """
    remedy = "prune the plain model before sharding it, on every rank alike"
    for name, module in modules.items():
        # Recognised by its module, because importing FSDP takes a second. fully_shard adds its class to the bases.
        if any(kind.__module__.startswith("torch.distributed.fsdp") for kind in type(module).__mro__):
            where = f"layer {name!r}" if name else "the model"
            raise WeightError(
                f"{where} is sharded by FSDP, so this process has only a part of its weights: {remedy}", layer=name
            )
        for own, tensor in [*own_parameters(module).items(), *own_buffers(module).items()]:
            if is_sharded(tensor):
                kind = type(tensor).__name__
                raise WeightError(f"layer {name!r}: its {own} is a {kind}, sharded over devices: {remedy}", layer=name)


def in_evaluation(model: _M) -> _M:
    """Puts a model in evaluation mode.

    Args:
        model: The model.

    Returns:
        The model. ``model.eval()`` returns what the model's own ``train`` does, which in some code is nothing.
    """
    model.eval()
    return model


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model.

    Args:
        model: A model with all parameters and buffers on one device.

    Returns:
        The device of its first parameter or buffer; the CPU if it has none.
    """
    first: Tensor | None = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
