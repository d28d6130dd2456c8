"""Torch-Pruning: the entropy as an importance for its pruners, and its pruning history as a plan of fec_fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import couple_channels
from ..graph.label_sets import LabelPartition
from ..graph.trace import Trace, trace_model
from ..plan.plan import Plan
from ..plan.surgery import apply_plan
from ..pruning import unit_entropies
from ..pruning.layer_sides import UnitsOfSide
from ..pruning.plan_builder import make_plan
from ..pruning.unit_entropies import WeightSide
from ..pruning.unit_scores import divide_by_mean
from ..scoring.backends.layout import filter_count
from ..scoring.backends.registry import resolve
from ..scoring.formula import Formula
from ..utils.compat import BatchNormBase
from ..utils.copying import copied_model
from ..utils.critical_section import one_thread_at_a_time
from ..utils.errors import ArgumentError, PlanError, missing_extra, nearest
from ..utils.forward import call_model
from ..utils.model_index import ModelIndex
from ..utils.modules import named_tensors

try:
    import torch_pruning as tp
    from torch_pruning.pruner import function
except (ImportError, AttributeError) as error:
    raise missing_extra("torch-pruning", "torch-pruning", "fec_fast.integrations.torch_pruning", error) from error

CRITERION = "torch-pruning history"

_PRODUCER_HANDLERS = (
    function.prune_conv_out_channels,
    function.prune_linear_out_channels,
    function.prune_depthwise_conv_out_channels,
)
# A depthwise convolution reads the same channels that it produces. Torch-Pruning lists it once, as a producer.
_CONSUMER_HANDLERS = (
    function.prune_conv_in_channels,
    function.prune_linear_in_channels,
    function.prune_depthwise_conv_out_channels,
)


class _HistoryStep(NamedTuple):
    """One step of a Torch-Pruning history."""

    module: str
    prunes_outputs: bool
    indices: list[int]


class FECImportance:
    """Channel-similarity entropies as an importance for Torch-Pruning's pruners.

    ``tp.pruner.BasePruner(model, example_inputs, importance=FECImportance(), ...)``. The importance of a channel is its
    score in ``fec_fast.prune(criterion="fec")``: for each layer that produces the channel, the entropy of the filter
    divided by the mean over the layer's filters; the mean of these over the layers, times the same for the layers that
    read the channel.

    Args:
        formula: The formula of the entropies. ``None`` is ``Formula()``.
        sides: ``"both"``, or ``"producer"`` to score only the layers that produce the channel.

    Raises:
        ArgumentError: An argument has the wrong type or value.
    """

    def __init__(self, formula: Formula | None = None, *, sides: str = "both") -> None:
        """Checks and stores the arguments."""
        if formula is not None and not isinstance(formula, Formula):
            raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
        if sides not in ("both", "producer"):
            raise ArgumentError(f"sides={sides!r}: give 'both' or 'producer'")
        self.formula = formula or Formula()
        self.sides = sides

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Scores the channels of a group.

        Args:
            group: A ``torch_pruning.dependency.Group``.

        Returns:
            Float64 ``[channels]`` in the order of the group's root indices, on the device of the first scored layer.
            ``None`` if no layer of the group has an entropy; Torch-Pruning then does not prune the group.

        Raises:
            WeightError: A weight is not finite; the message names the layer.
            ArgumentError: Not a group.
        """
        if not isinstance(group, tp.dependency.Group):
            raise ArgumentError(f"group: expected a torch_pruning.dependency.Group, got {type(group).__name__}")
        position_of_root = {root: position for position, root in enumerate(group.items[0].root_idxs)}
        sides, consumer_flags = [], []
        for item in group.items:
            for is_consumer, handlers in ((False, _PRODUCER_HANDLERS), (True, _CONSUMER_HANDLERS)):
                if item.dep.handler in handlers and not (is_consumer and self.sides == "producer"):
                    sides.append(_side_of(item, is_consumer, position_of_root))
                    consumer_flags.append(is_consumer)
        # Row 0 is for the producers, row 1 for the consumers.
        totals, layers = np.zeros((2, len(position_of_root))), np.zeros((2, len(position_of_root)))
        found = unit_entropies.entropies(sides, self.formula, resolve("cpu"))
        for side, is_consumer, values in zip(sides, consumer_flags, found, strict=True):
            known = ~np.isnan(values)
            relative = divide_by_mean(torch.from_numpy(values[known])).numpy()
            in_group = side.units.units[known] > 0
            positions = side.units.units[known][in_group] - 1
            totals[int(is_consumer), positions] += relative[in_group]
            layers[int(is_consumer), positions] += 1
        if not layers.any():
            return None
        means = np.divide(totals, layers, out=np.ones_like(totals), where=layers > 0)
        return torch.from_numpy(means[0] * means[1]).to(sides[0].weight.device)


