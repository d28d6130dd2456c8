"""Training settings: the hyperparameters of a training in one frozen record; a recipe's ``finetune:`` section."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..utils.errors import ArgumentError, InputError, nearest
from ..utils.public_call import constructor_checked

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "onecycle")
PRECISIONS = ("no", "fp16", "bf16")

_SMALLEST_POSITIVE = math.ulp(0.0)
# Integer settings and their least values.
_INTEGERS = {"epochs": 1, "accumulate": 1, "patience": 1, "seed": None}
# Other numbers: the half-open range [low, high), and its description for error messages.
_NUMBERS = {
    "lr": (_SMALLEST_POSITIVE, math.inf, "a positive number"),
    "momentum": (0.0, 1.0, "a number in [0, 1)"),
    "weight_decay": (0.0, math.inf, "a number that is not negative"),
    "warmup_epochs": (0.0, math.inf, "a number that is not negative"),
    "label_smoothing": (0.0, 1.0, "a number in [0, 1)"),
    "mixup": (0.0, math.inf, "a number that is not negative"),
    "clip_norm": (_SMALLEST_POSITIVE, math.inf, "a positive number"),
    "ema_decay": (0.0, 1.0, "a number in [0, 1)"),
    "distill_weight": (0.0, math.nextafter(1.0, 2.0), "a number in [0, 1]"),
    "temperature": (_SMALLEST_POSITIVE, math.inf, "a positive number"),
    "feature_weight": (0.0, math.inf, "a number that is not negative"),
    "max_minutes": (_SMALLEST_POSITIVE, math.inf, "a positive number"),
}
_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "mixed_precision": PRECISIONS}
_MAY_BE_NONE = ("clip_norm", "ema_decay", "patience", "max_minutes")

_LARGEST = 1 << 53


@constructor_checked
@dataclass(frozen=True)
class TrainingSettings:
    """The settings of :func:`fec_fast.finetune`. Every name is also a keyword argument of that function.

    Attributes:
        epochs: Number of passes over the training data; ``patience`` and ``max_minutes`` may end the training earlier.
        optimizer: ``"sgd"`` (the default) or ``"adamw"`` (with torch's betas).
        lr: The highest learning rate; 0.02 by default.
        momentum: Momentum of SGD, in [0, 1); AdamW ignores it.
        weight_decay: Weight decay of every parameter, biases and batch norm included; decoupled with AdamW.
        schedule: ``"cosine"``: half a cosine from ``lr`` down to 0. ``"onecycle"``: from ``lr / 25`` up to ``lr`` in
            the first 30 % of the training, then down to nearly 0 (Smith & Topin, 2018; the momentum is constant).
        warmup_epochs: Length of the warm-up in epochs, need not be an integer. With ``"cosine"`` the learning rate
            rises linearly for that long first; with ``"onecycle"`` this replaces the 30 % unless it is 0.
        label_smoothing: Share of the target probability that is spread over all classes, in [0, 1).
        mixup: Parameter alpha of the Beta distribution from which mixup draws its weights (Zhang et al., 2018);
            0 turns mixup off.
        clip_norm: Upper bound of the gradient's Euclidean norm over all parameters; ``None`` does not clip.
        accumulate: Number of batches per optimizer step (gradient accumulation).
        ema_decay: Decay of an exponential moving average of the weights, in [0, 1). The averaged network is evaluated
            and is the result. Step n uses the decay (1 + n) / (10 + n) as long as that is smaller. ``None`` keeps no
            average.
        distill_weight: Weight of the divergence from the teacher's logits, in [0, 1]; the loss from the labels has the
            rest. Without a teacher it has no effect.
        temperature: Temperature that softens both networks' logits for the divergence (Hinton et al., 2015).
        feature_layers: Modules whose attention maps imitate the teacher's: a list of names, or a mapping from the
            model's names to the teacher's.
        feature_weight: Weight of each attention distance in the loss.
        patience: The training ends when the main metric on the held-out data has not improved for this many epochs, and
            the best epoch's weights are the result; ``None`` trains to the end and takes the last epoch's.
        max_minutes: Limit of the duration in minutes, evaluation included. If the epochs would take longer, the
            learning-rate schedule follows the clock, so that it is complete when the time is up. ``None`` sets no
            limit.
        mixed_precision: ``"no"`` (float32), ``"fp16"`` (GPU only) or ``"bf16"``.
        seed: Seed of the order of the data, augmentation, mixup and dropout.
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
            InputError: A value is out of its range.
            ArgumentError: A value has the wrong type.
        """
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r}: give an integer")
            if least is not None and value < least:
                raise InputError(f"{name}={value}: give at least {least}")
            if abs(value) > _LARGEST:
                raise InputError(f"{name} has {value.bit_length()} bits: give a number of at most 53")
        for name, (low, high, expected) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentError(f"{name}={value!r}: give {expected}")
            if not low <= value < high or abs(value) > 1e300:
                raise InputError(f"{name}={value!r}: give {expected}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name}={value!r}: {nearest(str(value), choices)}")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs={self.warmup_epochs} with epochs={self.epochs}: the warm-up must be shorter than "
                "the training: lower warmup_epochs, or raise epochs"
            )
        object.__setattr__(self, "feature_layers", _layer_mapping(self.feature_layers))

    @classmethod
    def merge(cls, settings: TrainingSettings | None, overrides: Mapping[str, Any]) -> TrainingSettings:
        """Combines a complete record with single values; the single values take precedence.

        Args:
            settings: The record; ``None`` starts from the defaults.
            overrides: Values by name.

        Returns:
            The settings.

        Raises:
            ArgumentError: A name is unknown, ``epochs`` is missing, or a value has the wrong type.
            InputError: A value is out of its range.
        """
        if settings is not None and not isinstance(settings, cls):
            raise ArgumentError(f"settings: expected a TrainingSettings, got {type(settings).__name__}")
        names = [entry.name for entry in fields(cls)]
        for name in overrides:
            if name not in names:
                raise ArgumentError(f"there is no setting {name!r}; {nearest(name, names)}")
        if settings is not None:
            return replace(settings, **overrides)
        if "epochs" not in overrides:
            raise ArgumentError("epochs is missing: give the number of passes over the data")
        return cls(**overrides)


def _layer_mapping(layers: Any) -> dict[str, str]:
    """Turns ``feature_layers`` into a mapping from the model's module names to the teacher's."""
    pairs: list[tuple[Any, Any]] | None = list(layers.items()) if isinstance(layers, Mapping) else None
    if isinstance(layers, list | tuple):
        pairs = [(name, name) for name in layers]
    if pairs is None or not all(isinstance(name, str) for pair in pairs for name in pair):
        raise ArgumentError(
            f"feature_layers={layers!r}: give names of modules, or a mapping from the model's names to the teacher's"
        )
    return dict(pairs)
