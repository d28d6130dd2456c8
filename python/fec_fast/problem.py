"""A traced and scored model to decide on, and what a decision leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .coupling import Coupling
from .formula import Formula
from .plan import Plan, named_tensors
from .planning import choose, make_plan
from .surgery import pruned_copy
from .trace import Trace


@dataclass(frozen=True)
class Problem:
    """A traced and scored model.

    Attributes:
        model: Before pruning, not wrapped.
        example_inputs: What it was traced with.
        traced: Its trace.
        coupling: Its coupled sets.
        scores: For each set, float64 ``[units]``; the lowest go first.
        criterion: The name of the criterion that gave them.
        formula: Of the entropies.
        sides: ``"both"`` or ``"producer"``.
    """

    model: nn.Module
    example_inputs: Any
    traced: Trace
    coupling: Coupling
    scores: Sequence[Tensor]
    criterion: str
    formula: Formula
    sides: str

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
        formula = self.formula if self.criterion == "fec" else None
        return make_plan(
            self.model, self.traced, self.coupling, removed, records, self.criterion, formula, self.sides, notes
        ), removed

    def pruned(self, counts: Sequence[int]) -> nn.Module:
        """The network of which each set has lost so many units.

        Args:
            counts: For each set, how many.

        Returns:
            A copy.
        """
        return pruned_copy(self.model, self.plan(counts)[0])
