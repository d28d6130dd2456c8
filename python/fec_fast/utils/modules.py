"""Walks over a model's modules: torch's own, which are generators inside generators, take longer than the surgery."""

from __future__ import annotations

from torch import Tensor, nn


def modules_of(model: nn.Module, *, every_name: bool = False) -> dict[str, nn.Module]:
    """The modules of a model by name, in the order of ``named_modules``.

    Args:
        model: The model.
        every_name: Whether a module that several modules hold stands under each of its names, or under the first.

    Returns:
        Names to modules; the model itself is ``""``.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not every_name:
            if id(module) in seen:
                continue
            seen.add(id(module))
        found[name] = module
        prefix = f"{name}." if name else ""
        children = [(prefix + own, child) for own, child in module._modules.items() if child is not None]
        waiting += reversed(children)
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by every name they have.

    Args:
        model: The model.

    Returns:
        Names to tensors, parameters first; a tied tensor stands under each of its names.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, module in modules_of(model, every_name=True).items():
        prefix = f"{name}." if name else ""
        for found, tensors in ((parameters, module._parameters), (buffers, module._buffers)):
            for own, tensor in tensors.items():
                if tensor is not None:
                    found[prefix + own] = tensor
    return parameters | buffers
