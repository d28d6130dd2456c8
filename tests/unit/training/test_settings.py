"""Settings: values out of range are named before training."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from fec_fast.training.finetuning import finetune
from fec_fast.training.settings import TrainingSettings
from fec_fast.utils.errors import ArgumentError, InputError
from helpers.training import classifier, dot_loader, dropout_classifier, train


def test_settings_and_single_values() -> None:
    settings = TrainingSettings(epochs=9, lr=0.5, feature_layers=["a"])  # type: ignore[arg-type]
    assert settings.feature_layers == {"a": "a"}
    assert TrainingSettings(**json.loads(json.dumps(asdict(settings)))) == settings
    result = train(classifier(), settings=TrainingSettings(epochs=9, lr=0.5), epochs=1)
    assert len(result.history) == 1 and result.history[0].lr > 0.05
    for arguments, words in (
        ({"epoch": 3, "epochs": 3}, "no setting 'epoch'; nearest: 'epochs'"),
        ({}, "epochs is missing"),
        ({"settings": {"epochs": 3}}, "expected a TrainingSettings, got dict"),
    ):
        with pytest.raises(ArgumentError, match=words):
            finetune(classifier(), dot_loader(), progress=False, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"optimizer": "adam"}, InputError),
        ({"schedule": "step"}, InputError),
        ({"warmup_epochs": 2}, InputError),
        ({"mixup": -0.1}, InputError),
        ({"clip_norm": 0.0}, InputError),
        ({"accumulate": 0}, InputError),
        ({"accumulate": 1.5}, ArgumentError),
        ({"ema_decay": 1.0}, InputError),
        ({"patience": 0}, InputError),
        ({"max_minutes": 0.0}, InputError),
        ({"max_minutes": "long"}, ArgumentError),
        ({"feature_weight": -1.0}, InputError),
    ],
)
def test_values_out_of_range_are_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        train(classifier(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"epochs": 0}, InputError, "epochs=0"),
        ({"epochs": 1.5}, ArgumentError, "epochs=1.5"),
        ({"lr": 0.0}, InputError, "lr=0.0"),
        ({"lr": float("nan")}, InputError, "lr=nan"),
        ({"lr": "fast"}, ArgumentError, "lr='fast'"),
        ({"momentum": 1.0}, InputError, "momentum=1.0"),
        ({"weight_decay": -1e-4}, InputError, "weight_decay"),
        ({"label_smoothing": 1.0}, InputError, "label_smoothing"),
        ({"distill_weight": 1.1}, InputError, "distill_weight"),
        ({"temperature": 0}, InputError, "temperature"),
        ({"mixed_precision": "fp61"}, InputError, "nearest: 'fp16'"),
        ({"resume": True}, ArgumentError, "checkpoint="),
        ({"val_loader": []}, InputError, "val_loader is empty"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        finetune(dropout_classifier(), dot_loader(), **{"epochs": 1, "progress": False, **arguments})
