"""Learning rates over a training, as closed formulas of how much of it is done: they resume with nothing stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import TrainingSettings

# Of torch.optim.lr_scheduler.OneCycleLR: where the rise starts, how deep the fall ends, how long the rise is.
_START, _END, _RISE = 1 / 25, 1 / 25 / 1e4, 0.3
# A warm-up that starts from nothing would waste its first step.
_WARM_START = 0.01


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every moment of a training.

    Attributes:
        kind: ``"cosine"`` or ``"onecycle"``.
        lr: The highest rate.
        rise: Share of the training in which the rate rises, in [0, 1).
    """

    kind: str
    lr: float
    rise: float

    @classmethod
    def of(cls, settings: TrainingSettings) -> Schedule:
        """The schedule that the settings ask for."""
        rise = settings.warmup_epochs / settings.epochs
        return cls(settings.schedule, settings.lr, rise or (_RISE if settings.schedule == "onecycle" else 0.0))

    def rate(self, progress: float) -> float:
        """The learning rate of the step that begins when a share of the training is done.

        Args:
            progress: That share, in [0, 1].

        Returns:
            The rate.
        """
        rising = progress < self.rise
        part = progress / self.rise if rising else (progress - self.rise) / (1.0 - self.rise)
        if self.kind == "onecycle":
            return _cosine(_START * self.lr, self.lr, part) if rising else _cosine(self.lr, _END * self.lr, part)
        if rising:
            return self.lr * (_WARM_START + (1.0 - _WARM_START) * part)
        return _cosine(self.lr, 0.0, part)


def _cosine(first: float, last: float, part: float) -> float:
    """From the first value to the last along half a cosine."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * part))
