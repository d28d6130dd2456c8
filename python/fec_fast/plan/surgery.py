"""Surgery: applies a plan to a model, in place or to a copy. Upon any error the model is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.computed_weights import computed_attributes, recompute
from ..utils.copying import copied_model
from ..utils.model_index import ModelIndex
from ..utils.modules import named_tensors, unwrap_for_surgery
from ..utils.number_attributes import in_type_of
from .plan import Plan, check_plan

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Prunes a model in place by a plan.

    Parameters stay the same objects (with sliced gradients), so tied weights, hooks and optimizers keep their
    references to them. An optimizer's own state (momentum) is pruned by :func:`fec_fast.remap_optimizer` afterwards.

    Args:
        model: A model with the names and shapes that the plan was made for. ``DataParallel`` and ``torch.compile``
            wrappers are looked through. ``DistributedDataParallel`` is not supported: pass ``ddp.module`` and wrap it
            again.
        plan: The plan.

    Raises:
        PlanError: The plan is for another model.
        ArgumentError: Not a module, or wrapped by ``DistributedDataParallel``.
        WeightError: The parameters are sharded (FSDP, DTensor). After any error the model is unchanged.
    """
    index = ModelIndex.of(unwrap_for_surgery(model))
    check_plan(plan, index)
    prune_in_place(index, plan)


def prune_in_place(index: ModelIndex, plan: Plan) -> None:
    """Prunes a model in place by a plan that is known to fit.

    Args:
        index: The index of the model before pruning. Its tensors stay the same objects; their shapes change.
        plan: A plan that :func:`fec_fast.plan.plan.check_plan` has accepted for this model.
    """
    with torch.inference_mode(False):  # or the new tensors could not be trained
        _prune_in_place(index, plan)


def _prune_in_place(index: ModelIndex, plan: Plan) -> None:
    # All new tensors are made before the first change: running out of memory here leaves the model unchanged.
    pruned: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, axes in plan.keep.items():
        tensor = index.tensors[name]
        if id(tensor) not in pruned:  # a tied tensor is listed under each of its names and pruned once
            grad = None if tensor.grad is None else select_kept(tensor.grad.detach(), axes)
            pruned[id(tensor)] = (tensor, select_kept(tensor.detach(), axes), grad)
    # The undo log: each step's reversal is stored before the step itself, so that an exception in the middle of a step
    # (even Ctrl-C) undoes that step too. A reversal that had nothing to reverse sets the value that is there already.
    undo: list[Callable[[], None]] = []
    try:
        for tensor, data, grad in pruned.values():
            undo.append(_restore_tensor(tensor))
            _set_data(tensor, data, grad)
        for name, values in plan.attributes.items():
            for attribute, value in values.items():
                undo.append(_restore_attribute(index.modules[name], attribute))
                setattr(index.modules[name], attribute, value)
        for name, attributes in plan.sizes.items():
            for attribute, values in attributes.items():
                undo.append(_restore_attribute(index.modules[name], attribute))
                _set_size(index.modules[name], attribute, values["after"])
        for module in index.modules.values():
            undo += [_restore_attribute(module, attribute) for attribute in computed_attributes(module)]
        with torch.no_grad():
            recompute(index.modules.values())
        for tensor, data, _ in pruned.values():
            _reset_gradient_accumulator(tensor, data)
    except BaseException:
        for reverse in reversed(undo):
            reverse()
        raise


def pruned_copy(index: ModelIndex, plan: Plan) -> nn.Module:
    """Copies a model without the channels that a plan removes.

    Args:
        index: The index of the model that the plan was made for; the model is not changed.
        plan: The plan.

    Returns:
        The smaller copy: equal to what :func:`apply_plan` makes of a deep copy, but the full-size copy never exists.
    """
    with torch.inference_mode(False):  # or the copy could not be trained
        return _pruned_copy(index, plan)