def _side_of(item: Any, is_consumer: bool, position_of_root: Mapping[int, int]) -> WeightSide:
    """The side of a layer that an item of a group is about; the units are the group's channels, numbered from 1."""
    layer = item.dep.target.module
    groups = getattr(layer, "groups", 1)
    # A weight has its outputs on axis 0 and its inputs on axis 1, a transposed one the other way round.
    axis = int(is_consumer) ^ int(getattr(layer, "transposed", False))
    labels = np.zeros(filter_count(layer.weight, axis, groups), dtype=np.int64)
    for index, root in zip(item.idxs, item.root_idxs, strict=True):
        labels[index] = position_of_root.get(root, -1) + 1
    return WeightSide(layer.weight.detach(), axis, groups, UnitsOfSide.of(labels), item.dep.target.name)


def plan_from_history(model: nn.Module, history: Sequence[Sequence[Any]], example_inputs: Any) -> Plan:
    """Makes a plan from what Torch-Pruning removed, to be stored, compared, or applied without Torch-Pruning.

    The history is followed through the coupled channels that fec_fast finds, and replayed by Torch-Pruning on a copy. A
    plan is returned only if both leave exactly the same indices of every tensor.

    Args:
        model: The original before Torch-Pruning changed it in place, or another model of its shape. Wrappers are looked
            through. It is not changed.
        history: ``pruner.pruning_history()`` or ``DependencyGraph.pruning_history()``: for each step the name of the
            root module, whether its output channels are removed, and the removed indices, counted in the width that the
            module had before that step.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.

    Returns:
        A plan for :func:`fec_fast.apply_plan`, :func:`fec_fast.verify_equivalence` and the like. A history has no
        scores; in the plan, the score of each unit is 0 if it was removed and 1 if it was kept.

    Raises:
        PlanError: The history does not fit the model, or fec_fast couples the channels differently than Torch-Pruning;
            the message names the step or the tensor.
        InputError: The model cannot be run on the example inputs.
        ArgumentError: An argument has the wrong type.
    """
    index = ModelIndex.of(model)
    steps = _parse_history(history)
    traced = trace_model(index, example_inputs)
    coupling = couple_channels(traced)
    reasons = {**coupling.partly_pinned, **coupling.pinned}
    removed: set[int] = set()
    for number, step in enumerate(steps):
        side = "output" if step.prunes_outputs else "input"
        where = f"step {number} of the history, {len(step.indices)} {side} channel(s) of {step.module!r}"
        # The step counts in the width that is left: the labels of channels removed by earlier steps are taken out.
        labels = [
            label
            for label in _channel_labels(index, traced, where, step, reasons)
            if int(coupling.partition.roots[label]) not in removed
        ]
        removed |= _removed_units(coupling.partition, where, labels, step.indices)
    # The history has no scores. These two values keep the rule of every plan: the lowest scores are removed.
    scores = [[float(label not in removed) for label in coupled.units] for coupled in coupling.sets]
    removed_units = [[unit for unit, score in enumerate(values) if score == 0.0] for values in scores]
    plan = make_plan(index, traced, coupling, removed_units, scores, criterion=CRITERION, formula=None, sides="both")
    _compare_with_replay(index.model, plan, steps, example_inputs)
    return plan


