"""An optimizer's state after pruning: momentum and the like, for the channels that are left."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..utils.compat import tree_leaves
from ..utils.errors import ArgumentError, PlanError
from ..utils.modules import named_tensors, unwrap
from .plan import Plan, digest
from .surgery import narrow


def remap_optimizer(optimizer: Optimizer, plan: Plan, model: nn.Module) -> None:
    """Narrows an optimizer's state to what a plan has left of its parameters, so that training goes on.

    To be called once, after ``apply_plan(model, plan)``, which keeps the parameters the same objects. For optimizers
    whose update of an element depends on that element alone (SGD, Adam, AdamW, RMSprop, ...) training then continues
    as that of the full network would whose removed channels are zero and get no update. An optimizer without a state
    yet (before its first step) is left as it is.

    Args:
        optimizer: Any optimizer that holds parameters of the model; those of other models in it are left alone. Each
            tensor of its state is of its parameter's shape before pruning, or a scalar such as ``step``.
        plan: The plan that was applied.
        model: The model it was applied to; it may be wrapped.

    Raises:
        ArgumentError: Not an optimizer, one that holds no parameter of the model, or one that keeps its state
            elsewhere.
        PlanError: The plan is not applied yet, or is for another model; or a state is of another shape (factored, or
            narrowed already); it is named. Whatever is raised, the optimizer is as it was.
    """
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer: expected a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    if type(optimizer).__module__.startswith("torch.distributed"):
        raise ArgumentError(f"{type(optimizer).__name__} shards its state over processes: make a new one after pruning")
    tensors = named_tensors(unwrap(model))
    _check_applied(plan, tensors)
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) in names]
    if not owned:
        raise ArgumentError(
            f"the {type(optimizer).__name__} holds no parameter of this model: give the model that it trains"
        )
    staged: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    for parameter in owned:
        name = names[id(parameter)]
        shape = plan.shapes.get(name, list(parameter.shape))
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            _check_state(f"{name}: {key}", value, shape, parameter)
            if name in plan.keep and isinstance(value, Tensor) and value.dim():
                staged.append((state, key, value, narrow(value.detach(), plan.keep[name])))
    try:
        for state, key, _, new in staged:
            state[key] = new
    except BaseException:
        for state, key, old, _ in staged:
            state[key] = old
        raise


def _check_applied(plan: Plan, tensors: dict[str, Tensor]) -> None:
    found = digest({name: tensor.shape for name, tensor in tensors.items()})
    if found == plan.pruned_fingerprint:
        return
    if found == plan.fingerprint:
        raise PlanError("the model is not pruned yet: call apply_plan(model, plan) before remap_optimizer")
    for name, shape in plan.new_shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            where = f"has {name} of shape {list(tensors[name].shape)}" if name in tensors else f"has no {name}"
            raise PlanError(f"the model was not pruned by this plan: it {where}, the plan leaves {list(shape)}")
    raise PlanError("the model was not pruned by this plan: the names or shapes of its parameters differ")


def _check_state(where: str, value: Any, shape: list[int], parameter: Tensor) -> None:
    """Raises unless a state is a tensor of the shape before pruning, a scalar, or no tensor at all."""
    if not isinstance(value, Tensor):
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            raise PlanError(f"{where} is a {type(value).__name__} of tensors, which cannot be narrowed: {_REMEDY}")
    elif value.dim() and list(value.shape) != shape:
        if value.shape == parameter.shape:
            raise PlanError(
                f"{where} has the shape {list(value.shape)} of the pruned parameter already: remap_optimizer was "
                "called before, or the optimizer has gone on since; it is to be called once, right after apply_plan"
            )
        raise PlanError(
            f"{where} has shape {list(value.shape)}, neither that of the parameter before pruning, {shape}, nor that "
            f"of a scalar: {_REMEDY}"
        )


_REMEDY = "make a new optimizer after pruning"
