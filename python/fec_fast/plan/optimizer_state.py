"""Optimizer state after pruning: momentum and the like, for the channels that are left."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..utils.compat import tree_leaves
from ..utils.errors import ArgumentError, PlanError
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.undo import all_or_nothing
from .plan import Plan, expect_plan
from .shapes import fingerprint
from .surgery import select_kept


@interruptible
def remap_optimizer(optimizer: Optimizer, plan: Plan, model: nn.Module) -> None:
    """Prunes an optimizer's state to the channels that a plan has kept, so that training continues.

    Call it once, after ``apply_plan(model, plan)``, which keeps the parameters the same objects. For optimizers whose
    update of an element depends on that element alone (SGD, Adam, AdamW, RMSprop, ...), training then continues as that
    of the full network would whose removed channels are zero and get no update. An optimizer without state yet (before
    its first step) is left unchanged.

    Args:
        optimizer: Any optimizer that holds parameters of the model; its parameters of other models are left unchanged.
            Each tensor of its state has its parameter's shape before pruning, or is a scalar such as ``step``.
        plan: The plan that was applied.
        model: The model that it was applied to; it may be wrapped.

    Raises:
        ArgumentError: Not an optimizer, one that holds no parameter of the model, or one that keeps its state
            elsewhere.
        PlanError: The plan is not applied yet, or is for another model; or a state has another shape (factored, or
            pruned already), and the message names it. After any error the optimizer is unchanged.
    """
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer: expected a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    if type(optimizer).__module__.startswith("torch.distributed"):
        raise ArgumentError(f"{type(optimizer).__name__} shards its state over processes: make a new one after pruning")
    expect_plan(plan)
    index = ModelIndex.of(model)
    _check_applied(plan, index)
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in index.first_names
    ]
    if not parameters:
        raise ArgumentError(
            f"the {type(optimizer).__name__} holds no parameter of this model: give the model that it trains"
        )
    # All checks come before the first change. The pruned tensors are computed here too, so only assignments remain.
    changes: list[tuple[dict[str, Any], str, Tensor]] = []
    for parameter in parameters:
        name = index.first_names[id(parameter)]
        shape = plan.shapes.get(name, list(parameter.shape))
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            _check_state(f"{name}: {key}", value, shape, parameter)
            if name in plan.keep and isinstance(value, Tensor) and value.dim():
                changes.append((state, key, select_kept(value.detach(), plan.keep[name])))
    with all_or_nothing() as undo:
        for state, key, new in changes:
            undo.entry(state, key)
            state[key] = new


def _check_applied(plan: Plan, index: ModelIndex) -> None:
    """Raises unless the model has the shapes that the plan leaves."""
    actual = fingerprint(index)
    if actual == plan.pruned_fingerprint:
        return
    if actual == plan.fingerprint:
        raise PlanError("the model is not pruned yet: call apply_plan(model, plan) before remap_optimizer")
    remedy = "give the model that apply_plan has pruned by this plan"
    for name, shape in plan.new_shapes.items():
        tensor = index.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            difference = f"has no {name}" if tensor is None else f"has {name} of shape {list(tensor.shape)}"
            raise PlanError(
                f"the model was not pruned by this plan: it {difference}, the plan leaves {list(shape)}; {remedy}"
            )
    raise PlanError(f"the model was not pruned by this plan: the names or shapes of its parameters differ; {remedy}")


def _check_state(where: str, value: Any, shape: list[int], parameter: Tensor) -> None:
    """Raises unless a state is a tensor of the shape before pruning, a scalar, or holds no tensor at all."""
    if not isinstance(value, Tensor):
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            raise PlanError(f"{where} is a {type(value).__name__} of tensors, which cannot be pruned: {_REMEDY}")
    elif value.dim() and list(value.shape) != shape:
        if value.shape == parameter.shape:
            raise PlanError(
                f"{where} has the shape {list(value.shape)} of the pruned parameter already: remap_optimizer was "
                "called before, or the optimizer has made a step since; call it once, right after apply_plan"
            )
        raise PlanError(
            f"{where} has shape {list(value.shape)}; expected the shape of the parameter before pruning, {shape}, or "
            f"a scalar: {_REMEDY}"
        )


_REMEDY = "make a new optimizer after pruning"
