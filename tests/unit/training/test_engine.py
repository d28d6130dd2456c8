"""The training loop: each setting has its effect and resumes to the same bits; patience and time limits."""

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fec_fast
from fec_fast.training.tasks.classification import Classification
from fec_fast.utils.errors import (
    ArgumentError,
    InputError,
)
from helpers.comparison import same_weights
from helpers.training import (
    InterruptedLoader,
    classifier,
    dot_images,
    dot_loader,
    normless_classifier,
    train,
    without_times,
)

CHOICES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "onecycle": {"schedule": "onecycle"},
    "warmup": {"warmup_epochs": 1.5},
    "average": {"ema_decay": 0.9},
    "mixup": {"mixup": 0.4, "label_smoothing": 0.1},
    "clip": {"clip_norm": 0.1, "accumulate": 2},
    "patience": {"patience": 4, "ema_decay": 0.5},
    "features": {"teacher": True, "feature_layers": ["2"]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_changes_the_result_and_resumes_to_the_same_bits(choice: str, tmp_path: Path) -> None:
    options = dict(CHOICES[choice])
    if choice == "mixup":
        pytest.importorskip("torchvision")
    if options.pop("teacher", False):
        options["teacher"] = classifier(width=12)
    held_out = dot_loader(shuffle=False)

    def with_choice(loader: Any = held_out, **more: Any) -> Any:
        return train(classifier(), epochs=3, val_loader=loader, **options, **more)

    whole = with_choice()
    plain = train(classifier(), epochs=3, val_loader=held_out)
    if choice != "patience":  # its epochs are equally good
        assert not same_weights(whole.model, plain.model)
    with pytest.raises(KeyboardInterrupt, match="state after epoch 1"):
        with_choice(InterruptedLoader(held_out, 1), checkpoint=tmp_path / "s")
    resumed = with_choice(checkpoint=tmp_path / "s", resume=True)
    assert same_weights(resumed.model, whole.model)
    assert without_times(resumed.history) == without_times(whole.history) and resumed.stopped == whole.stopped
    # Resuming a finished training returns its result.
    again = with_choice(checkpoint=tmp_path / "s", resume=True)
    assert same_weights(again.model, whole.model) and again.stopped == whole.stopped


@pytest.mark.parametrize("batch_size", [12, 16, 20])
def test_accumulated_batches_are_one_batch(batch_size: int) -> None:
    # Groups of two batches; with 16 the last group has one batch, with 20 its last batch is smaller.
    model, wanted = normless_classifier(), normless_classifier()
    train(model, epochs=3, loader=dot_loader(batch_size=batch_size, shuffle=False), accumulate=2)
    batches = list(dot_loader(batch_size=batch_size, shuffle=False))
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        for first in range(0, len(batches), 2):
            group = batches[first : first + 2]
            done = (epoch * len(batches) + first) / (3 * len(batches))
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            sum(nn.functional.cross_entropy(wanted(x), y) / len(group) for x, y in group).backward()
            optimizer.step()
    for one, other in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_clipping_bounds_the_step() -> None:
    model, before = normless_classifier(), normless_classifier()
    train(model, epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=1e-3, loader=dot_loader(batch_size=48))
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = sum((p - q).detach().square().sum().item() for p, q in pairs)
    assert math.sqrt(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_mixup_mixes_neighbours() -> None:
    pytest.importorskip("torchvision")
    plain, mixed = classifier(), classifier()
    first = train(plain, epochs=4).history
    second = train(mixed, epochs=4, mixup=1.0).history
    assert second[-1].loss > 2 * first[-1].loss  # mixed labels cannot be predicted with certainty
    assert fec_fast.evaluate(mixed, dot_loader()) > 0.9
    data = dot_images()
    data.tensors[1][20] = 5
    with pytest.raises(InputError, match="label 5"):
        train(classifier(), loader=DataLoader(data, batch_size=8), mixup=1.0)


class _Scores:
    """A task whose metric is prescribed."""

    name, main_metric = "prescribed", "score"

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.seen = scores, []

    def check(self, *arguments: Any) -> None:
        Classification().check(*arguments)

    def objective(self, *arguments: Any) -> Any:
        return Classification().objective(*arguments)

    def evaluate(self, model: nn.Module, loader: Any, accelerator: Any = None) -> dict[str, float]:
        self.seen.append(copy.deepcopy(model.state_dict()))
        return {"score": self.scores[len(self.seen) - 1]}


@pytest.mark.parametrize("decay", [None, 0.8])
def test_patience_stops_the_training_and_restores_the_best_epoch(decay: float | None) -> None:
    task = _Scores([0.1, 0.7, 0.7, 0.6, 0.9])
    result = train(classifier(), epochs=5, task=task, val_loader=dot_loader(), patience=2, ema_decay=decay)
    assert (result.stopped, result.best_epoch, len(result.history)) == ("patience", 2, 4)
    own = result.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in task.seen[1].items())
    assert any(not torch.equal(own[key], value) for key, value in task.seen[3].items())
    with pytest.raises(ArgumentError, match="val_loader="):
        train(classifier(), patience=2)


class _Clock:
    """A clock that advances a tenth of a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.1
        return self.now


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("seconds", [0.05, 5.0, 12.0])
def test_time_limit_ends_the_schedule_properly(
    schedule: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    monkeypatch.setattr("fec_fast.training.engine.time", clock)
    loader = dot_loader(batch_size=4, shuffle=False)
    options: dict[str, Any] = {
        "max_minutes": seconds / 60,
        "lr": 0.05,
        "schedule": schedule,
        "val_loader": dot_loader(),
    }
    folder = tmp_path / "s"
    model = classifier()
    result = train(model, loader=loader, epochs=1000, checkpoint=folder, **options)
    assert result.stopped == "time"
    if seconds == 0.05:  # too little for a second step
        assert [row.images for row in result.history] == [4]
        return
    # Half a second for a step and an evaluation that take longer than those before.
    assert sum(row.seconds for row in result.history) <= seconds + 0.5
    assert sum(row.seconds for row in result.history) > 0.8 * seconds
    assert result.history[-1].lr < 0.05 * 0.05
    if seconds == 12.0:
        assert len(result.history) > 2 and result.history[0].lr > 0.5 * 0.05 * (schedule == "cosine")
        # After an interruption in the first epoch, the time that it took still counts.
        with pytest.raises(KeyboardInterrupt):
            other = {**options, "val_loader": InterruptedLoader(dot_loader(), 1), "checkpoint": tmp_path / "other"}
            train(classifier(), loader=loader, epochs=1000, **other)
        resumed = train(classifier(), loader=loader, epochs=1000, resume=True, **{**other, "val_loader": dot_loader()})
        assert 0.8 * seconds < sum(row.seconds for row in resumed.history) <= seconds + 0.5
    again = train(classifier(), loader=loader, epochs=1000, checkpoint=folder, resume=True, **options)
    assert same_weights(again.model, model) and again.history == result.history and again.stopped == "time"


class _Lengthy:
    """Held-out data whose reading takes three seconds of a clock."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        self.clock.now += 3.0
        return iter(dot_loader(shuffle=False))


def test_time_limit_allows_for_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("fec_fast.training.engine.time", clock)
    loader = dot_loader(batch_size=4, shuffle=False)
    result = train(classifier(), loader=loader, epochs=1000, max_minutes=15 / 60, lr=0.05, val_loader=_Lengthy(clock))
    assert result.stopped == "time" and len(result.history) > 1
    assert 13.0 < sum(row.seconds for row in result.history) <= 15.5
    assert result.history[-1].lr < 0.05 * 0.05


def test_a_time_limit_that_is_not_reached_has_no_effect() -> None:
    plain, limited = classifier(), classifier()
    train(plain)
    result = train(limited, max_minutes=60.0)
    assert same_weights(plain, limited) and result.stopped == "epochs"


def test_the_callers_accumulation_survives() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(gradient_accumulation_steps=3)
    try:
        train(classifier(), epochs=1)
        assert own.gradient_accumulation_steps == 3
    finally:
        AcceleratorState._reset_state()
        own.gradient_accumulation_steps = 1


class Silent(nn.Sequential):
    """Its ``train``, and so its ``eval``, returns nothing, as in many detectors."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_teacher_whose_train_returns_nothing_teaches() -> None:
    teacher = classifier(width=12)
    expected = train(classifier(), teacher=teacher)
    found = train(Silent(*classifier()), teacher=Silent(*teacher))
    assert same_weights(found.model, expected.model)
    assert not same_weights(found.model, train(classifier()).model)


class Unmoved(nn.Sequential):
    """Its ``to`` returns nothing."""

    def to(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super().to(*args, **kwargs)


def test_networks_whose_to_returns_nothing_are_trained() -> None:
    expected = train(classifier(), teacher=classifier(width=12))
    found = train(Unmoved(*classifier()), teacher=Unmoved(*classifier(width=12)))
    assert same_weights(found.model, expected.model)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, functools.partial(torch.compile, backend="eager")])
def test_wrapped_networks_are_trained_and_resumed_as_those_inside(wrapped: Any, tmp_path: Path) -> None:
    options = {"epochs": 3, "ema_decay": 0.5, "patience": 5}
    held_out = dot_loader(shuffle=False)
    expected = train(classifier(), val_loader=held_out, **options)
    with pytest.raises(KeyboardInterrupt):
        stopped = InterruptedLoader(held_out, 1)
        train(wrapped(classifier()), val_loader=stopped, checkpoint=tmp_path / "s", **options)
    model = classifier()
    found = train(wrapped(model), val_loader=held_out, checkpoint=tmp_path / "s", resume=True, **options)
    assert same_weights(model, expected.model)
    assert without_times(found.history) == without_times(expected.history)
