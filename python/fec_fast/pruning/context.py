"""A traced and scored model to decide on, and what a decision leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..graph.groups import Coupling, couple_channels
from ..graph.labels import Pin
from ..graph.trace import Trace, trace_model
from ..plan.plan import Plan
from ..plan.surgery import pruned_copy
from ..scoring.backends.registry import ResolvedBackend
from ..scoring.formula import Formula
from ..utils.errors import LayerError
from ..utils.model_index import ModelIndex
from ..utils.modules import refuse_sharded
from ..utils.weights import check_weights
from .arguments import check_arguments
from .criteria import ENTROPY_CRITERIA, Criterion
from .plan_builder import choose, make_plan
from .unit_scores import score_units, scoring_backend


@dataclass(frozen=True)
class Problem:
    """A traced and scored model.

    Attributes:
        index: The index of the model before pruning.
        example_inputs: What it was traced with.
        traced: Its trace.
        coupling: Its coupled sets.
        scores: For each set, float64 ``[units]``; the lowest go first.
        criterion: What gave them, a name or a callable.
        name: Its name.
        formula: Of the entropies.
        sides: ``"both"`` or ``"producer"``.
        ignore: Names of layers that keep their channels.
        backend: What computes entropies.
        pins: Hard-coded widths that trial runs found.
    """

    index: ModelIndex
    example_inputs: Any
    traced: Trace
    coupling: Coupling
    scores: Sequence[Tensor]
    criterion: str | Criterion
    name: str
    formula: Formula
    sides: str
    ignore: tuple[str, ...]
    backend: ResolvedBackend
    pins: tuple[Pin, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The model before pruning, not wrapped."""
        return self.index.model

    @property
    def known(self) -> list[str]:
        """The names of all layers that ratios could be given for."""
        return [use.layer for use in self.traced.weight_uses.values()] + list(self.traced.unreached)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """All tensors of the model by name."""
        return self.index.tensors

    def plan(self, counts: Sequence[int], notes: Sequence[str] = ()) -> tuple[Plan, set[int]]:
        """The plan by which each set loses so many of its units, those with the lowest scores.

        Args:
            counts: For each set, how many.
            notes: What the plan should tell besides.

        Returns:
            The plan, and the labels (representatives) of the units that go.
        """
        removed, records = choose(self.coupling.sets, counts, [score.tolist() for score in self.scores], self.traced)
        formula = self.formula if self.name in ENTROPY_CRITERIA else None
        return make_plan(
            self.model, self.traced, self.coupling, removed, records, self.name, formula, self.sides, notes
        ), removed

    def pruned(self, counts: Sequence[int]) -> nn.Module:
        """The network of which each set has lost so many units.

        Args:
            counts: For each set, how many.

        Returns:
            A copy.
        """
        return pruned_copy(self.index, self.plan(counts)[0])

    def with_pin(self, pin: Pin) -> Problem:
        """The same model, with more channels that must be kept.

        Args:
            pin: The channels, beside those that are pinned already.

        Returns:
            The problem with the sets that are left, and the scores of their units.
        """
        pins = (*self.pins, pin)
        coupling = couple_channels(self.traced, self.ignore, pins)
        scores = score_units(
            coupling.sets, self.traced, self.weights, self.criterion, self.formula, self.sides, self.backend
        )
        return replace(self, coupling=coupling, scores=scores, pins=pins)


def pose(
    model: nn.Module,
    example_inputs: Any,
    criterion: str | Criterion,
    formula: Formula | None,
    sides: str,
    ignore: Sequence[str],
) -> Problem:
    """Traces and scores a model.

    Args:
        model: See :func:`fec_fast.prune`, as the others.
        example_inputs: See there.
        criterion: See there.
        formula: See there.
        sides: See there.
        ignore: See there.

    Returns:
        The problem.

    Raises:
        FecError: See there.
    """
    name, formula = check_arguments(model, criterion, formula, sides, ignore)
    index = ModelIndex.of(model)
    refuse_sharded(index.model)
    check_weights(index.model)
    traced = trace_model(index, example_inputs)
    coupling = couple_channels(traced, ignore)
    if not coupling.sets:
        raise LayerError(f"{type(index.model).__name__} has nothing to prune: {_reasons(coupling)}")
    backend = scoring_backend(traced, index.tensors)
    scores = score_units(coupling.sets, traced, index.tensors, criterion, formula, sides, backend)
    return Problem(
        index, example_inputs, traced, coupling, scores, criterion, name, formula, sides, tuple(ignore), backend
    )


def _reasons(coupling: Coupling) -> str:
    if not coupling.pinned and not coupling.notes:
        return "it has no convolution or linear layer that the example inputs reach"
    common = Counter(coupling.pinned.values()).most_common(3)
    return "; ".join([*(f"{number} layer(s): {reason}" for reason, number in common), *coupling.notes[:3]])
