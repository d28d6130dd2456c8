"""Tensors that leave a model: in nested results, in the attributes of any object, and left on the model's modules."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .computed_weights import computed_attributes

# Attributes that every module has; what a model's own code leaves on a module has another name.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_WITHOUT_CONTENT = (nn.Module, str, bytes, type, types.ModuleType, *_FUNCTIONS)


def named_tensors_in(value: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Iterates over the tensors in a value: nested containers of any class, dataclasses and other objects.

    Args:
        value: What a model returned.
        name: The name of the value.

    Yields:
        Each tensor once, with a name such as ``"output.boxes[0]"``. NumPy arrays and numbers become tensors.
    """
    yield from _walk(value, name, set(), of_objects=True)


def tensors_on_modules(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Iterates over the tensors that a model's code left in attributes of its modules.

    Args:
        modules: The modules of the model by name, after a run.

    Yields:
        Each tensor with a name such as ``"backbone.features"``, in containers too. Parameters, buffers, submodules and
        the attributes of other objects (a trainer, a data set) are left out.
    """
    for module_name, module in modules.items():
        computed = computed_attributes(module)  # anew in every run
        for attribute, value in list(vars(module).items()):
            if attribute in computed:
                continue
            if attribute not in OF_EVERY_MODULE and not isinstance(value, int | float | str | None):
                name = f"{module_name}.{attribute}" if module_name else attribute
                found = _walk(value, name, set(), of_objects=False)
                yield from ((each, tensor) for each, tensor in found if not isinstance(tensor, nn.Parameter))


def _walk(value: Any, name: str, seen: set[int], *, of_objects: bool) -> Iterator[tuple[str, Tensor]]:
    if value is None or isinstance(value, _WITHOUT_CONTENT):
        return
    if isinstance(value, bool | int | float | complex | np.number | np.bool_):
        if of_objects:
            yield name, torch.as_tensor(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            yield name, torch.from_numpy(value.copy())
    else:
        for part, item in [*_items(value), *(_attributes(value) if of_objects else ())]:
            yield from _walk(item, f"{name}{part}", seen, of_objects=of_objects)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The items of a container, each with the end of its name."""
    if isinstance(value, Mapping):
        yield from [(f"[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)  # of a named tuple
        yield from [(f".{names[i]}" if names else f"[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, Set):
        yield from [(f"{{{i}}}", item) for i, item in enumerate(value)]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, each with the end of its name."""
    slots = [slot for kind in type(value).__mro__ for slot in _slots_of(kind)]
    yield from [(f".{slot}", getattr(value, slot)) for slot in slots if hasattr(value, slot)]
    yield from [(f".{attribute}", item) for attribute, item in getattr(value, "__dict__", {}).items()]


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
