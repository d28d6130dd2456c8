"""What the callbacks of all trainers have in common: the ``TrainingPruner`` of the training, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..plan.plan import Plan
from ..pruning.during_training.stored_state import PruningRound
from ..pruning.during_training.training_pruner import TrainingPruner
from ..utils.errors import ArgumentError
from ..utils.user_warnings import warn_user


class TrainerCallback:
    """Holds the pruner that a trainer's callback makes when the training starts.

    Attributes:
        pruner: The ``TrainingPruner`` of the last training; ``None`` before the first.
    """

    pruner: TrainingPruner | None = None
    _started_by = ""  # the call that starts the training, for messages
    _remedy = "give the callback to the Trainer"

    @property
    def model(self) -> nn.Module:
        """The network that is pruned; ``fec_fast.save(callback, folder)`` takes it from here."""
        return self._trained().model

    @property
    def plan(self) -> Plan | None:
        """All rounds so far as one plan against the original network; ``None`` before the first."""
        return self._trained().plan

    @property
    def rounds(self) -> tuple[PruningRound, ...]:
        """The rounds that were made."""
        return self._trained().rounds

    def _trained(self) -> TrainingPruner:
        if self.pruner is None:
            raise ArgumentError(
                f"the PruningCallback has no pruner yet: it is made by {self._started_by}; {self._remedy}"
            )
        return self.pruner

    def _warn_of_missing_rounds(self) -> None:
        """Warns, at the end of a training, if it was too short for the schedule."""
        missing = self._trained().missing_rounds
        if missing is not None:
            warn_user(
                f"the training ended before the last round of pruning: {missing}; train longer, or let the schedule "
                "end earlier"
            )

    def _earlier_state(self, model: nn.Module) -> Mapping[str, Any] | None:
        """The state of the last training, if this one goes on with the same network."""
        return None if self.pruner is None or self.pruner.model is not model else self.pruner.state_dict()
