"""Sparse training: coupled channels shrink during a training, so that the cut that follows takes little away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..plan.plan import Plan, check_plan, expect_plan
from ..utils.arguments import check_number
from ..utils.errors import ArgumentError, InputError
from ..utils.model_index import ModelIndex
from ..utils.public_call import constructor_checked
from .progress import TrainingProgress


class CoupledSet(Protocol):
    """What :class:`GroupLasso` needs of a :class:`fec_fast.ChannelSet`."""

    @property
    def name(self) -> str:
        """The first layer that makes the channels."""

    @property
    def members(self) -> Mapping[tuple[str, int], Sequence[Sequence[int]]]:
        """For each ``(tensor, axis)`` the indices of each unit."""


@constructor_checked
@dataclass(frozen=True)
class GroupLasso:
    """Group lasso on coupled channels, for ``finetune(sparsify=...)``: all units shrink, weak ones to zero.

    After each optimizer step a unit with the ``n`` weights ``w`` is multiplied by
    ``max(0, 1 - lr * strength * sqrt(n) / |w|)``: the proximal operator of the group lasso (Yuan & Lin, 2006), which
    holds for any optimizer. Its weights are the entries of all parameters that are removed with it (Fang et al., 2023):
    filters, their biases, scales and shifts of norms, and the slices that read the channel. :func:`fec_fast.prune`
    then finds the units that are left with little weight.

    Attributes:
        sets: The coupled sets of the network: ``fec_fast.couplings(model, example_inputs).sets``.
        strength: Weight of the penalty, larger than 0. The network's accuracy after the sparse training shows if it is
            too large.
    """

    sets: Sequence[CoupledSet]
    strength: float = 0.005

    def __post_init__(self) -> None:
        """Checks the entries.

        Raises:
            ArgumentError: An entry is of the wrong kind, or there is no set.
        """
        check_number("strength", self.strength, "a number larger than 0, such as 0.005", exclusive=True)
        is_sequence = isinstance(self.sets, Sequence) and not isinstance(self.sets, str)
        if not is_sequence or not all(isinstance(getattr(each, "members", None), Mapping) for each in self.sets):
            raise ArgumentError(
                f"sets={self.sets!r:.80}: give the coupled sets, fec_fast.couplings(model, example_inputs).sets"
            )
        if not self.sets:
            raise ArgumentError("sets is empty: no channel can be removed; fec_fast.couplings(...).pinned says why")

    def describe(self) -> str:
        """What the numbers of the training depend on, as text."""
        sets = [[f"{tensor} {axis}", units] for each in self.sets for (tensor, axis), units in each.members.items()]
        return f"GroupLasso({self.strength!r}, {_digest(sets)})"


@constructor_checked
@dataclass(frozen=True)
class GrowingPenalty:
    """A growing penalty on the channels of a plan, for ``finetune(sparsify=...)``: they fade while the rest adapts.

    With ``k`` optimizer steps left until the share ``until`` of the training, each parameter's entries that the plan
    removes are multiplied by ``1 - 1 / k`` after the step. The penalty grows (Wang et al., 2021), from nearly nothing
    to all, and the channels are exactly zero at ``until`` and from then on: ``fec_fast.apply_plan(model, plan)``
    changes nothing that the network computes, unless the plan changes norms (``plan.changed_norms``).

    Attributes:
        plan: The plan, of :func:`fec_fast.prune` for the network that is trained.
        until: The share of the training after which the channels are zero, in (0, 1]. The rest of the training adapts
            the other channels.
    """

    plan: Plan
    until: float = 0.5

    def __post_init__(self) -> None:
        """Checks the entries.

        Raises:
            ArgumentError: An entry is of the wrong kind or out of range, or the plan removes nothing.
        """
        expect_plan(self.plan)
        check_number("until", self.until, "a share of the training in (0, 1]", exclusive=True)
        if self.until > 1:
            raise ArgumentError(f"until={self.until!r}: give a share of the training in (0, 1]")
        if not self.plan.keep:
            raise ArgumentError("plan removes no channel: there is nothing to shrink")

    def describe(self) -> str:
        """What the numbers of the training depend on, as text."""
        return f"GrowingPenalty({self.until!r}, {_digest(self.plan.keep)})"


Sparsity: TypeAlias = GroupLasso | GrowingPenalty


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_sparsity(model: nn.Module, sparsity: Any, *, patience: int | None) -> None:
    """Checks that a network can be trained with a penalty.

    Args:
        model: The network.
        sparsity: The argument ``sparsify`` of :func:`fec_fast.finetune`.
        patience: The setting of this name.

    Raises:
        ArgumentError: It is no penalty, or ``patience`` could choose weights from before the channels are zero.
        PlanError: The plan is for another network.
        InputError: The sets are of another network, or a parameter that would have to shrink is not trained.
    """
    if not isinstance(sparsity, GroupLasso | GrowingPenalty):
        raise ArgumentError(
            f"sparsify={sparsity!r:.80}: give a fec_fast.GrowingPenalty(plan) or a "
            "fec_fast.GroupLasso(fec_fast.couplings(model, example_inputs).sets)"
        )
    index = ModelIndex.of(model)
    if isinstance(sparsity, GrowingPenalty):
        check_plan(sparsity.plan, index)
        if patience is not None:
            raise ArgumentError(
                f"patience={patience} with a GrowingPenalty could choose weights from before the channels are zero: "
                "leave patience out"
            )
    else:
        _check_sets(index, sparsity.sets)
    for name, _, _ in _units(sparsity):
        tensor = index.tensors[name]
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            raise InputError(
                f"sparsify: {name} is frozen (requires_grad=False), so its channels cannot shrink: train it, or leave "
                "its layer out of pruning (ignore=)"
            )


def _check_sets(index: ModelIndex, sets: Sequence[CoupledSet]) -> None:
    """Raises if coupled sets name tensors or indices that a network does not have."""
    for coupled in sets:
        for (name, axis), units in coupled.members.items():
            shape = index.tensors[name].shape if name in index.tensors else None
            most = max((index for indices in units for index in indices), default=-1)
            if shape is None or axis >= len(shape) or most >= shape[axis]:
                found = "has no such tensor" if shape is None else f"has it with shape {list(shape)}"
                raise InputError(
                    f"sparsify: the sets are of another network: set {coupled.name!r} holds index {most} of axis "
                    f"{axis} of {name}, this one {found}: call fec_fast.couplings on the network that is trained"
                )


def _units(sparsity: Sparsity) -> Iterator[tuple[str, int, list[tuple[int, Sequence[int]]]]]:
    """The indices that may shrink: tensor, axis, and for each unit its number and indices.

    A plan's removed indices are one unit, number 0: they shrink by one factor.
    """
    if isinstance(sparsity, GrowingPenalty):
        for name, axes in sparsity.plan.keep.items():
            for text, kept in axes.items():
                width = sparsity.plan.shapes[name][int(text)]
                yield name, int(text), [(0, sorted(set(range(width)).difference(kept)))]
        return
    first = 0
    for coupled in sparsity.sets:
        count = 0
        for (name, axis), units in coupled.members.items():
            count = len(units)
            yield name, axis, [(first + number, indices) for number, indices in enumerate(units)]
        first += count


@dataclass(frozen=True)
class _ShrinkingAxis:
    """An axis of a parameter, and the unit of each of its indices: int64, on the parameter's device, 0 for none."""

    parameter: nn.Parameter
    axis: int
    units: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """The sum of a tensor of the parameter's shape over all other axes."""
        others = [axis for axis in range(values.ndim) if axis != self.axis]
        return values.sum(others) if others else values

    def multiply(self, factors: Tensor) -> None:
        """Multiplies the entries of each unit by its factor; ``factors[0]`` is 1."""
        shape = [-1 if axis == self.axis else 1 for axis in range(self.parameter.ndim)]
        self.parameter.mul_(factors[self.units].view(shape).to(self.parameter.dtype))


