"""Learning-rate schedules: closed formulas of the share of the training that is done.

A schedule has no state of its own, so nothing has to be stored to resume it, and it can follow the clock instead of the
number of steps (``max_minutes``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import TrainingSettings

# The defaults of torch.optim.lr_scheduler.OneCycleLR: initial and final rate as shares of the peak (div_factor,
# final_div_factor), and the length of the warm-up as a share of the training (pct_start).
_ONECYCLE_START = 1 / 25
_ONECYCLE_END = 1 / 25 / 1e4
_ONECYCLE_WARMUP = 0.3
# The linear warm-up starts at this share of the peak. With a rate of 0 the first step would change nothing.
_LINEAR_START = 0.01


@dataclass(frozen=True)
class LRSchedule:
    """The learning rate at every moment of a training.

    Attributes:
        kind: ``"cosine"`` or ``"onecycle"``.
        peak: The highest learning rate.
        warmup: Share of the training during which the rate rises to the peak, in [0, 1).
    """

    kind: str
    peak: float
    warmup: float

    @classmethod
    def from_settings(cls, settings: TrainingSettings) -> LRSchedule:
        """Builds the schedule that the settings describe.

        Args:
            settings: Gives ``schedule``, ``lr``, ``warmup_epochs`` and ``epochs``.

        Returns:
            The schedule.
        """
        warmup = settings.warmup_epochs / settings.epochs
        if not warmup and settings.schedule == "onecycle":
            warmup = _ONECYCLE_WARMUP
        return cls(settings.schedule, settings.lr, warmup)

    def lr_at(self, progress: float) -> float:
        """Computes the learning rate of one step.

        Args:
            progress: Share of the training that is done when the step begins, in [0, 1].

        Returns:
            The learning rate.
        """
        warming_up = progress < self.warmup
        share = progress / self.warmup if warming_up else (progress - self.warmup) / (1.0 - self.warmup)
        if self.kind == "onecycle":
            if warming_up:
                return _half_cosine(_ONECYCLE_START * self.peak, self.peak, share)
            return _half_cosine(self.peak, _ONECYCLE_END * self.peak, share)
        if warming_up:
            return self.peak * (_LINEAR_START + (1.0 - _LINEAR_START) * share)
        return _half_cosine(self.peak, 0.0, share)


def _half_cosine(start: float, end: float, share: float) -> float:
    """Interpolates from ``start`` to ``end`` along half a cosine period; ``share`` is in [0, 1]."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * share))
