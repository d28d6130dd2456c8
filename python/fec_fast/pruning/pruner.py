"""``prune``: trace, score, plan, cut and prove, in that order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..graph.counts import Counts, comparison_table, counts_of, macs_by_layer
from ..graph.hardcoded_widths import can_run, find_hardcoded_width
from ..graph.size_model import SizeModel
from ..plan.alignment import alignment_notes
from ..plan.equivalence import verify_equivalence
from ..plan.plan import Plan
from ..plan.surgery import pruned_copy
from ..scoring.formula import Formula
from ..utils.model_index import ModelIndex
from ..utils.modules import unwrap
from ..utils.timing import Latency, compare_latency
from .allocation.allocate import Amounts
from .allocation.budget import Budget
from .allocation.sensitivity import Calibration, Sensitivity
from .context import pose
from .criteria import DEFAULT_CRITERION, Criterion
from .plan_builder import by_reason


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
        notes = [*self.plan.notes, *alignment_notes(ModelIndex.of(self.model), self.plan)]
        lines += [f"note: {note}" for note in notes]
        return "\n".join(lines)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    ratios: str | Mapping[str, float] | Sensitivity | None = None,
    budget: Budget | None = None,
    calibration: Calibration | None = None,
    criterion: str | Criterion = DEFAULT_CRITERION,
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
        ratio: The share of channels to remove from every coupled set, in [0, 1); 0.5 if nothing else says how much.
        ratios: The share for each named layer; layers that are not named (nor coupled to one) stay whole. With a
            budget: how removal is spread over the layers. ``"entropy"`` (unless given): by how many filters of a layer
            are effectively distinct. ``"uniform"``: the same share everywhere. ``"global"``: by one ranking of all
            units' scores. ``"sensitivity"``: by what the calibration shows, or a :class:`fec_fast.Sensitivity` that was
            measured before. A mapping: in these proportions. See :mod:`fec_fast.pruning.allocation.policies`.
        budget: What the whole has to come to.
        calibration: For ``ratios="sensitivity"``: a loader of images and labels, or a function from a model to a
            number, higher being better; see :func:`fec_fast.measure_sensitivity`.
        criterion: ``"fec_l1"``, the entropy times the L1 norm; ``"fec"``, the entropy alone; or for comparison
            ``"l1"``, ``"l2"``, ``"fpgm"``, ``"bn_scale"`` (every coupled set needs a batch norm then) or ``"random"``
            (by torch's global generator), see :mod:`fec_fast.pruning.criteria`; or a function from weights
            ``[filters, channels, *kernel]`` to one number a filter. Low goes first.
        formula: Of the entropies when the criterion is ``"fec_l1"`` or ``"fec"``; ``None`` is ``Formula()``.
        sides: ``"both"`` scores a channel by the filters that make it times the slices that read it;
            ``"producer"`` by the former alone.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        min_channels: So many output channels every layer keeps, or all where it has fewer.
        round_to: Channels go in multiples of this, so that every width that was a multiple stays one, per group too.
        verify: Whether to prove the result with :func:`fec_fast.verify_equivalence`.

    Returns:
        The pruned copy, its plan and its counts.

    Raises:
        RatioError: A ratio outside [0, 1), different ratios for coupled layers, or arguments that contradict.
        BudgetError: A budget that cannot be met; the nearest that can is named.
        LayerError: An unknown name, or a model with nothing to prune.
        InputError: The model cannot be run on the example inputs.
        WeightError: Weights that cannot be scored, or are sharded (FSDP, DTensor).
        ArgumentError: An argument of the wrong kind.
        EquivalenceError: The pruned network is not the masked original; please report it.
    """
    amounts = Amounts(ratio, ratios, budget, calibration, min_channels, round_to)
    problem = pose(model, example_inputs, criterion, formula, sides, ignore)
    while True:
        counts, notes = amounts.counts(problem)
        plan, removed = problem.plan(counts, notes)
        pruned = pruned_copy(problem.index, plan)
        if can_run(pruned, example_inputs):
            break
        # A width is written into the model's code: keep it, and plan again.
        pin = find_hardcoded_width(pruned, example_inputs, problem.traced, problem.coupling.partition)
        problem = problem.with_pin(pin)
    if not removed and budget is None and (ratio is None or ratio > 0):
        warnings.warn("nothing was pruned: the ratios are too small for these widths and round_to", stacklevel=2)
    difference = verify_equivalence(problem.model, pruned, plan, example_inputs) if verify else None
    before = counts_of(problem.index, macs_by_layer(problem.traced.costs))
    sizes = SizeModel(problem.index, problem.traced, problem.coupling)
    after = counts_of(ModelIndex.of(pruned), sizes.macs_by_layer(counts))
    return PruneResult(pruned, plan, before, after, difference)
