"""Applying a plan to a model: to all of it, or to nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .plan import Plan, named_tensors
from .wrappers import unwrap_for_surgery


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Narrows a model in place by a plan.

    Parameters stay the same objects (with sliced gradients), so tied weights, hooks and optimizers keep their hold of
    them. An optimizer's own state (momentum) is narrowed by :func:`fec_fast.remap_optimizer` afterwards.

    Args:
        model: A model of the shape the plan was made for; ``DataParallel`` and ``torch.compile`` are looked through.
            ``DistributedDataParallel`` is refused: give ``ddp.module``, and wrap it again.
        plan: The plan.

    Raises:
        PlanError: The plan is for another model.
        ArgumentError: It is not a module, or is wrapped by ``DistributedDataParallel``.
        WeightError: The parameters are sharded (FSDP, DTensor). Whatever is raised, the model is exactly as it was.
    """
    model = unwrap_for_surgery(model)
    plan.check(model)
    tensors = named_tensors(model)
    narrowed: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, axes in plan.keep.items():
        tensor = tensors[name]
        if id(tensor) not in narrowed:
            grad = None if tensor.grad is None else narrow(tensor.grad.detach(), axes)
            narrowed[id(tensor)] = (tensor, narrow(tensor.detach(), axes), grad)
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
        for tensor, data, _ in narrowed.values():
            _forget_accumulator(tensor, data)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def narrow(tensor: Tensor, axes: dict[str, list[int]]) -> Tensor:
    """Selects what a plan keeps of a tensor.

    Args:
        tensor: Of the shape before pruning, on any device.
        axes: Kept indices by axis, as a plan has them.

    Returns:
        A new dense tensor in memory of its own, channels-last if the given one is.
    """
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


def _forget_accumulator(tensor: Tensor, data: Tensor) -> None:
    """Makes autograd forget the shape a parameter had.

    The node that accumulates a parameter's gradient lives as long as any graph that has it, such as that of the last
    loss of a training loop, and would refuse gradients of the new shape. Only data of another dtype makes torch drop
    it. The last step of all, because it is the one that has no way back.
    """
    if tensor.requires_grad:
        grad, tensor.grad = tensor.grad, None
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
        tensor.data = data
        tensor.grad = grad


def _restorer(tensor: Tensor) -> Callable[[], None]:
    data, grad = tensor.data, tensor.grad
    return lambda: _swap(tensor, data, grad)


def _attribute_restorer(module: nn.Module, attribute: str) -> Callable[[], None]:
    value = getattr(module, attribute)
    return lambda: setattr(module, attribute, value)
