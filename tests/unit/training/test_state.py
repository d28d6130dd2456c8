"""States of a training: resumed to the same bits, and refused where they do not fit."""

import copy
import json
import math
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from fec_fast.training.finetuning import finetune
from fec_fast.training.history import Epoch
from fec_fast.training.state import TrainingState, read_state, write_state
from fec_fast.utils.errors import CheckpointError, FecWarning
from helpers.comparison import same_weights
from helpers.states import assert_same_state, state
from helpers.training import InterruptedLoader, dot_images, dot_loader, dropout_classifier, train, without_times


def state_files(folder: Path) -> list[str]:
    """The files of a training state, without the random part of their names."""
    return sorted(re.sub(r"(-[0-9a-f]{16})?\.\w+$", "", path.name) for path in folder.iterdir())


class Shuffled:
    """A batch sampler as users write it, with a random generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(2)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        return iter(torch.randperm(48, generator=self.generator).view(3, 16).tolist())


@pytest.mark.parametrize("own_generator", ["none", "loader", "batch sampler"])
@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_resume_gives_the_same_bits(tmp_path: Path, own_generator: str, interrupted_after: int) -> None:
    def loader() -> DataLoader[Any]:
        if own_generator == "batch sampler":
            return DataLoader(dot_images(), batch_sampler=Shuffled())
        return dot_loader(generator=torch.Generator().manual_seed(2) if own_generator == "loader" else None)

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


class Counting(nn.Sequential):
    """A network whose state dict has something that is no tensor."""

    extra: Any = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training and isinstance(self.extra, int):
            self.extra += 1
        return super().forward(images)

    def get_extra_state(self) -> Any:
        return {"batches": [self.extra], "version": "1", "none": None}

    def set_extra_state(self, extra: Any) -> None:
        (self.extra,) = extra["batches"]


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}, {"patience": 5}])
def test_extra_states_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    held_out = dot_loader(shuffle=False)

    def network() -> nn.Sequential:
        return nn.Sequential(Counting(*dropout_classifier()))

    whole = train(network(), epochs=3, val_loader=held_out, **options)
    interrupted = {"val_loader": InterruptedLoader(held_out, 1), **options}
    with pytest.raises(KeyboardInterrupt):
        train(network(), epochs=3, checkpoint=tmp_path / "s", **interrupted)
    resumed = train(network(), epochs=3, val_loader=held_out, checkpoint=tmp_path / "s", resume=True, **options)
    assert same_weights(nn.Sequential(*resumed.model[0]), nn.Sequential(*whole.model[0]))
    assert resumed.model[0].extra == whole.model[0].extra == 3 * (resumed.best_epoch or 3)


@pytest.mark.parametrize("extra", [{1, 2}, torch.ones(1), math.nan, (1, 2), object()])
def test_an_extra_state_that_cannot_be_stored_is_refused_before_the_first_step(tmp_path: Path, extra: Any) -> None:
    model = nn.Sequential(Counting(*dropout_classifier()))
    model[0].extra = extra
    before = state(model[0][0])
    with pytest.raises(CheckpointError, match="layer '0': get_extra_state returns a dict .* or train without"):
        train(model, checkpoint=tmp_path / "s")
    assert_same_state(model[0][0], before)
    assert not (tmp_path / "s").exists()
    train(model, epochs=1)


def test_steps_of_a_parameter_without_dimensions_stay_counted(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3] * self.scale

    loader, held_out = [*dot_loader()] * 100, dot_loader(shuffle=False)  # bfloat16 counts to 256
    options = {"optimizer": "adamw", "lr": 0.05, "epochs": 2, "loader": loader}
    whole = train(Scaled(), val_loader=held_out, **options)
    with pytest.raises(KeyboardInterrupt):
        train(Scaled(), val_loader=InterruptedLoader(held_out, 1), checkpoint=tmp_path / "s", **options)
    index = json.loads((tmp_path / "s" / "training.json").read_text())
    resumed = train(Scaled(), val_loader=held_out, checkpoint=tmp_path / "s", resume=True, **options)
    again = read_state(tmp_path / "s", index["settings"], resumed.model)
    assert same_weights(resumed.model, whole.model)
    assert again.optimizer["step/scale"].dtype == torch.float32 and again.optimizer["step/scale"] == 600


class Noisy(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = dot_images()[index]
        return image + self.generator.random(), label


@pytest.mark.parametrize(
    ("generator", "kind"),
    [(np.random.default_rng(3), "numpy's Generator"), (random.Random(3), "random's Random")],
)
def test_generators_that_do_not_resume_are_reported(tmp_path: Path, generator: Any, kind: str) -> None:
    loader = DataLoader(Subset(Noisy(generator), range(40)), batch_size=20)
    with pytest.warns(FecWarning, match=rf"train_loader .* generator of Noisy \({kind}\), which is neither seeded"):
        train(dropout_classifier(), loader=loader, epochs=1, checkpoint=tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FecWarning)
        train(dropout_classifier(), loader=loader, epochs=1)  # no state to resume from
        with_seed = dot_loader(generator=torch.Generator().manual_seed(2))  # seeded in every epoch
        train(dropout_classifier(), loader=with_seed, epochs=1, checkpoint=tmp_path / "t")
