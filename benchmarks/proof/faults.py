"""Faults that are planted in a pruned network, or in its plan, and whether the proof finds them."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import fec_fast
from fec_fast.plan.surgery import pruned_copy
from fec_fast.utils.model_index import ModelIndex

KINDS = ("other channel", "other channel in the plan", "two exchanged", "one value", "one attribute")
ATTRIBUTES: dict[type[nn.Module], tuple[tuple[str, float], ...]] = {
    nn.Conv2d: (("padding", 1), ("dilation", 1)),
    nn.BatchNorm2d: (("eps", 0.01),),
    nn.LeakyReLU: (("negative_slope", 0.01),),
}


def pruned_with_random_channels(model: nn.Module, inputs: Any, seed: int, norms: str = "exact") -> fec_fast.PruneResult:
    """Prunes half of the channels, drawn by a seed."""
    torch.manual_seed(seed)
    return fec_fast.prune(model, inputs, ratio=0.5, criterion="random", norms=norms, verify=False, recover=None)


def faults(
    model: nn.Module, result: fec_fast.PruneResult, draw: random.Random
) -> Iterator[tuple[str, str, nn.Module, fec_fast.Plan]]:
    """Plants faults of all kinds in turn, without end.

    Args:
        model: The network before pruning.
        result: Its pruned copy.
        draw: Draws the places.

    Yields:
        The kind, the place, a faulty network, and the plan to prove it with.
    """
    index = ModelIndex.of(model)
    while True:
        for kind in KINDS:
            planted = _PLANT[kind](index, result, draw)
            if planted is not None:
                yield kind, *planted


def is_found(model: nn.Module, pruned: nn.Module, plan: fec_fast.Plan, inputs: Any) -> bool:
    """Whether the proof stops with an error."""
    try:
        fec_fast.verify_equivalence(model, pruned, plan, inputs)
    except (fec_fast.EquivalenceError, fec_fast.InputError):  # a wrong padding may stop a run
        return True
    return False


_Planted = tuple[str, nn.Module, fec_fast.Plan] | None


def _place(index: ModelIndex, plan: fec_fast.Plan, draw: random.Random) -> tuple[str, str, list[str]]:
    """A narrowed tensor, one of its narrowed axes, and all names of that tensor."""
    name = draw.choice(list(plan.keep))
    names = [other for other, tensor in index.tensors.items() if tensor is index.tensors[name]]
    return name, draw.choice(list(plan.keep[name])), names


def _keeping_another(plan: fec_fast.Plan, index: ModelIndex, draw: random.Random) -> tuple[str, Any]:
    """A place, and the plan's kept indices with another channel there."""
    name, axis, names = _place(index, plan, draw)
    kept = plan.keep[name][axis]
    removed = sorted(set(range(plan.shapes[name][int(axis)])) - set(kept))
    wrong = sorted({*kept, draw.choice(removed)} - {draw.choice(kept)})
    return f"{name}, axis {axis}", {**plan.keep, **{each: {**plan.keep[each], axis: wrong} for each in names}}


def _with_other_channel(index: ModelIndex, result: fec_fast.PruneResult, draw: random.Random) -> _Planted:
    place, keep = _keeping_another(result.plan, index, draw)
    try:
        faulty = dataclasses.replace(result.plan, keep=keep)
    except fec_fast.PlanError:  # a plan whose filters are not those of its sets is refused when it is made
        return None
    return place, pruned_copy(index, faulty), faulty


def _with_other_values(index: ModelIndex, result: fec_fast.PruneResult, draw: random.Random) -> _Planted:
    place, keep = _keeping_another(result.plan, index, draw)
    unchecked = copy.copy(result.plan)
    vars(unchecked)["keep"] = keep
    pruned = pruned_copy(index, unchecked)
    pairs = zip(ModelIndex.of(pruned).tensors.values(), ModelIndex.of(result.model).tensors.values(), strict=True)
    if all(torch.equal(*pair) for pair in pairs):  # the channels have equal values, such as zeros
        return None
    return place, pruned, result.plan


def _exchanged(index: ModelIndex, result: fec_fast.PruneResult, draw: random.Random) -> _Planted:
    name, axis, _ = _place(index, result.plan, draw)
    pruned = copy.deepcopy(result.model)
    tensor = ModelIndex.of(pruned).tensors[name].detach()
    order = list(range(tensor.shape[int(axis)]))
    if len(order) < 2:
        return None
    left, right = draw.sample(order, 2)
    order[left], order[right] = right, left
    other = tensor.index_select(int(axis), torch.tensor(order))
    if torch.equal(other, tensor):
        return None
    tensor.copy_(other)
    return f"{name}, axis {axis}", pruned, result.plan


def _one_value(index: ModelIndex, result: fec_fast.PruneResult, draw: random.Random) -> _Planted:
    pruned = copy.deepcopy(result.model)
    tensors = {name: each for name, each in ModelIndex.of(pruned).tensors.items() if each.is_floating_point()}
    name = draw.choice(list(tensors))
    values = tensors[name].detach().flatten()
    place = draw.randrange(len(values))
    value = values[place]
    with torch.no_grad():
        tensors[name].detach().view(-1)[place] = value + 1e-6 * max(1.0, abs(float(value)))
    return f"{name}[{place}]", pruned, result.plan


def _one_attribute(index: ModelIndex, result: fec_fast.PruneResult, draw: random.Random) -> _Planted:
    pruned = copy.deepcopy(result.model)
    modules = [(name, module) for name, module in pruned.named_modules() if type(module) in ATTRIBUTES]
    if not modules:
        return None
    name, module = draw.choice(modules)
    attribute, more = draw.choice(ATTRIBUTES[type(module)])
    value = getattr(module, attribute)
    if attribute == "dilation" and module.kernel_size == (1, 1):
        return None
    vars(module)[attribute] = tuple(each + int(more) for each in value) if isinstance(value, tuple) else value + more
    return f"{name}.{attribute}", pruned, result.plan


_PLANT = dict(
    zip(KINDS, (_with_other_values, _with_other_channel, _exchanged, _one_value, _one_attribute), strict=True)
)
