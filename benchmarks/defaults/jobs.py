"""What is measured: ways to choose channels, what follows the cut, and budgets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.defaults.networks import NAMES

DEFAULT, CLASSICAL = "default", "L1, uniform"
CHOICES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    CLASSICAL: {"criterion": "l1", "sides": "producer", "ratios": "uniform"},
    "fec_l1, uniform": {"criterion": "fec_l1", "ratios": "uniform"},
    "fec_l1, entropy": {"criterion": "fec_l1", "ratios": "entropy"},
    "reconstruction, entropy": {"criterion": "reconstruction", "ratios": "entropy"},
    "reconstruction, reconstruction": {"criterion": "reconstruction", "ratios": "reconstruction"},
    "fec_l1, ablation": {"criterion": "fec_l1", "ratios": "ablation"},
    "ablation, ablation": {"criterion": "ablation", "ratios": "ablation"},
}
# What follows the cut. Without images: nothing, or recovery on noise. With images: batch norm, or least squares.
RECOVERIES = ("none", "data-free", "re-estimated", "least squares")
BUDGETS = (*itertools.product(("macs", "params"), (0.1, 0.3, 0.5)), ("params", 0.9))
IMAGES = 1000


@dataclass(frozen=True)
class Job:
    """One pruning, and what follows it.

    Attributes:
        network: Its name.
        choice: The name of a way to choose channels.
        recovery: What follows the cut.
        currency: Of the budget: ``"params"`` or ``"macs"``.
        share: The share removed.
        seed: The seed of the calibration images; 0 where there are none.
    """

    network: str
    choice: str
    recovery: str
    currency: str
    share: float
    seed: int

    @property
    def has_images(self) -> bool:
        """Whether the recovery uses images."""
        return self.recovery in ("re-estimated", "least squares")

    def key(self) -> list[Any]:
        """The key of its row in the result file."""
        return [self.network, self.choice, self.recovery, self.currency, self.share, self.seed]


def jobs(seeds: int) -> Iterator[Job]:
    """All rows: the default and its rival of every network and budget first."""
    first = (DEFAULT, CLASSICAL)
    for choices, seed in itertools.product((first, tuple(name for name in CHOICES if name not in first)), range(seeds)):
        for network, (currency, share), recovery, choice in itertools.product(NAMES, BUDGETS, RECOVERIES, choices):
            job = Job(network, choice, recovery, currency, share, seed)
            if job.has_images or not seed:
                yield job
