"""States of a training: resumed to the same bits, and refused where they do not fit."""

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fec_fast.training.finetuning import finetune
from fec_fast.training.history import Epoch
from fec_fast.training.state import TrainingState, read_state, write_state
from fec_fast.utils.errors import CheckpointError
from helpers.comparison import same_weights
from helpers.training import InterruptedLoader, dot_images, dot_loader, dropout_classifier, train, without_times


def state_files(folder: Path) -> list[str]:
    """The files of a training state, without the random part of their names."""
    return sorted(re.sub(r"(-[0-9a-f]{16})?\.\w+$", "", path.name) for path in folder.iterdir())


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_resume_gives_the_same_bits(tmp_path: Path, own_generator: bool, interrupted_after: int) -> None:
    def loader() -> DataLoader[Any]:
        return dot_loader(generator=torch.Generator().manual_seed(2) if own_generator else None)

    held_out = DataLoader(dot_images(), batch_size=16)
    straight = dropout_classifier()
    whole = finetune(straight, loader(), epochs=4, val_loader=held_out, progress=False)

    first = dropout_classifier()
    with pytest.raises(KeyboardInterrupt):
        finetune(
            first,
            loader(),
            epochs=4,
            val_loader=InterruptedLoader(held_out, interrupted_after),
            checkpoint=tmp_path / "state",
            progress=False,
        )
    assert state_files(tmp_path / "state") == [f"state-{interrupted_after:04d}", "training"]
    second = dropout_classifier()
    torch.manual_seed(77)
    resumed = finetune(
        second, loader(), epochs=4, val_loader=held_out, checkpoint=tmp_path / "state", resume=True, progress=False
    )
    assert same_weights(second, straight)
    assert without_times(resumed.history) == without_times(whole.history)
    assert state_files(tmp_path / "state") == ["state-0004", "training"]


def test_resume_of_a_finished_training_gives_its_model_and_history(tmp_path: Path) -> None:
    model = dropout_classifier()
    done = train(model, epochs=2, checkpoint=tmp_path / "s")
    again = train(dropout_classifier(), epochs=2, checkpoint=tmp_path / "s", resume=True)
    assert again.history == done.history and same_weights(again.model, model)


def test_resume_with_nothing_there_warns_and_starts(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing to resume"):
        result = train(dropout_classifier(), epochs=1, checkpoint=tmp_path / "s", resume=True)
    assert len(result.history) == 1


@pytest.mark.parametrize("damage", ["truncated", "edited", "version", "json", "gone"])
def test_damaged_state_is_refused_and_model_unchanged(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "s"
    train(dropout_classifier(), epochs=1, checkpoint=folder)
    tensors, index = next(folder.glob("state-0001-*.safetensors")), folder / "training.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "edited":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "version":
        index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
    elif damage == "json":
        index.write_text(index.read_text()[:-10])
    else:
        tensors.unlink()
    model = dropout_classifier()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match=str(folder)):
        train(model, epochs=1, checkpoint=folder, resume=True)
    assert same_weights(model, before)


def test_state_of_another_training_or_model_is_refused(tmp_path: Path) -> None:
    train(dropout_classifier(), epochs=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"lr was 0.02 and is 0.5; seed was 0 and is 1"):
        train(dropout_classifier(), epochs=1, lr=0.5, seed=1, checkpoint=tmp_path, resume=True)
    narrow = dropout_classifier()
    narrow[5] = nn.Linear(288, 4)
    with pytest.raises(CheckpointError, match="for another model"):
        train(narrow, epochs=1, checkpoint=tmp_path, resume=True)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    model = dropout_classifier()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match="left alone"):
        train(model, epochs=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        train(model, epochs=1, checkpoint=tmp_path / "thesis.tex")
    assert same_weights(model, before) and [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_state_that_could_not_be_read_is_not_written_and_the_old_one_stays(tmp_path: Path) -> None:
    """A training resumes after the last row of its history, so a state with fewer rows than epochs cannot be."""
    model = nn.Linear(2, 2)
    train_epoch = asdict(Epoch(1, 0.5, {"accuracy": 0.5}, None, 0.1, 8, 1.0))

    def state(history: list[dict[str, Any]]) -> TrainingState:
        return TrainingState(1, {"lr": 0.1}, history, 1.0, "epochs", None, dict(model.state_dict()), {}, {}, {})

    write_state(tmp_path, state([train_epoch]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for wrong in ([], [train_epoch] * 2, [{**train_epoch, "epoch": 2}]):
        with pytest.raises(CheckpointError, match="rows of history that are not those of 1 epoch"):
            write_state(tmp_path, state(wrong))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_state(tmp_path, {"lr": 0.1}, model).history == [train_epoch]
