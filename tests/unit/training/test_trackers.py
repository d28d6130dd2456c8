"""Logs: metrics.csv and TensorBoard hold the history."""

import csv
from pathlib import Path
from typing import Any

import pytest

from fec_fast.utils.errors import InputError
from helpers.training import InterruptedLoader, classifier, dot_loader, train


def test_csv_log_is_the_history_and_continues_on_resume(tmp_path: Path) -> None:
    held_out = dot_loader(shuffle=False)
    options: dict[str, Any] = {"epochs": 3, "log_dir": tmp_path / "logs", "checkpoint": tmp_path / "s"}
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), val_loader=InterruptedLoader(held_out, 2), **options)
    result = train(classifier(), val_loader=held_out, resume=True, **options)
    rows = list(csv.DictReader((tmp_path / "logs" / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, epoch in zip(rows, result.history, strict=True):
        assert float(row["loss"]) == epoch.loss and float(row["lr"]) == epoch.lr
        assert float(row["held_out/accuracy"]) == epoch.val_accuracy and float(row["train/accuracy"]) == epoch.accuracy
        assert float(row["images_per_second"]) == pytest.approx(48 / epoch.seconds)
    train(classifier(), epochs=1, log_dir=tmp_path / "logs")  # a new training replaces the file
    assert len(list(csv.DictReader((tmp_path / "logs" / "metrics.csv").open()))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train(classifier(), log_dir=tmp_path / "file")
    (tmp_path / "metrics.csv").write_text("name,height\n")
    with pytest.raises(InputError, match="left alone"):
        train(classifier(), log_dir=tmp_path)
    with pytest.raises(InputError, match="'tensorboard'"):
        train(classifier(), log_dir=tmp_path, log_with="tensorbord")


def test_tensorboard_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(classifier(), val_loader=dot_loader(), log_dir=tmp_path, log_with="tensorboard")
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
        train(classifier(), log_dir=tmp_path, log_with="tensorboard")
