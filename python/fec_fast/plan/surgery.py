"""Surgery: applies a plan to a model, in place or to a copy. Upon any error the model is unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..utils.computed_weights import computed_attributes, recompute
from ..utils.copying import copied_model
from ..utils.critical_section import one_thread_at_a_time
from ..utils.model_index import ModelIndex
from ..utils.modules import named_tensors, unwrap_for_surgery
from ..utils.number_attributes import in_type_of
from ..utils.public_call import interruptible
from ..utils.undo import UndoLog, all_or_nothing, set_data
from .plan import Plan, check_plan

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@interruptible
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
        WeightError: The parameters are sharded (FSDP, DTensor). After any error, and after Ctrl-C, the model is
            unchanged.
    """
    index = ModelIndex.of(unwrap_for_surgery(model))
    check_plan(plan, index)
    with all_or_nothing() as undo:
        prune_in_place(index, plan, undo)


def prune_in_place(index: ModelIndex, plan: Plan, undo: UndoLog, values: dict[str, Tensor] | None = None) -> None:
    """Prunes a model in place by a plan that is known to fit.

    Args:
        index: The index of the model before pruning. Its tensors stay the same objects; their shapes change.
        plan: A plan that :func:`fec_fast.plan.plan.check_plan` has accepted for this model.
        undo: Where each change is announced; see :func:`fec_fast.utils.undo.all_or_nothing`.
        values: What tensors become, by name, on their devices and of their shapes after pruning, in any dtype of the
            same kind; all names of a tied tensor have one value. They are taken out one by one, to be in memory no
            longer than they are needed. By default every tensor keeps its own values.
    """
    with torch.inference_mode(False):  # or the new tensors could not be trained
        _prune_in_place(index, plan, undo, {} if values is None else values)


def _prune_in_place(index: ModelIndex, plan: Plan, undo: UndoLog, values: dict[str, Tensor]) -> None:
    # All new tensors are made before the first change: running out of memory here leaves the model unchanged.
    new_data: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    written: dict[int, tuple[Tensor, Tensor]] = {}
    taken: set[int] = set()
    for name in {**plan.keep, **values}:
        tensor, axes, value = index.tensors[name], plan.keep.get(name), values.pop(name, None)
        if id(tensor) in new_data or id(tensor) in written:  # a tied tensor has several names and is changed once
            continue
        if axes is None and value is not None and value.dtype == tensor.dtype:
            written[id(tensor)] = tensor, value
            continue
        grad = tensor.grad
        if value is None:
            data = select_kept(tensor.detach(), axes or {})
        else:
            data = value.contiguous(memory_format=_memory_format(tensor))
            if id(value) in taken:  # two tensors that were tied in the file, but are not here
                data = data.clone()
            taken.add(id(value))
            grad = grad if value.dtype == tensor.dtype else None  # a gradient has the dtype of its parameter
        new_data[id(tensor)] = tensor, data, None if grad is None else select_kept(grad.detach(), axes or {})
    for tensor, data, grad in new_data.values():
        undo.tensor(tensor)
        set_data(tensor, data, grad)
    while written:
        _, (tensor, value) = written.popitem()
        undo.values(tensor)
        with torch.no_grad():
            tensor.copy_(value)
    for name, attributes in plan.attributes.items():
        for attribute, number in attributes.items():
            undo.attribute(index.modules[name], attribute)
            setattr(index.modules[name], attribute, number)
    for name, sizes in plan.sizes.items():
        for attribute, numbers in sizes.items():
            undo.attribute(index.modules[name], attribute)
            _set_size(index.modules[name], attribute, numbers["after"])
    for module in index.modules.values():
        for attribute in computed_attributes(module):
            undo.attribute(module, attribute)
    with torch.no_grad():
        recompute(index.modules.values())
    for tensor, data, _ in new_data.values():
        _reset_gradient_accumulator(tensor, data)


def pruned_copy(index: ModelIndex, plan: Plan) -> nn.Module:
    """Copies a model without the channels that a plan removes.

    Args:
        index: The index of the model that the plan was made for; the model is not changed.
        plan: The plan.

    Returns:
        The smaller copy: equal to what :func:`apply_plan` makes of a deep copy, but the full-size copy never exists.
    """
    # Inside inference mode the copy could not be trained.
    with torch.inference_mode(False), one_thread_at_a_time():
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
    memory_format = _memory_format(tensor)
    for axis, indices in axes.items():
        key = id(indices), tensor.device
        selection = None if indices_as_tensors is None else indices_as_tensors.get(key)
        if selection is None:
            selection = torch.tensor(indices, device=tensor.device)
            if indices_as_tensors is not None:
                indices_as_tensors[key] = selection
        tensor = tensor.index_select(int(axis), selection)
    return tensor.contiguous(memory_format=memory_format)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels-last for a tensor that lies so in memory, otherwise contiguous."""
    channels_last = _CHANNELS_LAST.get(tensor.dim())
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format


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
