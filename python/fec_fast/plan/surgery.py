"""Applying a plan to a model: to all of it, or to nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.modules import modules_of, named_tensors, unwrap_for_surgery
from .plan import Plan


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
    modules = modules_of(model)
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


def pruned_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """Copies a model, of what a plan narrows only the part that stays.

    Args:
        model: The model the plan was made from, not wrapped; not changed.
        plan: The plan.

    Returns:
        The smaller copy: what :func:`apply_plan` makes of a deep copy, without its ever having been there as a whole.
    """
    tensors = named_tensors(model)
    copies: dict[int, Any] = {}
    known: dict[Any, Tensor] = {}
    others: dict[str, dict[str, list[int]]] = {}
    for name, axes in plan.keep.items():
        tensor = tensors[name]
        if id(tensor) in copies:
            continue
        if type(tensor) is nn.Parameter:
            copies[id(tensor)] = nn.Parameter(narrow(tensor.detach(), axes, known), tensor.requires_grad)
        elif type(tensor) is Tensor and not tensor.requires_grad and not vars(tensor):
            copies[id(tensor)] = narrow(tensor, axes, known)
        else:  # of a kind of its own: its own copy is narrowed
            others[name] = axes
    copied = _copied(model, copies)
    if others:
        tensors = named_tensors(copied)
        for name, axes in others.items():
            if tensors[name].shape == torch.Size(plan.shapes[name]):  # a tied one may have been narrowed already
                tensors[name].data = narrow(tensors[name].detach(), axes)
    modules = modules_of(copied)
    for name, values in plan.attributes.items():
        for attribute, value in values.items():
            setattr(modules[name], attribute, value)
    return copied


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy(model, memo)``, faster: modules without a way of their own of being copied are filled in here.

    Most of a module's attributes are plain numbers, and empty dictionaries, which ``deepcopy`` is slow at.
    """
    kinds = {kind: _is_copied_plainly(kind) for kind in {type(module) for module in modules_of(model).values()}}
    plain = [module for module in modules_of(model).values() if kinds[type(module)]]
    for module in plain:  # all of them first, so that whatever refers to a module finds its copy
        memo[id(module)] = object.__new__(type(module))
    for module in plain:
        state = module.__getstate__()  # type: ignore[no-untyped-call]
        memo[id(module)].__setstate__({name: _copied_value(value, memo) for name, value in state.items()})
    return copy.deepcopy(model, memo)


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy(value, memo)`` with short ways for what most attributes of modules are."""
    kind = type(value)
    if kind in _ATOMIC or (kind is tuple and all(type(item) in _ATOMIC for item in value)):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind not in (dict, OrderedDict) or not all(type(key) is str for key in value):
        return copy.deepcopy(value, memo)
    copied = memo[id(value)] = kind()
    for key, item in value.items():
        copied[key] = _copied_value(item, memo)
    return copied


_ATOMIC = {int, float, bool, str, type(None)}


def _is_copied_plainly(kind: type[nn.Module]) -> bool:
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__new__ is object.__new__
        and kind.__getstate__ is nn.Module.__getstate__
        and not any("__slots__" in vars(parent) for parent in kind.__mro__)
    )


def narrow(tensor: Tensor, axes: dict[str, list[int]], known: dict[Any, Tensor] | None = None) -> Tensor:
    """Selects what a plan keeps of a tensor.

    Args:
        tensor: Of the shape before pruning, on any device.
        axes: Kept indices by axis, as a plan has them.
        known: The same lists as tensors, by identity and device, from narrowing other tensors by the same plan.

    Returns:
        A new dense tensor in memory of its own, channels-last if the given one is.
    """
    layout = torch.contiguous_format
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    for axis, indices in axes.items():
        key = id(indices), tensor.device
        picked = None if known is None else known.get(key)
        if picked is None:
            picked = torch.tensor(indices, device=tensor.device)
            if known is not None:
                known[key] = picked
        tensor = tensor.index_select(int(axis), picked)
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