def _parse_history(history: Sequence[Sequence[Any]]) -> list[_HistoryStep]:
    steps = []
    for number, step in enumerate(history):
        try:
            name, outputs, indices = step
            steps.append(_HistoryStep(str(name), bool(outputs), [int(index) for index in indices]))
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"history[{number}]={step!r}: expected a module name, whether its outputs are removed, and indices"
            ) from error
    return steps


def _channel_labels(
    index: ModelIndex, traced: Trace, where: str, step: _HistoryStep, reasons: Mapping[str, str]
) -> list[int]:
    """The labels of the channels that a step counts in, in the model before any pruning."""
    modules = dict(index.model.named_modules())
    if step.module not in modules:
        raise PlanError(f"{where}: the model has no such module; {nearest(step.module, modules)}")
    module = modules[step.module]
    weight = index.first_names.get(id(getattr(module, "weight", None)), "")
    use = traced.weight_uses.get(weight)
    if use is not None:
        return list(map(int, use.outputs if step.prunes_outputs else use.inputs))
    if isinstance(module, BatchNormBase) and (weight, 0) in traced.axes:
        return list(map(int, traced.axes[weight, 0]))
    reason = reasons.get(step.module, "it does not follow channels through it")
    raise PlanError(f"{where}: fec_fast keeps them: {reason}")


def _removed_units(partition: LabelPartition, where: str, labels: Sequence[int], indices: Sequence[int]) -> set[int]:
    """The units of the channels that a step removes.

    Args:
        partition: The partition of all labels into units.
        where: The step, for messages.
        labels: The labels of the channels that the step counts in.
        indices: The removed indices among them.

    Returns:
        The representative label of each unit.

    Raises:
        PlanError: There is no such channel, it must be kept, or the step removes only a part of a unit.
    """
    outside = sorted({index for index in indices if not 0 <= index < len(labels)})
    if outside:
        raise PlanError(
            f"{where}: there is no channel {outside[0]}, only {len(labels)} by then; give the original model"
        )
    for index in indices:
        reason = partition.reason(labels[index])
        if reason is not None:
            raise PlanError(f"{where}: fec_fast keeps channel {index}: {reason}")
    units = {int(partition.roots[labels[index]]) for index in indices}
    removed = set(indices)
    left = [i for i, label in enumerate(labels) if i not in removed and int(partition.roots[label]) in units]
    if left:
        raise PlanError(
            f"{where}: fec_fast finds channel {left[0]} coupled to them, and Torch-Pruning left it; "
            "keep Torch-Pruning's own model, or prune with fec_fast.prune"
        )
    return units


def _compare_with_replay(model: nn.Module, plan: Plan, steps: Sequence[_HistoryStep], example_inputs: Any) -> None:
    """Raises unless Torch-Pruning, replaying the history, leaves the same indices of every tensor as the plan."""
    index = ModelIndex.of(model)
    with one_thread_at_a_time():
        theirs, ours = copied_model(index), copied_model(index)
    try:
        with torch.enable_grad():  # Torch-Pruning finds dependencies by the graph of autograd
            graph = tp.DependencyGraph().build_dependency(theirs, example_inputs, forward_fn=call_model, verbose=False)
            _number_elements(theirs)
            graph.load_pruning_history([list(step) for step in steps])
    except Exception as error:
        raise PlanError(
            f"Torch-Pruning cannot replay the history on {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    _number_elements(ours)
    apply_plan(ours, plan)
    expected = named_tensors(theirs)
    for name, tensor in named_tensors(ours).items():
        other = expected.get(name)
        if other is None or not torch.equal(tensor, other):
            left = "nothing" if other is None else str(list(other.shape))
            raise PlanError(
                f"fec_fast and Torch-Pruning couple this model's channels differently: of {name} the first leaves "
                f"{list(tensor.shape)}, the second {left} or other indices; keep Torch-Pruning's own model, or prune "
                "with fec_fast.prune"
            )


def _number_elements(model: nn.Module) -> None:
    """Sets every element of a tensor to its position, so that equal tensors have kept the same elements."""
    for tensor in named_tensors(model).values():
        if tensor.is_floating_point():
            tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
