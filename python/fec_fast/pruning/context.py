"""A traced and scored model to decide on, and what a decision leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..graph.groups import Coupling, couple
from ..graph.trace import Trace, trace
from ..plan.plan import Plan
from ..plan.surgery import pruned_copy
from ..scoring.formula import Formula
from ..utils.errors import LayerError
from ..utils.modules import named_tensors, refuse_sharded, unwrap
from ..utils.weights import check_weights
from .arguments import check_arguments
from .criteria import ENTROPY_CRITERIA, Criterion
from .plan_builder import choose, make_plan
from .unit_scores import score_units


@dataclass(frozen=True)
class Problem:
    """A traced and scored model.

    Attributes:
        model: Before pruning, not wrapped.
        example_inputs: What it was traced with.
        traced: Its trace.
        coupling: Its coupled sets.
        scores: For each set, float64 ``[units]``; the lowest go first.
        criterion: What gave them, a name or a callable.
        name: Its name.
        formula: Of the entropies.
        sides: ``"both"`` or ``"producer"``.
        ignore: Names of layers that keep their channels.
    """

    model: nn.Module
    example_inputs: Any
    traced: Trace
    coupling: Coupling
    scores: Sequence[Tensor]
    criterion: str | Criterion
    name: str
    formula: Formula
    sides: str
    ignore: tuple[str, ...]

    @property
    def known(self) -> list[str]:
        """The names of all layers that ratios could be given for."""
        return [use.layer for use in self.traced.uses.values()] + self.traced.unreached

    @property
    def weights(self) -> dict[str, Tensor]:
        """All tensors of the model by name."""
        return named_tensors(self.model)

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
        return pruned_copy(self.model, self.plan(counts)[0])

    def again(self) -> Problem:
        """The same model after something was pinned in its trace.

        Returns:
            The problem with the sets that are left, and the scores of their units.
        """
        coupling = couple(self.traced, self.ignore)
        scores = score_units(coupling.sets, self.traced, self.weights, self.criterion, self.formula, self.sides)
        return replace(self, coupling=coupling, scores=scores)


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
    model = unwrap(model)
    refuse_sharded(model)
    check_weights(model)
    traced = trace(model, example_inputs)
    coupling = couple(traced, ignore)
    if not coupling.sets:
        raise LayerError(f"{type(model).__name__} has nothing to prune: {_reasons(coupling, traced)}")
    scores = score_units(coupling.sets, traced, named_tensors(model), criterion, formula, sides)
    return Problem(model, example_inputs, traced, coupling, scores, criterion, name, formula, sides, tuple(ignore))


def _reasons(coupling: Coupling, traced: Trace) -> str:
    if not coupling.pinned and not traced.notes:
        return "it has no convolution or linear layer that the example inputs reach"
    common = Counter(coupling.pinned.values()).most_common(3)
    return "; ".join([*(f"{number} layer(s): {reason}" for reason, number in common), *traced.notes[:3]])
