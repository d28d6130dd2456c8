"""Applying a plan to a model: to all of it, or to nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .plan import Plan, named_tensors
from .scoring import unwrap


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Narrows a model in place by a plan.

    Parameters stay the same objects (with sliced gradients), so tied weights, hooks and optimizers keep their hold of
    them. An optimizer's own state (momentum) is not narrowed: make a new optimizer.

    Args:
        model: A model of the shape the plan was made for; wrappers are looked through.
        plan: The plan.

    Raises:
        PlanError: The plan is for another model. Whatever is raised, the model is then exactly as it was.
    """
    model = unwrap(model)
    plan.check(model)
    tensors = named_tensors(model)
    narrowed: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, axes in plan.keep.items():
        tensor = tensors[name]
        if id(tensor) not in narrowed:
            grad = None if tensor.grad is None else _narrow(tensor.grad, axes)
            narrowed[id(tensor)] = (tensor, _narrow(tensor.detach(), axes), grad)
    modules = dict(model.named_modules())
    undo: list[Callable[[], None]] = []
    try:
        for tensor, data, grad in narrowed.values():
            undo.append(_restorer(tensor))
            _swap(tensor, data, grad)
        for name, values in plan.attributes.items():
            for attribute, value in values.items():
                undo.append(_attribute_restorer(modules[name], attribute))
                setattr(modules[name], attribute, value)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _narrow(tensor: Tensor, axes: dict[str, list[int]]) -> Tensor:
    layout = torch.contiguous_format
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    for axis, indices in axes.items():
        tensor = tensor.index_select(int(axis), torch.tensor(indices, device=tensor.device))
    return tensor.contiguous(memory_format=layout)


def _swap(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    tensor.grad = None  # a gradient of the old shape would be refused beside the new data
    tensor.data = data
    tensor.grad = grad


def _restorer(tensor: Tensor) -> Callable[[], None]:
    data, grad = tensor.data, tensor.grad
    return lambda: _swap(tensor, data, grad)


def _attribute_restorer(module: nn.Module, attribute: str) -> Callable[[], None]:
    value = getattr(module, attribute)
    return lambda: setattr(module, attribute, value)