class Shrinkage:
    """Shrinks the channels of a network that is trained; what it does depends on nothing but the step."""

    def __init__(self, model: nn.Module, sparsity: Sparsity) -> None:
        """Finds the parameters. The network has to be on the device that it is trained on.

        Args:
            model: A network that :func:`check_sparsity` has accepted, or a copy of it.
            sparsity: What shrinks.
        """
        self.sparsity = sparsity
        index = ModelIndex.of(model)
        self.axes: list[_ShrinkingAxis] = []
        last = 0
        for name, axis, units in _units(sparsity):
            parameter = index.tensors[name]
            last = max(last, units[-1][0]) if units else last
            # Tied parameters stand under each of their names in a plan. Buffers follow the weights by themselves.
            if isinstance(parameter, nn.Parameter) and index.first_names[id(parameter)] == name:
                of_index = torch.zeros(parameter.shape[axis], dtype=torch.int64)
                for number, indices in units:
                    of_index[list(indices)] = number + 1
                self.axes.append(_ShrinkingAxis(parameter, axis, of_index.to(parameter.device)))
        self.weights = torch.zeros(last + 2)  # of each unit; entry 0 stands for all that does not shrink
        for each in self.axes:
            size = each.parameter.numel() // len(each.units)
            self.weights.index_add_(0, each.units.cpu(), torch.full((len(each.units),), float(size)))

    @torch.no_grad()
    def shrink(self, lr: float, steps_left: float) -> None:
        """Shrinks the channels after an optimizer step.

        Args:
            lr: The learning rate of the step.
            steps_left: Of a :class:`GrowingPenalty`, the optimizer steps until the channels are zero, with this one.
        """
        if not self.axes:
            return
        device = self.axes[0].parameter.device
        if isinstance(self.sparsity, GrowingPenalty):
            factors = torch.tensor([1.0, 1 - 1 / steps_left if steps_left > 1 else 0.0], device=device)
        else:
            squares = torch.zeros(len(self.weights), device=device)
            for each in self.axes:
                sums = each.sums(each.parameter.detach().float().square())
                squares.index_add_(0, each.units.to(device), sums.to(device))
            thresholds = (lr * self.sparsity.strength * self.weights.sqrt()).to(device)
            factors = (1 - thresholds / squares.sqrt().clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0.0)
            factors[0] = 1.0
        for each in self.axes:
            each.multiply(factors.to(each.units.device))


