"""What a training can be told to do beyond the plain one: each choice does what its name says, and resumes."""

import copy
import csv
import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from fec_fast.training.distillation import attention_distance
from fec_fast.training.ema import ModelEma
from fec_fast.training.lr_schedule import LRSchedule
from fec_fast.training.settings import TrainingSettings
from fec_fast.training.tasks.classification import Classification
from fec_fast.utils.errors import ArgumentError, InputError, LayerError, TrainingInterrupted
from helpers.training import Stops, numbers, same

finetune = fec_fast.finetune


def _data(count: int = 48, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.3
    images[torch.arange(count), 0, labels % 6, labels // 6 + labels % 6] += 3.0
    return TensorDataset(images, labels)


def _loader(batch_size: int = 16, shuffle: bool = True, count: int = 48) -> DataLoader[Any]:
    return DataLoader(_data(count), batch_size=batch_size, shuffle=shuffle)


def _model(classes: int = 3, width: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 36, classes),
    )


def _plain() -> nn.Module:
    """Without batch norm, which looks at a batch as a whole."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def _train(model: nn.Module, **options: Any) -> Any:
    return finetune(model, options.pop("loader", None) or _loader(), **{"epochs": 2, "progress": False, **options})


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
        options["teacher"] = _model(width=12)
    held_out = _loader(shuffle=False)

    def train(loader: Any = held_out, **more: Any) -> Any:
        model = _model()
        return _train(model, epochs=3, val_loader=loader, **options, **more)

    whole = train()
    plain = _train(_model(), epochs=3, val_loader=held_out)
    if choice != "patience":  # all of whose epochs are as good
        assert not same(whole.model, plain.model)
    with pytest.raises(KeyboardInterrupt, match="state after epoch 1"):
        train(Stops(held_out, 1), checkpoint=tmp_path / "s")
    resumed = train(checkpoint=tmp_path / "s", resume=True)
    assert same(resumed.model, whole.model)
    assert numbers(resumed.history) == numbers(whole.history) and resumed.stopped == whole.stopped
    # A training that is over gives what it came to once more.
    again = train(checkpoint=tmp_path / "s", resume=True)
    assert same(again.model, whole.model) and again.stopped == whole.stopped


@given(st.integers(2, 40), st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_cosine_is_torchs(steps: int, lr: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ours = LRSchedule.from_settings(TrainingSettings(epochs=steps, lr=lr))
    for step in range(steps):
        assert ours.lr_at(step / steps) == pytest.approx(peer.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        peer.step()


def test_one_cycle_is_torchs() -> None:
    steps = 4000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, cycle_momentum=False)
    ours = LRSchedule.from_settings(TrainingSettings(epochs=5, lr=0.1, schedule="onecycle"))
    worst = 0.0
    for step in range(steps):
        worst = max(worst, abs(ours.lr_at(step / steps) - peer.get_last_lr()[0]))
        optimizer.step()
        if step < steps - 1:
            peer.step()
    # Torch counts intervals and we count steps: one step of 4,000 apart, at a slope of at most pi/2/0.3 times 0.1.
    assert worst < 0.1 * math.pi / 2 / 0.3 / steps * 1.5


@given(
    kind=st.sampled_from(["cosine", "onecycle"]),
    warm=st.floats(0.0, 9.9),
    one=st.floats(0.0, 1.0),
    other=st.floats(0.0, 1.0),
)
@settings(deadline=None)
def test_rates_rise_to_the_peak_and_fall_to_the_end(kind: str, warm: float, one: float, other: float) -> None:
    schedule = LRSchedule.from_settings(TrainingSettings(epochs=10, lr=0.5, schedule=kind, warmup_epochs=warm))
    low, high = sorted((one, other))
    rates = [schedule.lr_at(low), schedule.lr_at(high)]
    assert all(0.0 <= rate <= 0.5 * (1 + 1e-12) for rate in rates)
    if high < schedule.warmup:
        assert rates[0] <= rates[1] * (1 + 1e-12)
    if low >= schedule.warmup:
        assert rates[0] >= rates[1] * (1 - 1e-12)
    assert schedule.lr_at(schedule.warmup) == pytest.approx(0.5) and schedule.lr_at(1.0) < 1e-5


@pytest.mark.parametrize("batch_size", [12, 16, 20])
def test_accumulated_batches_are_one_batch(batch_size: int) -> None:
    # Groups of two batches, the last of which has only one (16), and one that is smaller (20).
    model, wanted = _plain(), _plain()
    _train(model, epochs=3, loader=_loader(batch_size, shuffle=False), accumulate=2)
    batches = list(_loader(batch_size, shuffle=False))
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
    model, before = _plain(), _plain()
    _train(model, epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=1e-3, loader=_loader(48))
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = sum((p - q).detach().square().sum().item() for p, q in pairs)
    assert math.sqrt(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_average_is_the_formula_and_is_what_results() -> None:
    model = _model()
    average = ModelEma(model, 0.5)
    wanted: list[Tensor] = []
    for step in range(6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        state = [value.double().clone() for value in model.state_dict().values() if value.is_floating_point()]
        pairs = zip(wanted, state, strict=True) if wanted else ()
        wanted = [decay * old + (1 - decay) * new for old, new in pairs] or state
    own = [value for value in average.model.state_dict().values() if value.is_floating_point()]
    assert all(torch.allclose(x.double(), y, atol=1e-5) for x, y in zip(own, wanted, strict=True))
    assert int(average.model[1].num_batches_tracked) == int(model[1].num_batches_tracked) == 6

    held_out = _loader(shuffle=False)
    result = _train(_model(), epochs=3, val_loader=held_out, ema_decay=0.9)
    assert result.history[-1].held_out == Classification().evaluate(result.model.eval(), held_out)


def test_attention_maps_take_no_notice_of_widths() -> None:
    features = torch.randn(3, 5, 4, 4)
    doubled = torch.cat([features, features], 1) * 7
    assert float(attention_distance(features, doubled)) < 1e-10
    assert 0 < float(attention_distance(features, torch.randn(3, 9, 4, 4))) <= 2
    # By the formula, one image after the other.
    other = torch.randn(3, 9, 4, 4)
    maps = [[(x**2).mean(0) / (x**2).mean(0).norm() for x in batch.double()] for batch in (features, other)]
    wanted = sum(float(((a - b) ** 2).sum()) for a, b in zip(*maps, strict=True)) / 3
    assert float(attention_distance(features, other)) == pytest.approx(wanted, rel=1e-5)


def test_imitated_features_come_nearer() -> None:
    images = _data().tensors[0]
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 36, 3))
    apart = {}
    for weight in (0.0, 5.0):
        student = _model()
        _train(
            student,
            epochs=6,
            teacher=teacher,
            distill_weight=0.0,
            feature_layers={"2": "1"},
            feature_weight=weight,
        )
        with torch.no_grad():
            apart[weight] = float(attention_distance(student.eval()[:3](images), teacher[:2](images)))
        assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
    assert apart[5.0] < 0.7 * apart[0.0]


def test_features_that_do_not_fit_are_named() -> None:
    teacher = _model()
    for layers, error, words in (
        (["7"], LayerError, "no module '7'"),
        (["3"], InputError, r"'3' returns float32 \[16, 288\]"),
        ({"0": "pooled"}, LayerError, "'pooled'"),
        ("2", ArgumentError, "feature_layers='2'"),
    ):
        with pytest.raises(error, match=words):
            _train(_model(), teacher=teacher, feature_layers=layers)
    with pytest.raises(ArgumentError, match="needs a teacher"):
        _train(_model(), feature_layers=["2"])
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match=r"maps of \[6, 6\] and the teacher's '1' of \[4, 4\]"):
        _train(_model(), teacher=pooled, feature_layers={"2": "1"})


def test_mixup_mixes_neighbours() -> None:
    pytest.importorskip("torchvision")
    plain, mixed = _model(), _model()
    first = _train(plain, epochs=4).history
    second = _train(mixed, epochs=4, mixup=1.0).history
    assert second[-1].loss > 2 * first[-1].loss  # mixed labels cannot be predicted surely
    assert fec_fast.evaluate(mixed, _loader()) > 0.9
    data = _data()
    data.tensors[1][20] = 5
    with pytest.raises(InputError, match="label 5"):
        _train(_model(), loader=DataLoader(data, batch_size=8), mixup=1.0)


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
def test_patience_ends_the_training_and_takes_the_best(decay: float | None) -> None:
    task = _Scores([0.1, 0.7, 0.7, 0.6, 0.9])
    result = _train(_model(), epochs=5, task=task, val_loader=_loader(), patience=2, ema_decay=decay)
    assert (result.stopped, result.best_epoch, len(result.history)) == ("patience", 2, 4)
    own = result.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in task.seen[1].items())
    assert any(not torch.equal(own[key], value) for key, value in task.seen[3].items())
    with pytest.raises(ArgumentError, match="val_loader="):
        _train(_model(), patience=2)


class _Clock:
    """Every look at it takes a tenth of a second."""

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
    loader = _loader(4, shuffle=False)
    options: dict[str, Any] = {"max_minutes": seconds / 60, "lr": 0.05, "schedule": schedule, "val_loader": _loader()}
    folder = tmp_path / "s"
    model = _model()
    result = _train(model, loader=loader, epochs=1000, checkpoint=folder, **options)
    assert result.stopped == "time"
    if seconds == 0.05:  # no time at all is enough for one step
        assert [row.images for row in result.history] == [4]
        return
    assert sum(row.seconds for row in result.history) <= seconds + 0.5  # a step, and an evaluation longer than before
    assert sum(row.seconds for row in result.history) > 0.8 * seconds
    assert result.history[-1].lr < 0.05 * 0.05
    if seconds == 12.0:
        assert len(result.history) > 2 and result.history[0].lr > 0.5 * 0.05 * (schedule == "cosine")
        # Interrupted after the first epoch, the time that was spent is not given once more.
        with pytest.raises(KeyboardInterrupt):
            other = {**options, "val_loader": Stops(_loader(), 1), "checkpoint": tmp_path / "other"}
            _train(_model(), loader=loader, epochs=1000, **other)
        resumed = _train(_model(), loader=loader, epochs=1000, resume=True, **{**other, "val_loader": _loader()})
        assert 0.8 * seconds < sum(row.seconds for row in resumed.history) <= seconds + 0.5
    again = _train(_model(), loader=loader, epochs=1000, checkpoint=folder, resume=True, **options)
    assert same(again.model, model) and again.history == result.history and again.stopped == "time"


class _Lengthy:
    """Held-out data that take three seconds of a clock."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        self.clock.now += 3.0
        return iter(_loader(shuffle=False))


def test_time_limit_allows_for_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("fec_fast.training.engine.time", clock)
    loader = _loader(4, shuffle=False)
    result = _train(_model(), loader=loader, epochs=1000, max_minutes=15 / 60, lr=0.05, val_loader=_Lengthy(clock))
    assert result.stopped == "time" and len(result.history) > 1
    assert 13.0 < sum(row.seconds for row in result.history) <= 15.5
    assert result.history[-1].lr < 0.05 * 0.05


def test_time_that_is_enough_changes_nothing() -> None:
    plain, limited = _model(), _model()
    _train(plain)
    result = _train(limited, max_minutes=60.0)
    assert same(plain, limited) and result.stopped == "epochs"


class _Presses(TensorDataset):
    """Ctrl-C is pressed when an image is fetched for the nth time."""

    def __init__(self, at: int, presses: int = 1) -> None:
        super().__init__(*_data().tensors)
        self.at, self.presses, self.count = at, presses, 0

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        if self.count == self.at:
            for _ in range(self.presses):
                os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Python's own handler, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_ctrl_c_ends_after_the_step_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = _model()
    _train(whole, epochs=3)
    folder = tmp_path / "s"
    # 16 images are looked at before training, 48 in each epoch: in the middle of the second.
    loader = DataLoader(_Presses(16 + 48 + 20), batch_size=16, shuffle=True)
    stopped = _model()
    words = rf"interrupted in epoch 2; the state after epoch 1 is in {folder}: continue with resume=True"
    with pytest.raises(TrainingInterrupted, match=words):
        _train(stopped, epochs=3, loader=loader, checkpoint=folder)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "forward" not in stopped.__dict__ and not same(stopped, _model())
    resumed = _model()
    _train(resumed, epochs=3, checkpoint=folder, resume=True)
    assert same(resumed, whole)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize(("at", "words"), [(20, "no epoch was finished"), (16 + 48 + 5, "no state was kept")])
def test_ctrl_c_without_a_state_says_so(at: int, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "s" if at == 20 else None
    with pytest.raises(KeyboardInterrupt, match=words):
        _train(_model(), loader=DataLoader(_Presses(at), batch_size=16), checkpoint=folder)


@pytest.mark.usefixtures("keyboard")
def test_a_second_ctrl_c_does_not_wait() -> None:
    dataset = _Presses(16 + 3, presses=2)
    with pytest.raises(KeyboardInterrupt):
        _train(_model(), loader=DataLoader(dataset, batch_size=16))
    assert dataset.count == 16 + 3


def test_csv_log_is_the_history_and_goes_on(tmp_path: Path) -> None:
    held_out = _loader(shuffle=False)
    options: dict[str, Any] = {"epochs": 3, "log_dir": tmp_path / "logs", "checkpoint": tmp_path / "s"}
    with pytest.raises(KeyboardInterrupt):
        _train(_model(), val_loader=Stops(held_out, 2), **options)
    result = _train(_model(), val_loader=held_out, resume=True, **options)
    rows = list(csv.DictReader((tmp_path / "logs" / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, epoch in zip(rows, result.history, strict=True):
        assert float(row["loss"]) == epoch.loss and float(row["lr"]) == epoch.lr
        assert float(row["held_out/accuracy"]) == epoch.val_accuracy and float(row["train/accuracy"]) == epoch.accuracy
        assert float(row["images_per_second"]) == pytest.approx(48 / epoch.seconds)
    _train(_model(), epochs=1, log_dir=tmp_path / "logs")  # a new training begins the file anew
    assert len(list(csv.DictReader((tmp_path / "logs" / "metrics.csv").open()))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        _train(_model(), log_dir=tmp_path / "file")
    (tmp_path / "metrics.csv").write_text("name,height\n")
    with pytest.raises(InputError, match="left alone"):
        _train(_model(), log_dir=tmp_path)
    with pytest.raises(InputError, match="'tensorboard'"):
        _train(_model(), log_dir=tmp_path, log_with="tensorbord")


def test_tensorboard_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = _train(_model(), val_loader=_loader(), log_dir=tmp_path, log_with="tensorboard")
    (file,) = (tmp_path / "fec_fast").glob("events.out*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("held_out/accuracy")] == pytest.approx(
        [row.val_accuracy for row in result.history]
    )


def test_missing_tensorboard_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'fec_fast\[tensorboard\]'"):
        _train(_model(), log_dir=tmp_path, log_with="tensorboard")


def test_metrics_are_counted_rightly() -> None:
    model = _model(classes=8)
    data = _data(40, classes=8)
    metrics = Classification().evaluate(model, DataLoader(data, batch_size=7))
    with torch.no_grad():
        logits = model.eval()(data.tensors[0])
    top = logits.topk(5).indices == data.tensors[1][:, None]
    assert metrics == pytest.approx(
        {
            "accuracy": float(top[:, 0].double().mean()),
            "top5": float(top.any(1).double().mean()),
            "loss": float(nn.functional.cross_entropy(logits, data.tensors[1])),
        }
    )
    assert metrics["accuracy"] == pytest.approx(fec_fast.evaluate(model, DataLoader(data, batch_size=9)))
    assert set(Classification().evaluate(_model(), _loader())) == {"accuracy", "loss"}


def test_settings_and_single_values() -> None:
    settings = TrainingSettings(epochs=9, lr=0.5, feature_layers=["a"])  # type: ignore[arg-type]
    assert settings.feature_layers == {"a": "a"}
    assert TrainingSettings(**json.loads(json.dumps(asdict(settings)))) == settings
    result = finetune(_model(), _loader(), settings=TrainingSettings(epochs=9, lr=0.5), epochs=1, progress=False)
    assert len(result.history) == 1 and result.history[0].lr > 0.05
    for arguments, words in (
        ({"epoch": 3, "epochs": 3}, "no setting 'epoch'; nearest: 'epochs'"),
        ({}, "epochs is missing"),
        ({"settings": {"epochs": 3}}, "expected a TrainingSettings, got dict"),
    ):
        with pytest.raises(ArgumentError, match=words):
            finetune(_model(), _loader(), progress=False, **arguments)


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
        _train(_model(), **arguments)


def test_the_callers_accumulation_survives() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(gradient_accumulation_steps=3)
    try:
        _train(_model(), epochs=1)
        assert own.gradient_accumulation_steps == 3
    finally:
        AcceleratorState._reset_state()
        own.gradient_accumulation_steps = 1
