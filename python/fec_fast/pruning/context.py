"""Pruning context: a model that was traced, coupled and scored once, for every decision of one call of ``prune``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.cuts import CountKept
from ..graph.groups import Coupling, count_kept, couple_channels, removed_labels
from ..graph.held_sizes import HeldSize
from ..graph.label_sets import Pin
from ..graph.trace import Trace
from ..graph.trial import Finding, doubted_cuts, doubted_numbers, try_out
from ..plan.plan import Plan
from ..plan.surgery import pruned_copy
from ..scoring.backends.registry import ResolvedBackend
from ..scoring.formula import Formula
from ..utils.errors import LayerError
from ..utils.model_index import ModelIndex
from ..utils.modules import check_not_sharded
from ..utils.ranking import merge_ties
from ..utils.weights import check_weights
from .arguments import check_norms, check_scoring_arguments
from .criteria import ENTROPY_CRITERIA, ERROR_CRITERIA, GRADIENT_CRITERIA, RECONSTRUCTION, Criterion
from .gradient_scores import score_by_gradients
from .input_ties import trace_with_ties
from .plan_builder import lowest_units, make_plan, unit_labels
from .unit_errors import removal_errors
from .unit_scores import score_units, scoring_backend


@dataclass(frozen=True)
class PruningContext:
    """A traced and scored model. Nothing in it changes; :meth:`with_finding` returns another context.

    Attributes:
        index: The index of the model before pruning.
        example_inputs: The inputs it was traced with.
        trace: Its trace.
        coupling: Its coupled sets.
        scores: For each set float64 ``[units]``; units with the lowest scores are removed first, of equal scores the
            first unit (:func:`fec_fast.utils.ranking.merge_ties`).
        criterion: The criterion that gave the scores, a name or a callable.
        criterion_name: The criterion's name in the plan.
        formula: Of the entropies.
        sides: ``"both"`` or ``"producer"``.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        backend: The backend that computes entropies, resolved once.
        pins: Channels that must be kept because the model's code has their number hard-coded.
        sizes: Attributes of modules that trial runs found to hold numbers of channels.
        notes: Notes of the scoring, for the plan.
    """

    index: ModelIndex
    example_inputs: Any
    trace: Trace
    coupling: Coupling
    scores: Sequence[Tensor]
    criterion: str | Criterion
    criterion_name: str
    formula: Formula
    sides: str
    ignore: tuple[str, ...]
    backend: ResolvedBackend
    pins: tuple[Pin, ...] = ()
    sizes: tuple[HeldSize, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The model before pruning, out of its wrappers."""
        return self.index.model

    @property
    def held_sizes(self) -> tuple[HeldSize, ...]:
        """All attributes of modules that change with the widths: those of norms, and those that trial runs found."""
        return (*self.trace.sizes, *self.sizes)

    @property
    def layer_names(self) -> list[str]:
        """The names of all layers that a ratio may be given for."""
        return [use.layer for use in self.trace.weight_uses.values()] + list(self.trace.unreached)

    def removed_labels(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Identifies a pruned network by what it loses.

        Args:
            counts: For each set the number of units that are removed.

        Returns:
            The labels of the removed units, rising. They mean the same channels in every context of the same model.
        """
        removed_units = lowest_units(self.scores, counts)
        return tuple(sorted(unit_labels(self.coupling.sets, removed_units)))

    def plan(self, counts: Sequence[int], notes: Sequence[str] = ()) -> Plan:
        """The plan that removes the units with the lowest scores.

        Args:
            counts: For each set the number of units that are removed.
            notes: Notes that come before the plan's own.

        Returns:
            The plan.
        """
        return make_plan(
            self.index,
            self.trace,
            self.coupling,
            lowest_units(self.scores, counts),
            [scores.tolist() for scores in self.scores],
            criterion=self.criterion_name,
            formula=self.formula if self.criterion_name in ENTROPY_CRITERIA else None,
            sides=self.sides,
            sizes=self.held_sizes,
            notes=[*notes, *self.notes],
        )

    def pruned_copy(self, counts: Sequence[int]) -> nn.Module:
        """A copy of the model without the units with the lowest scores.

        Args:
            counts: For each set the number of units that are removed.

        Returns:
            The smaller copy.
        """
        return pruned_copy(self.index, self.plan(counts))

    def try_out(self, pruned: ModelIndex, counts: Sequence[int], *, training: bool = False) -> Finding | None:
        """Runs a pruned network and finds what stands in its way, see :func:`fec_fast.graph.trial.try_out`.

        Args:
            pruned: The index of :meth:`pruned_copy`.
            counts: For each set the number of units that were removed.
            training: Whether to run it in training mode, which the trace must have a run of.

        Returns:
            What to plan again with; ``None`` if the network runs.
        """
        return try_out(
            self.index,
            pruned,
            self.example_inputs,
            self.trace,
            self.coupling.partition,
            self._count_kept(counts),
            self.held_sizes,
            training=training,
        )

    def doubts(self, pruned: ModelIndex, counts: Sequence[int], message: str) -> Finding | None:
        """Pins of what is least certain, for a network that differs from the masked original.

        Args:
            pruned: The index of :meth:`pruned_copy`.
            counts: For each set the number of units that were removed.
            message: What differs.

        Returns:
            Pins of channels that could be removed so far; ``None`` if there are none.
        """
        kept, partition = self._count_kept(counts), self.coupling.partition
        return doubted_numbers(pruned, self.example_inputs, self.trace, partition, kept, message) or doubted_cuts(
            self.trace, partition, kept, message
        )

    def settled(self) -> PruningContext:
        """The context after trial runs with half of all units removed, for measurements of pruned networks.

        Returns:
            A context whose pruned copies run.
        """
        context = self
        while True:
            counts = [len(coupled.units) // 2 for coupled in context.coupling.sets]
            finding = context.try_out(ModelIndex.of(context.pruned_copy(counts)), counts)
            if finding is None:
                return context
            context = context.with_finding(finding)

    def _count_kept(self, counts: Sequence[int]) -> CountKept:
        units = unit_labels(self.coupling.sets, lowest_units(self.scores, counts))
        return count_kept(removed_labels(self.coupling.partition, units))

    def with_finding(self, finding: Finding) -> PruningContext:
        """The context of the same model with more channels that must be kept, or attributes that change.

        No score is computed again. A pin only takes units away, and the score of a unit depends on the layers that
        hold it, not on the other units of its set.

        Args:
            finding: What a trial run has found.

        Returns:
            The context with the sets that are left, and the scores of their units.
        """
        pins, sizes = (*self.pins, *finding.pins), (*self.sizes, *finding.sizes)
        return self._with_coupling(couple_channels(self.trace, self.ignore, pins), pins=pins, sizes=sizes)

    def with_training_traced(self) -> PruningContext:
        """The context of the same model whose trace has a run in training mode too, with the same pins."""
        trace = trace_with_ties(self.index, self.example_inputs, self.ignore, self.trace.norms, training=True)
        coupling = couple_channels(trace, self.ignore, self.pins)
        return self._with_coupling(coupling, trace=trace)

    def _with_coupling(self, coupling: Coupling, **changes: Any) -> PruningContext:
        """The context with fewer units or greater sets, and the scores that its units have here."""
        score_of = {
            label: score
            for coupled, scores in zip(self.coupling.sets, self.scores, strict=True)
            for label, score in zip(coupled.units, scores.tolist(), strict=True)
        }
        scores = [
            torch.tensor([score_of[label] for label in coupled.units], dtype=torch.float64) for coupled in coupling.sets
        ]
        return replace(self, coupling=coupling, scores=_with_ties(scores), **changes)


def build_context(
    model: nn.Module,
    example_inputs: Any,
    criterion: str | Criterion,
    formula: Formula | None,
    sides: str,
    ignore: Sequence[str],
    calibration: Any = None,
    norms: str = "exact",
) -> PruningContext:
    """Checks, traces and scores a model.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.
        criterion: One of :data:`fec_fast.pruning.criteria.CRITERIA`, or a callable from weights
            ``[filters, channels, *kernel]`` to one number per filter.
        formula: Of the entropies, for the criteria ``"fec_l1"`` and ``"fec"``; ``None`` is ``Formula()``.
        sides: ``"both"`` or ``"producer"``.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        calibration: For the criteria that need it, see :func:`fec_fast.pruning.arguments.check_calibration`.
        norms: What happens to channels that norms take statistics over: ``"exact"`` or ``"renormalise"``.

    Returns:
        The context.

    Raises:
        ArgumentError: An argument of the wrong kind.
        LayerError: An unknown name in ``ignore``, or a model with nothing to prune.
        InputError: The model cannot be run on the example inputs, or on the calibration.
        WeightError: Weights that cannot be scored, or are sharded (FSDP, DTensor).
        BackendError: The backend of the weights' device cannot run here.
    """
    criterion_name, formula = check_scoring_arguments(criterion, formula, sides, ignore)
    check_norms(norms)
    index = ModelIndex.of(model)
    check_not_sharded(index.modules)
    check_weights(index)
    trace = trace_with_ties(index, example_inputs, ignore, norms)
    coupling = couple_channels(trace, ignore)
    if not coupling.sets:
        raise LayerError(f"{type(index.model).__name__} has nothing to prune: {_reasons(coupling)}")
    backend = scoring_backend(trace, index.tensors)
    notes: list[str] = []
    if criterion in GRADIENT_CRITERIA:
        scores = score_by_gradients(str(criterion), index, trace, coupling.sets, calibration, sides)
    elif criterion in ERROR_CRITERIA:
        made_up_for = criterion == RECONSTRUCTION
        scores, notes = removal_errors(
            index, trace, coupling.sets, calibration, example_inputs, made_up_for=made_up_for
        )
    else:
        scores = score_units(coupling.sets, trace, index.tensors, criterion, formula, sides, backend)
    return PruningContext(
        index,
        example_inputs,
        trace,
        coupling,
        _with_ties(scores),
        criterion,
        criterion_name,
        formula,
        sides,
        tuple(ignore),
        backend,
        notes=tuple(notes),
    )


def _with_ties(scores: Sequence[Tensor]) -> list[Tensor]:
    """The scores of all sets, those equal that differ by no more than rounding: the first unit is removed first."""
    return [torch.from_numpy(merge_ties(of_set.numpy())) for of_set in scores]


def _reasons(coupling: Coupling) -> str:
    """Why no channel of a model can be removed: the three most frequent reasons, and the first notes."""
    if not coupling.pinned and not coupling.notes:
        return "it has no convolution or linear layer that the example inputs reach"
    most_common = Counter(coupling.pinned.values()).most_common(3)
    return "; ".join([*(f"{number} layer(s): {reason}" for reason, number in most_common), *coupling.notes[:3]])
