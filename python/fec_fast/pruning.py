"""``prune``: trace, score, plan, cut and prove, in that order."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .amounts import Amounts
from .budget import Budget
from .coupling import Coupling, couple
from .criteria import Criterion, check_criterion, unit_scores
from .equivalence import verify_equivalence
from .errors import ArgumentError, LayerError, WeightError
from .formula import Formula
from .plan import Plan, named_tensors
from .planning import by_reason, costs_after
from .problem import Problem
from .report import Counts, Latency, compare_latency, comparison_table, tally
from .scoring import unwrap
from .surgery import pruned_copy
from .trace import Trace, trace
from .trial import pin_where_it_stops, runs
from .widths import width_notes
from .wrappers import refuse_sharded


@dataclass(frozen=True)
class PruneResult:
    """A pruned network and how it came about.

    Attributes:
        model: The pruned copy.
        plan: What was removed.
        before: Parameters and multiply-accumulates of the original, in all and by layer.
        after: The same of the pruned copy.
        difference: What :func:`fec_fast.verify_equivalence` returned; ``None`` when it was not asked for.
    """

    model: nn.Module
    plan: Plan
    before: Counts
    after: Counts
    difference: float | None

    def latency(self, original: nn.Module, example_inputs: Any, *, min_run_time: float = 1.0) -> Latency:
        """Measures how long a call took before and takes now, in evaluation mode, with the threads torch is set to.

        Args:
            original: The model that was pruned; the result does not hold on to it. It is left as it was.
            example_inputs: What both are called on, as for :func:`prune`; measure with the batch size you will use.
            min_run_time: How long to measure each, in seconds.

        Returns:
            Both medians in seconds with the device and the threads; :meth:`summary` can show them.

        Raises:
            PlanError: ``original`` is not of the shape that was pruned.
            ArgumentError: The two lie on different devices, or min_run_time is not positive.
            InputError: A model cannot be run on the example inputs.
        """
        original = unwrap(original)
        self.plan.check(original)
        return compare_latency(original, self.model, example_inputs, min_run_time)

    def summary(self, latency: Latency | None = None) -> str:
        """A table of parameters and multiply-accumulates before and after, by layer, with what was left alone.

        A note names the layers with a width that hardware may be slow at: no longer a multiple of 8, or fewer than 8
        channels in a group, where the original had it better. ``prune(..., round_to=8)`` avoids them.

        Args:
            latency: What :meth:`latency` measured, to be shown too.

        Returns:
            Text of several lines.
        """
        lines = [comparison_table(self.before, self.after)]
        if latency is not None:
            lines.append(str(latency))
        lines += [f"kept whole: {layers}: {reason}" for reason, layers in by_reason(self.plan.pinned).items()]
        lines += [f"note: {note}" for note in [*self.plan.notes, *width_notes(self.model, self.plan)]]
        return "\n".join(lines)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    ratios: str | Mapping[str, float] | None = None,
    budget: Budget | None = None,
    criterion: str | Criterion = "fec",
    formula: Formula | None = None,
    sides: str = "both",
    ignore: Sequence[str] = (),
    min_channels: int = 1,
    round_to: int = 1,
    verify: bool = True,
) -> PruneResult:
    """Makes a physically smaller copy of a network.

    The model is run once on the example inputs to find which channels stand or fall together; every coupled set loses
    its lowest-scored channels. The model's outputs keep their width. The given model is not changed.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments. A small batch will do.
        ratio: The share of channels to remove from every coupled set, in [0, 1); 0.5 if neither this nor ``ratios``
            is given.
        ratios: The share for each named layer instead; layers that are not named (nor coupled to one) stay whole.
        criterion: ``"fec"``, or for comparison ``"l1"``, ``"l2"``, ``"fpgm"``, ``"bn_scale"`` (every coupled set
            needs a batch norm then) or ``"random"`` (by torch's global generator), see :mod:`fec_fast.criteria`; or
            a function from weights ``[filters, channels, *kernel]`` to one number a filter. Low goes first.
        formula: Of the entropies when the criterion is ``"fec"``; ``None`` is ``Formula()``.
        sides: ``"both"`` scores a channel by the filters that make it times the slices that read it;
            ``"producer"`` by the former alone.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        round_to: Channels go in multiples of this, so that every width that was a multiple stays one, per group too.
        verify: Whether to prove the result with :func:`fec_fast.verify_equivalence`.

    Returns:
        The pruned copy, its plan and its counts.

    Raises:
        RatioError: A ratio outside [0, 1), or different ratios for coupled layers.
        LayerError: An unknown name, or a model with nothing to prune.
        InputError: The model cannot be run on the example inputs.
        WeightError: Weights that cannot be scored, or are sharded (FSDP, DTensor).
        ArgumentError: An argument of the wrong kind.
        EquivalenceError: The pruned network is not the masked original; please report it.
    """
    amounts = Amounts(ratio, ratios, budget, min_channels, round_to)
    name, formula = _check(model, criterion, formula, sides, ignore)
    model = unwrap(model)
    refuse_sharded(model)
    _check_weights(model)
    traced = trace(model, example_inputs)
    coupling = couple(traced, ignore)
    if not coupling.sets:
        raise LayerError(f"{type(model).__name__} has nothing to prune: {_reasons(coupling, traced)}")
    weights = named_tensors(model)
    while True:
        scores = unit_scores(coupling.sets, traced, weights, criterion, formula, sides)
        problem = Problem(model, example_inputs, traced, coupling, scores, name, formula, sides)
        plan, removed = problem.plan(*amounts.counts(problem))
        pruned = pruned_copy(model, plan)
        if runs(pruned, example_inputs):
            break
        # A width is written into the model's code: keep it, and plan again.
        pin_where_it_stops(pruned, example_inputs, traced)
        coupling = couple(traced, ignore)
    if not removed and (ratio is None or ratio > 0):
        warnings.warn("nothing was pruned: the ratios are too small for these widths and round_to", stacklevel=2)
    difference = verify_equivalence(model, pruned, plan, example_inputs) if verify else None
    before = tally(model, ((cost.layer, cost.macs) for cost in traced.costs))
    return PruneResult(pruned, plan, before, tally(pruned, costs_after(traced, removed)), difference)


def _check(
    model: nn.Module, criterion: str | Criterion, formula: Formula | None, sides: str, ignore: Sequence[str]
) -> tuple[str, Formula]:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(ignore, str):
        raise ArgumentError(f"ignore={ignore!r}: give a sequence of names, such as ({ignore!r},)")
    if sides not in ("both", "producer"):
        raise ArgumentError(f"sides={sides!r}: one of 'both', 'producer'")
    if formula is not None and not isinstance(formula, Formula):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
    if formula is not None and criterion != "fec":
        raise ArgumentError(f"formula= belongs to criterion='fec', not to criterion={criterion!r}")
    return check_criterion(criterion), formula or Formula()


def _check_weights(model: nn.Module) -> None:
    tensors = named_tensors(model)
    if not tensors:
        raise LayerError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    for name, tensor in tensors.items():
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise WeightError(f"{name} is not initialised: run the model once before pruning it")
        if tensor.is_meta:
            raise WeightError(f"{name} is on the meta device and has no values: load the weights first")
        if tensor.layout != torch.strided:
            raise WeightError(f"{name} is sparse ({tensor.layout}): convert it with .to_dense()")
        if tensor.is_quantized:
            raise WeightError(f"{name} is quantised ({tensor.dtype}): prune the float model and quantise it afterwards")
        if is_traceable_wrapper_subclass(tensor):
            raise WeightError(f"{name} is a {type(tensor).__name__}: prune the plain model and convert it afterwards")
    for name, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise WeightError(f"{name} is quantised: prune the float model and quantise it afterwards")
    for name, tensor in tensors.items():
        # A sum is not finite where a term is not; where it merely overflows, every element is looked at.
        if isinstance(tensor, nn.Parameter) and tensor.numel() and not bool(torch.isfinite(tensor.detach().sum())):
            finite = torch.isfinite(tensor.detach())
            if bool(finite.all()):
                continue
            index = torch.nonzero(~finite)[0].tolist()
            value = float(tensor.detach()[tuple(index)])
            raise WeightError(f"{name} holds {value} at index {index}: repair or reload it")


def _reasons(coupling: Coupling, traced: Trace) -> str:
    if not coupling.pinned and not traced.notes:
        return "it has no convolution or linear layer that the example inputs reach"
    common = Counter(coupling.pinned.values()).most_common(3)
    return "; ".join([*(f"{number} layer(s): {reason}" for reason, number in common), *traced.notes[:3]])