class SparseTraining:
    """The penalty of a training, if it has one: on the weights that the optimizer changes, and on their average."""

    def __init__(self, sparsity: Sparsity | None, model: nn.Module, average: nn.Module | None) -> None:
        """Finds the parameters.

        Args:
            sparsity: What shrinks; ``None``: nothing.
            model: The network that the optimizer changes.
            average: Their moving average, if one is kept.
        """
        self.sparsity = sparsity
        self.networks = [] if sparsity is None else [Shrinkage(model, sparsity)]
        if average is not None and isinstance(sparsity, GrowingPenalty):
            # The average of what fades would not be zero at the end. With a lasso it follows the weights as always.
            self.networks.append(Shrinkage(average, sparsity))

    def step(self, lr: float, progress: TrainingProgress) -> None:
        """Shrinks the channels after an optimizer step.

        Args:
            lr: The learning rate of the step.
            progress: Of the training, as it was before the step.
        """
        until = self.sparsity.until if isinstance(self.sparsity, GrowingPenalty) else 0.0
        for each in self.networks:
            each.shrink(lr, progress.steps_until(until))

    def finish(self) -> None:
        """Ends the training: the channels of a plan are zero, also where the clock left out the last steps."""
        if isinstance(self.sparsity, GrowingPenalty):
            for each in self.networks:
                each.shrink(0.0, 0.0)
