"""What the numbers of a training depend on, besides data and model: one frozen record, which is what YAML holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..utils.errors import ArgumentError, InputError, nearest

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "onecycle")
PRECISIONS = ("no", "fp16", "bf16")

_TINY = math.ulp(0.0)
_WHOLE = {"epochs": 1, "accumulate": 1, "patience": 1, "seed": None}
_NUMBERS = {
    "lr": (_TINY, math.inf, "a positive number"),
    "momentum": (0.0, 1.0, "a number in [0, 1)"),
    "weight_decay": (0.0, math.inf, "a number that is not negative"),
    "warmup_epochs": (0.0, math.inf, "a number that is not negative"),
    "label_smoothing": (0.0, 1.0, "a number in [0, 1)"),
    "mixup": (0.0, math.inf, "a number that is not negative"),
    "clip_norm": (_TINY, math.inf, "a positive number"),
    "ema_decay": (0.0, 1.0, "a number in [0, 1)"),
    "distill_weight": (0.0, math.nextafter(1.0, 2.0), "a number in [0, 1]"),
    "temperature": (_TINY, math.inf, "a positive number"),
    "feature_weight": (0.0, math.inf, "a number that is not negative"),
    "max_minutes": (_TINY, math.inf, "a positive number"),
}
_WORDS = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "mixed_precision": PRECISIONS}
_OPTIONAL = ("clip_norm", "ema_decay", "patience", "max_minutes")


@dataclass(frozen=True)
class TrainingSettings:
    """How :func:`fec_fast.finetune` trains. Every name is also a keyword argument of that function.

    Attributes:
        epochs: Passes over the data, at most: ``patience`` and ``max_minutes`` may end the training earlier.
        optimizer: ``"sgd"`` or ``"adamw"`` (torch's betas).
        lr: The highest learning rate.
        momentum: Of SGD.
        weight_decay: On every parameter; decoupled with AdamW.
        schedule: ``"cosine"``: half a cosine from ``lr`` down to 0; ``"onecycle"``: up from a 25th of ``lr`` in the
            first 30 % of the training and down to nearly 0 (Smith & Topin, 2018; momentum stays as it is).
        warmup_epochs: The learning rate rises linearly for so long before the cosine; with one-cycle, the length of
            the rise instead of 30 %. Need not be whole.
        label_smoothing: In [0, 1).
        mixup: The alpha of the Beta distribution that pairs of images are mixed by (Zhang et al., 2018); 0 is none.
        clip_norm: The gradient's norm over all parameters is cut down to this; ``None`` leaves it.
        accumulate: So many batches make one step of the optimizer.
        ema_decay: Keeps an exponential moving average of the weights, which is what is evaluated and what results;
            ``None`` keeps none. In the first steps n the decay is (1 + n) / (10 + n), if that is less.
        distill_weight: Share of the loss that imitates the teacher's logits, in [0, 1]; without a teacher it has no
            effect.
        temperature: Softens both networks' logits in that (Hinton et al., 2015).
        feature_layers: Modules whose attention maps imitate the teacher's: names, or a mapping from the model's names
            to the teacher's.
        feature_weight: What the imitation of attention maps counts in the loss.
        patience: Training ends when the main metric on held-out data has not risen for so many epochs, and the best
            epoch's weights result; ``None`` goes on to the end and takes the last.
        max_minutes: The whole training, evaluation included, is squeezed into this time if it would take longer: the
            schedule then runs by the clock, so that it ends as it should.
        mixed_precision: ``"no"``, ``"fp16"`` (GPU only) or ``"bf16"``.
        seed: Of the order of the data, augmentation, mixup and dropout.
    """

    epochs: int
    optimizer: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    distill_weight: float = 0.5
    temperature: float = 4.0
    feature_layers: Mapping[str, str] = field(default_factory=dict)
    feature_weight: float = 1.0
    patience: int | None = None
    max_minutes: float | None = None
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            InputError: A value out of its range.
            ArgumentError: A value of the wrong kind.
        """
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r}: give an integer")
            if least is not None and value < least:
                raise InputError(f"{name}={value}: give at least {least}")
        for name, (low, high, words) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentError(f"{name}={value!r}: give {words}")
            if not low <= value < high:
                raise InputError(f"{name}={value!r}: give {words}")
        for name, known in _WORDS.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name}={value!r}: {nearest(str(value), known)}")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs={self.warmup_epochs} with epochs={self.epochs}: the warm-up must be shorter"
            )
        object.__setattr__(self, "feature_layers", _layers(self.feature_layers))

    @classmethod
    def of(cls, settings: TrainingSettings | None, given: Mapping[str, Any]) -> TrainingSettings:
        """Puts settings and single values together; the latter prevail.

        Args:
            settings: All of them; ``None`` starts from the defaults.
            given: Values by name.

        Returns:
            The settings.

        Raises:
            ArgumentError: An unknown name, no number of epochs, or a value of the wrong kind.
            InputError: A value out of its range.
        """
        if settings is not None and not isinstance(settings, cls):
            raise ArgumentError(f"settings: expected a TrainingSettings, got {type(settings).__name__}")
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                raise ArgumentError(f"there is no setting {name!r}; {nearest(name, known)}")
        if settings is not None:
            return replace(settings, **given)
        if "epochs" not in given:
            raise ArgumentError("epochs is missing: give the number of passes over the data")
        return cls(**given)


def _layers(given: Any) -> dict[str, str]:
    """The names of the model's modules, with the teacher's."""
    pairs: list[tuple[Any, Any]] | None = list(given.items()) if isinstance(given, Mapping) else None
    if isinstance(given, list | tuple):
        pairs = [(name, name) for name in given]
    if pairs is None or not all(isinstance(name, str) for pair in pairs for name in pair):
        raise ArgumentError(
            f"feature_layers={given!r}: give names of modules, or a mapping from the model's names to the teacher's"
        )
    return dict(pairs)
