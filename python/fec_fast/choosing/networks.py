"""The networks of a sweep: pruned, recovered and trained, for the first time or again by their plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from ..graph.counts import count
from ..plan.plan import Plan, check_plan
from ..plan.surgery import pruned_copy
from ..pruning.allocation.budget import Budget
from ..pruning.allocation.measured import Sensitivity
from ..pruning.allocation.sensitivity import measure_sensitivity
from ..pruning.arguments import calibration_needs, images_suffice
from ..pruning.criteria import ABLATION, ENTROPY_CRITERIA, Criterion
from ..pruning.pruner import PruneResult, prune
from ..recovery.compensation import Compensation, compensate
from ..scoring.formula import Formula
from ..utils.model_index import ModelIndex
from ..utils.modules import in_evaluation
from ..utils.random_state import restored_randomness, seed_all
from .points import SweepPoint


class NetworkMaker:
    """Makes the pruned networks of one model. Every network draws its random numbers from the same seed.

    Attributes:
        tune: Trains a network in place; ``None`` if nothing is trained.
    """

    def __init__(
        self,
        index: ModelIndex,
        example_inputs: Any,
        loader: Any,
        images: Any,
        tune: Callable[[nn.Module], Any] | None,
        options: Mapping[str, Any],
        progress: bool,
    ) -> None:
        """Stores what the networks are made from.

        Args:
            index: The index of the model, which is not changed.
            example_inputs: Its inputs, as for :func:`fec_fast.prune`.
            loader: Labelled data, for criteria and policies that need it.
            images: For the recovery, as ``recover=`` of :func:`fec_fast.prune` takes them.
            tune: Trains a network in place; or ``None``.
            options: Further arguments of :func:`fec_fast.prune`.
            progress: Whether to show a progress bar of measurements of sensitivity.
        """
        self.tune = tune
        self._index, self._example_inputs, self._options = index, example_inputs, dict(options)
        self._loader, self._images, self._progress = loader, images, progress
        self._sensitivities: dict[str | Criterion, Sensitivity] = {}

    def measure_sensitivities(self, criteria: Iterable[str | Criterion]) -> None:
        """Measures what the policy ``"sensitivity"`` needs, once per criterion; all processes call it.

        Args:
            criteria: The criteria of the networks with this policy.

        Raises:
            FecError: As :func:`fec_fast.measure_sensitivity` says.
        """
        names = ("sides", "ignore", "norms")
        for criterion in dict.fromkeys(criteria):
            self._sensitivities[criterion] = measure_sensitivity(
                self._index.model,
                self._example_inputs,
                self._loader,
                criterion=criterion,
                formula=self._formula_for(criterion),
                progress=self._progress,
                **{name: self._options[name] for name in names},
            )

    def pruned(self, budget: Budget, policy: str, criterion: str | Criterion) -> PruneResult:
        """Prunes and recovers.

        Args:
            budget: The budget.
            policy: What spreads it over the layers.
            criterion: What decides which channels are removed.

        Returns:
            The result.

        Raises:
            FecError: As :func:`fec_fast.prune` says.
        """
        chosen: dict[str, Any] = {"criterion": criterion, "ratios": policy}
        named_policy: str | None = policy
        if policy == "sensitivity":
            chosen["ratios"], named_policy = self._sensitivities[criterion], None
        if self._images is None and criterion == policy == ABLATION:
            chosen = {}  # the defaults of prune: measured on noise, where that can be
        elif calibration_needs(criterion, named_policy):
            chosen["calibration"] = self._images if images_suffice(criterion, named_policy) else self._loader
        with restored_randomness():
            seed_all(0)
            result = prune(
                self._index.model,
                self._example_inputs,
                budget=budget,
                recover=None,  # by its own call, on images that are read once for all networks
                **chosen,
                **self._options | {"formula": self._formula_for(criterion)},
            )
        recovery = self._recovered(result.model, result.plan)
        return result if recovery is None else result.with_recovery(recovery)

    def _formula_for(self, criterion: str | Criterion) -> Formula | None:
        """The formula, for criteria that take one."""
        formula: Formula | None = self._options["formula"]
        return formula if criterion in ENTROPY_CRITERIA else None

    def _recovered(self, network: nn.Module, plan: Plan) -> Compensation | None:
        """Recovers a pruned network in place on the images, if there are some."""
        if self._images is None:
            return None
        images = None if isinstance(self._images, str) else self._images
        with restored_randomness():
            seed_all(0)
            return compensate(
                self._index.model, network, plan, images, example_inputs=self._example_inputs, progress=False
            )

    def trained(self, network: nn.Module) -> None:
        """Trains a network in place by the caller's function, if there is one.

        Args:
            network: The network.
        """
        if self.tune is not None:
            with restored_randomness():
                seed_all(0)
                self.tune(network)

    def cut(self, plan: Plan) -> nn.Module:
        """A pruned copy without recovery, for measurements that do not depend on the weights.

        Args:
            plan: The plan.

        Returns:
            The copy, in the model's mode.

        Raises:
            PlanError: The plan is for another model.
        """
        check_plan(plan, self._index)
        return pruned_copy(self._index, plan)

    def again(self, point: SweepPoint) -> PruneResult:
        """Makes the network of a point again by its plan; it was proven when it was measured.

        Args:
            point: The point.

        Returns:
            The network as it was measured last.

        Raises:
            PlanError: The plan is for another model.
        """
        assert point.plan is not None  # of a point of this sweep
        network = in_evaluation(self.cut(point.plan))
        before, after = (count(one, self._example_inputs) for one in (self._index.model, network))
        recovery = self._recovered(network, point.plan)
        self.trained(network)
        return PruneResult(in_evaluation(network), point.plan, before, after, None, recovery)
