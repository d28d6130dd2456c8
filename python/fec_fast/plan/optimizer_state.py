"""Optimizer state after pruning: momentum and the like, for the channels that are left."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from ..utils.compat import tree_leaves
from ..utils.errors import ArgumentError, PlanError
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.undo import UndoLog, all_or_nothing
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
            One that wraps others (accelerate's, a Lookahead) is looked through: their states and its own are pruned.
            Each tensor of its state has its parameter's shape before pruning, or is a scalar such as ``step``.
        plan: The plan that was applied.
        model: The model that it was applied to; it may be wrapped.

    Raises:
        ArgumentError: Not an optimizer, one that holds no parameter of the model, or one that keeps tensors outside its
            ``state``; the message names the attribute.
        PlanError: The plan is not applied yet, or is for another model; or a state has another shape (factored, or
            pruned already), and the message names it. After any error the optimizer is unchanged.
    """
    check_optimizer(optimizer)
    expect_plan(plan)
    index = ModelIndex.of(model)
    _check_applied(plan, index)
    changes = [change for each in optimizers_in(optimizer) for change in narrowed_states(each, plan, index)]
    with all_or_nothing() as undo:
        set_states(changes, undo)


class StateChange(NamedTuple):
    """An entry of an optimizer's state, and what it becomes."""

    state: dict[str, Any]
    key: str
    value: Tensor


def check_optimizer(optimizer: Any) -> None:
    """Checks that an argument is an optimizer whose state can be pruned.

    Args:
        optimizer: The argument.

    Raises:
        ArgumentError: Not an optimizer, or one that shards its state.
    """
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer: expected a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    if type(optimizer).__module__.startswith("torch.distributed"):
        raise ArgumentError(f"{type(optimizer).__name__} shards its state over processes: make a new one after pruning")


def optimizers_in(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers inside an optimizer that wraps others, and itself if it has a state of its own.

    The wrappers of accelerate show the state of the optimizer inside. Others, such as torch_optimizer's Lookahead, keep
    slow weights in a state of their own, by parameter, which has to be pruned as well.

    Args:
        optimizer: Any optimizer.

    Returns:
        The innermost ones first: they make the steps.
    """
    found: dict[Optimizer, None] = {}
    for each in _held_optimizers(optimizer):
        found.update(dict.fromkeys(optimizers_in(each)))
    if not any(optimizer.state is each.state for each in found):
        found[optimizer] = None
    return list(found)


def held_parameters(optimizer: Optimizer, index: ModelIndex) -> list[nn.Parameter]:
    """The parameters of a model that an optimizer holds.

    Args:
        optimizer: An optimizer.
        index: The index of the model, before or after pruning.

    Raises:
        ArgumentError: It holds none, and no other optimizer.
    """
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in index.first_names
    ]
    if not parameters and not _held_optimizers(optimizer):
        raise ArgumentError(
            f"the {type(optimizer).__name__} holds no parameter of this model: give the model that it trains"
        )
    return parameters


def narrowed_states(
    optimizer: Optimizer, plan: Plan, index: ModelIndex, *, pruned_too: bool = False
) -> list[StateChange]:
    """Prunes an optimizer's state, without setting it.

    Args:
        optimizer: The optimizer.
        plan: The plan.
        index: The index of the model that the plan is for, before or after pruning.
        pruned_too: Whether states that have the shape after pruning are left as they are, instead of refused.

    Returns:
        The entries that change. So all checks and computations come before the first change.

    Raises:
        ArgumentError: It holds no parameter of the model, or tensors outside its state.
        PlanError: A state has another shape.
    """
    held_parameters(optimizer, index)
    _check_nothing_elsewhere(optimizer, plan, index)
    changes: list[StateChange] = []
    new_shapes = plan.new_shapes
    for parameter, state in optimizer.state.items():
        name = index.first_names.get(id(parameter))
        if name is None:
            continue  # of another model, or of none
        shape = plan.shapes.get(name, list(parameter.shape))
        new_shape = list(new_shapes.get(name, parameter.shape))
        for key, value in state.items():
            is_pruned = isinstance(value, Tensor) and list(value.shape) == new_shape != shape
            if is_pruned and pruned_too:
                continue
            _check_state(f"{name}: {key}", value, shape, is_pruned)
            if name in plan.keep and isinstance(value, Tensor) and value.dim():
                changes.append(StateChange(state, key, select_kept(value.detach(), plan.keep[name])))
    return changes


def set_states(changes: Iterable[StateChange], undo: UndoLog) -> None:
    """Sets entries of optimizers' states.

    Args:
        changes: What :func:`narrowed_states` has returned.
        undo: Where each change is announced.
    """
    for state, key, value in changes:
        undo.entry(state, key)
        state[key] = value


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


def _held_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    leaves = tree_leaves(_attributes(optimizer))
    return [leaf for leaf in leaves if isinstance(leaf, Optimizer) and leaf is not optimizer]


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer holds besides its parameters and their states."""
    held = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}
    groups = [{key: value for key, value in each.items() if key != "params"} for each in optimizer.param_groups]
    keyed_otherwise = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    return {**held, "param_groups": groups, "state": keyed_otherwise}


def _check_nothing_elsewhere(optimizer: Optimizer, plan: Plan, index: ModelIndex) -> None:
    """Raises if an optimizer keeps a tensor outside its states that may hold values of channels that are removed.

    Of such a tensor, nothing says which parameter and axis it belongs to. It can hold no values of these channels if
    all its axes are shorter than every axis that is narrowed.
    """
    shortest = min(
        (plan.shapes[name][int(axis)] for name, axes in plan.keep.items() for axis in axes), default=math.inf
    )
    parameters = {id(each) for group in optimizer.param_groups for each in group["params"]}
    states = [each.state for each in optimizers_in(optimizer)]
    for name, value in _attributes(optimizer).items():
        if any(value is each for each in states):
            continue
        for leaf in tree_leaves(value):
            if not isinstance(leaf, Tensor) or id(leaf) in parameters or id(leaf) in index.first_names:
                continue
            if leaf.numel() > 1 and max(leaf.shape) >= shortest:
                raise ArgumentError(
                    f"the {type(optimizer).__name__} keeps a tensor of shape {list(leaf.shape)} in its attribute "
                    f"{name}, but only state[parameter] can be pruned with the parameter: use an optimizer that keeps "
                    f"all its tensors there, or {_REMEDY}"
                )


def _check_state(where: str, value: Any, shape: list[int], is_pruned: bool) -> None:
    """Raises unless a state is a tensor of the shape before pruning, a scalar, or holds no tensor at all."""
    if not isinstance(value, Tensor):
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            raise PlanError(f"{where} is a {type(value).__name__} of tensors, which cannot be pruned: {_REMEDY}")
    elif value.dim() and list(value.shape) != shape:
        if is_pruned:
            raise PlanError(
                f"{where} has the shape {list(value.shape)} of the pruned parameter already: remap_optimizer was "
                "called before, or the optimizer has made a step since; call it once, right after apply_plan"
            )
        raise PlanError(
            f"{where} has shape {list(value.shape)}; expected the shape of the parameter before pruning, {shape}, or "
            f"a scalar: {_REMEDY}"
        )


_REMEDY = "make a new optimizer after pruning"
