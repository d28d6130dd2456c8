"""fec_fast inside Torch-Pruning: its importance as an entropy, and its pruning history as a plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.groups import couple_channels
from ..graph.labels import LabelPartition
from ..graph.trace import Trace, trace_model
from ..plan.plan import Plan
from ..plan.surgery import apply_plan
from ..pruning.plan_builder import make_plan
from ..pruning.unit_scores import divide_by_mean, has_entropy
from ..scoring import ops
from ..scoring.formula import Formula
from ..utils.compat import BatchNormBase
from ..utils.errors import ArgumentError, PlanError, missing_extra, nearest
from ..utils.forward import call_model
from ..utils.model_index import ModelIndex
from ..utils.modules import named_tensors, unwrap

try:
    import torch_pruning as tp
    from torch_pruning.pruner import function
except ImportError as error:
    raise missing_extra("torch-pruning", "torch-pruning", "fec_fast.integrations.torch_pruning") from error

CRITERION = "torch-pruning history"

_MAKES = (
    function.prune_conv_out_channels,
    function.prune_linear_out_channels,
    function.prune_depthwise_conv_out_channels,
)
# A depthwise convolution reads the very channels that it makes, and is one entry of a group.
_READS = (
    function.prune_conv_in_channels,
    function.prune_linear_in_channels,
    function.prune_depthwise_conv_out_channels,
)


class FECImportance:
    """Channel-similarity entropies as an importance for Torch-Pruning's pruners.

    ``tp.pruner.BasePruner(model, example_inputs, importance=FECImportance(), ...)``. A channel's importance is what
    ``fec_fast.prune(criterion="fec")`` scores it by: the mean over the layers that make it of the filter's entropy
    relative to its layer's mean, times the same over the layers that read it.

    Args:
        formula: Of the entropies; ``None`` is ``Formula()``.
        sides: ``"both"``, or ``"producer"`` for the layers that make the channel alone.

    Raises:
        ArgumentError: An argument of the wrong kind.
    """

    def __init__(self, formula: Formula | None = None, *, sides: str = "both") -> None:
        """Remembers what to compute."""
        if formula is not None and not isinstance(formula, Formula):
            raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
        if sides not in ("both", "producer"):
            raise ArgumentError(f"sides={sides!r}: one of 'both', 'producer'")
        self.formula = formula or Formula()
        self.sides = sides

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Scores the channels of a group.

        Args:
            group: A ``torch_pruning.dependency.Group``.

        Returns:
            Float64 ``[channels]`` in the order of the group's root indices, on the device of the first layer scored;
            ``None``, which Torch-Pruning takes for "leave this group alone", where no layer of it has an entropy.

        Raises:
            WeightError: A weight that is not finite, with the layer named.
            ArgumentError: Something else than a group.
        """
        if not isinstance(group, tp.dependency.Group):
            raise ArgumentError(f"group: expected a torch_pruning.dependency.Group, got {type(group).__name__}")
        jobs = []
        for item in group.items:
            layer, handler = item.dep.target.module, item.dep.handler
            for reads, handlers in ((False, _MAKES), (True, _READS)):
                if handler not in handlers or (reads and self.sides == "producer"):
                    continue
                axis = int(reads) ^ int(getattr(layer, "transposed", False))
                if has_entropy(layer.weight, axis, getattr(layer, "groups", 1), self.formula):
                    jobs.append((item, reads, axis))
        if not jobs:
            return None
        return self._combine(group, jobs).to(jobs[0][0].dep.target.module.weight.device)

    def _combine(self, group: Any, jobs: Sequence[tuple[Any, bool, int]]) -> Tensor:
        place = {root: position for position, root in enumerate(group.items[0].root_idxs)}
        channels = len(place)
        totals, layers = torch.zeros(2, channels, dtype=torch.float64), torch.zeros(2, channels, dtype=torch.float64)
        for (item, reads, _), vector in zip(jobs, self._entropies(jobs), strict=True):
            # Several indices of a layer may belong to one channel (behind a flatten): their mean counts.
            pairs = [(at, place[root]) for at, root in zip(item.idxs, item.root_idxs, strict=True) if root in place]
            indices, positions = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
            hits = torch.bincount(positions, minlength=channels)
            sums = torch.bincount(positions, divide_by_mean(vector)[indices], minlength=channels)
            totals[int(reads)] += sums / hits.clamp(min=1)
            layers[int(reads)] += hits > 0
        return torch.where(layers > 0, totals / layers.clamp(min=1), 1.0).prod(0)

    def _entropies(self, jobs: Sequence[tuple[Any, bool, int]]) -> list[Tensor]:
        modules = [item.dep.target.module for item, _, _ in jobs]
        return ops.entropies(
            [module.weight.detach() for module in modules],
            self.formula,
            axes=[axis for _, _, axis in jobs],
            groups=[getattr(module, "groups", 1) for module in modules],
            names=[item.dep.target.name for item, _, _ in jobs],
        )