def _pruned_copy(index: ModelIndex, plan: Plan) -> nn.Module:
    # The memo of deepcopy maps the identity of an object to its copy. Filled with the pruned tensors beforehand, it
    # makes deepcopy put them wherever the model refers to the originals.
    memo: dict[int, Any] = {}
    indices_as_tensors: dict[Any, Tensor] = {}
    special: dict[str, dict[str, list[int]]] = {}
    scripted = {name for name, module in index.modules.items() if isinstance(module, torch.jit.ScriptModule)}
    for name, axes in plan.keep.items():
        tensor = index.tensors[name]
        if id(tensor) in memo:
            continue
        if name.rpartition(".")[0] in scripted:  # its copy does not look into the memo
            special[name] = axes
        elif type(tensor) is nn.Parameter:
            kept = select_kept(tensor.detach(), axes, indices_as_tensors)
            memo[id(tensor)] = nn.Parameter(kept, tensor.requires_grad)
        elif type(tensor) is Tensor and not tensor.requires_grad and not vars(tensor):
            memo[id(tensor)] = select_kept(tensor, axes, indices_as_tensors)
        else:  # a subclass, or a tensor with attributes: deepcopy knows how to copy it, and the copy is pruned
            special[name] = axes
    copied = copied_model(index, memo)
    if special:
        tensors = named_tensors(copied)
        for name, axes in special.items():
            if tensors[name].shape == torch.Size(plan.shapes[name]):  # a tied one may have been pruned already
                tensors[name].data = select_kept(tensors[name].detach(), axes)
    for name, values in plan.attributes.items():
        module = copied.get_submodule(name)
        for attribute, value in values.items():
            setattr(module, attribute, value)
    for name, sizes in plan.sizes.items():
        for attribute, values in sizes.items():
            _set_size(copied.get_submodule(name), attribute, values["after"])
    with torch.no_grad():
        recompute(copied.modules())
    return copied


def select_kept(
    tensor: Tensor, axes: dict[str, list[int]], indices_as_tensors: dict[Any, Tensor] | None = None
) -> Tensor:
    """Selects the indices of a tensor that a plan keeps.

    Args:
        tensor: A tensor of the shape before pruning, on any device.
        axes: The kept indices by axis, as in a plan's ``keep``.
        indices_as_tensors: A cache for several tensors of one plan: the index lists as tensors, by the identity of the
            list and the device. New entries are added.

    Returns:
        A new dense tensor in memory of its own, channels-last if the given one is.
    """
    memory_format, channels_last = torch.contiguous_format, _CHANNELS_LAST.get(tensor.dim())
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        memory_format = channels_last
    for axis, indices in axes.items():
        key = id(indices), tensor.device
        selection = None if indices_as_tensors is None else indices_as_tensors.get(key)
        if selection is None:
            selection = torch.tensor(indices, device=tensor.device)
            if indices_as_tensors is not None:
                indices_as_tensors[key] = selection
        tensor = tensor.index_select(int(axis), selection)
    return tensor.contiguous(memory_format=memory_format)


def _set_data(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    # Torch compares the shapes when a gradient is set, so the data must be there first. The old gradient is removed
    # before that, so that data and gradient never differ in shape.
    tensor.grad = None
    tensor.data = data
    tensor.grad = grad


def _restore_tensor(tensor: Tensor) -> Callable[[], None]:
    data, grad = tensor.data, tensor.grad
    return lambda: _set_data(tensor, data, grad)


def _restore_attribute(module: nn.Module, attribute: str) -> Callable[[], None]:
    value = getattr(module, attribute)
    return lambda: setattr(module, attribute, value)


def _set_size(module: nn.Module, attribute: str, numbers: int | list[int]) -> None:
    setattr(module, attribute, in_type_of(getattr(module, attribute), numbers))


def _reset_gradient_accumulator(tensor: Tensor, data: Tensor) -> None:
    """Makes autograd create a new gradient accumulator for a parameter, with the new shape.

    The accumulator is the graph node that adds to a parameter's ``grad``. It remembers the shape from before pruning
    and rejects gradients of another. It lives as long as any graph refers to it, for instance that of the last loss in
    a training loop. Torch drops it only when the parameter's data gets another dtype, so an empty tensor of another
    dtype is set for a moment. This cannot be undone, so it is the last step of the surgery.
    """
    if tensor.requires_grad:
        grad, tensor.grad = tensor.grad, None
        other_dtype = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other_dtype, device=tensor.device)
        tensor.data = data
        tensor.grad = grad
