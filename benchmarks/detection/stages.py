"""Stages of the detection benchmark: further trainings of dense and pruned networks, and the names of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

LISTS = ("extra_epochs", "policies", "imitate")  # settings that add stages and do not change the others
IMITATED = ("backbone.features", "backbone.extra.0", "backbone.extra.1")  # layers whose features are imitated


@dataclass(frozen=True)
class Arm:
    """A further training.

    Attributes:
        policy: The policy of the pruning before it; ``None`` for the dense network.
        epochs: Its length.
        imitating: Whether the features of the dense network before it are imitated.
    """

    policy: str | None
    epochs: int
    imitating: bool = False

    @property
    def name(self) -> str:
        """The name of its stage in the result file."""
        return f"{self.policy or 'dense'}, {self.epochs} more{', imitating' if self.imitating else ''}"

    @property
    def control(self) -> Arm:
        """The same training of the dense network, which it is compared with."""
        return replace(self, policy=None)


def arms(settings: Mapping[str, Any]) -> list[Arm]:
    """All further trainings, each after its control.

    Args:
        settings: The settings in the result file.
    """
    listed = []
    for epochs in settings["extra_epochs"]:
        listed += [Arm(policy, epochs) for policy in (None, *settings["policies"])]
        if settings["imitate"]:
            listed += [Arm(policy, epochs, imitating=True) for policy in (None, *settings["imitate"])]
    return listed


def untuned(policy: str) -> str:
    """The name of the stage of a network that was pruned and not yet fine-tuned."""
    return f"{policy}, untuned"


def latency(policy: str) -> str:
    """The name of the row with the latency before and after pruning."""
    return f"{policy}, latency"