def plan_from_history(model: nn.Module, history: Sequence[Sequence[Any]], example_inputs: Any) -> Plan:
    """Makes a plan of what Torch-Pruning removed, to be kept, compared, or applied without Torch-Pruning.

    The history is followed through fec_fast's own coupled sets, and replayed by Torch-Pruning on a copy; the plan is
    given only where both leave the very same indices of every tensor.

    Args:
        model: The original, as it was before Torch-Pruning changed it in place (or another of its shape); wrappers
            are looked through, and it is left as it was.
        history: ``pruner.pruning_history()`` or ``DependencyGraph.pruning_history()``: for each step the name of the
            root module, whether its output channels are meant, and the indices removed, counted in the width that the
            module had before that step.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.

    Returns:
        A plan for :func:`fec_fast.apply_plan`, :func:`fec_fast.verify_equivalence` and the like. As the history has
        no scores, each unit's is 0 where it was removed and 1 where it was kept.

    Raises:
        PlanError: The history does not fit the model, or fec_fast couples the channels in another way than
            Torch-Pruning; the step or the tensor is named.
        InputError: The model cannot be run on the example inputs.
        ArgumentError: An argument of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    steps = _steps(history)
    index = ModelIndex.of(model)
    traced = trace_model(index, example_inputs)
    coupling = couple_channels(traced)
    reasons = {**coupling.partly_pinned, **coupling.pinned}
    removed: set[int] = set()
    for number, (name, outputs, indices) in enumerate(steps):
        where = (
            f"step {number} of the history, {len(indices)} {'output' if outputs else 'input'} channel(s) of {name!r}"
        )
        line = [
            label
            for label in _line(model, traced, where, name, outputs, reasons)
            if int(coupling.partition.roots[label]) not in removed
        ]
        removed |= _units(coupling.partition, where, line, indices)
    # The history has no scores: 0 for what went and 1 for what stayed keep the record true to itself.
    scores = [[float(label not in removed) for label in coupled.units] for coupled in coupling.sets]
    removed_units = [[unit for unit, score in enumerate(values) if score == 0.0] for values in scores]
    plan = make_plan(index, traced, coupling, removed_units, scores, criterion=CRITERION, formula=None, sides="both")
    _compare_with_replay(model, plan, steps, example_inputs)
    return plan


def _steps(history: Sequence[Sequence[Any]]) -> list[tuple[str, bool, list[int]]]:
    steps = []
    for number, step in enumerate(history):
        try:
            name, outputs, indices = step
            steps.append((str(name), bool(outputs), [int(index) for index in indices]))
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"history[{number}]={step!r}: expected a module name, whether it is its outputs, and indices"
            ) from error
    return steps


def _line(
    model: nn.Module, traced: Trace, where: str, name: str, outputs: bool, reasons: Mapping[str, str]
) -> list[int]:
    """The labels of the channels that a step counts in, before any pruning."""
    modules = dict(model.named_modules())
    if name not in modules:
        raise PlanError(f"{where}: the model has no such module; {nearest(name, modules)}")
    weight = getattr(modules[name], "weight", None)
    first = next((known for known, tensor in model.named_parameters() if tensor is weight), "")
    use = traced.weight_uses.get(first)
    if use is not None:
        return list(map(int, use.outputs if outputs else use.inputs))
    if isinstance(modules[name], BatchNormBase) and (first, 0) in traced.axes:
        return list(map(int, traced.axes[first, 0]))
    raise PlanError(f"{where}: fec_fast keeps them: {reasons.get(name, 'it does not follow channels through it')}")


def _units(partition: LabelPartition, where: str, line: Sequence[int], indices: Sequence[int]) -> set[int]:
    """The units that hold the indices of a line, which must be all that these units have on it."""
    wrong = sorted({index for index in indices if not 0 <= index < len(line)})
    if wrong:
        raise PlanError(f"{where}: there is no channel {wrong[0]}, only {len(line)} by then; give the original model")
    for index in indices:
        reason = partition.reason(line[index])
        if reason is not None:
            raise PlanError(f"{where}: fec_fast keeps channel {index}: {reason}")
    units = {int(partition.roots[line[index]]) for index in indices}
    chosen = set(indices)
    left = [at for at, label in enumerate(line) if at not in chosen and int(partition.roots[label]) in units]
    if left:
        raise PlanError(
            f"{where}: fec_fast finds channel {left[0]} coupled to them, and Torch-Pruning left it; "
            "keep Torch-Pruning's own model, or prune with fec_fast.prune"
        )
    return units


def _compare_with_replay(
    model: nn.Module, plan: Plan, steps: Sequence[tuple[str, bool, list[int]]], example_inputs: Any
) -> None:
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    try:
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(theirs, example_inputs, forward_fn=call_model, verbose=False)
            _number(theirs)
            graph.load_pruning_history([list(step) for step in steps])
    except Exception as error:
        raise PlanError(
            f"Torch-Pruning cannot replay the history on {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    _number(ours)
    apply_plan(ours, plan)
    found, expected = named_tensors(ours), named_tensors(theirs)
    for name, tensor in found.items():
        other = expected.get(name)
        if other is None or not torch.equal(tensor, other):
            left = "nothing" if other is None else str(list(other.shape))
            raise PlanError(
                f"fec_fast and Torch-Pruning couple this model's channels differently: of {name} the first leaves "
                f"{list(tensor.shape)}, the second {left} or other indices; keep Torch-Pruning's own model, or prune "
                "with fec_fast.prune"
            )


def _number(model: nn.Module) -> None:
    """Numbers the elements of every tensor, so that equal tensors are made of the same elements."""
    for tensor in named_tensors(model).values():
        if tensor.is_floating_point():
            tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
