"""Parts of ``benchmarks.trained``: the teacher that is asked once, and what the page says of the rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.trained import page
from benchmarks.trained.rows import DENSE, RECOVERED, ROWS, SMALLER, WHOLE, keys
from benchmarks.trained.teacher import RememberingTeacher


class _Counted(nn.Module):
    """A small classifier that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(12, 4), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(images.flatten(1))


@pytest.fixture
def network() -> _Counted:
    torch.manual_seed(0)
    return _Counted()


def test_a_batch_is_answered_as_by_the_network_and_asked_once(network: _Counted, tmp_path: Path) -> None:
    teacher, images = RememberingTeacher(copy.deepcopy(network), tmp_path / "answers.pt"), torch.randn(5, 3, 2, 2)
    for _ in range(3):
        assert torch.equal(teacher(images.clone()), network(images))
    assert teacher.network.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda images: images.flip(0), id="order"),
        pytest.param(lambda images: images.nextafter(torch.tensor(9.0)), id="last bit"),
        pytest.param(lambda images: images[:4], id="fewer images"),
        pytest.param(lambda images: images.reshape(5, 3, 4, 1), id="shape"),
    ],
)
def test_another_batch_is_asked_for(network: _Counted, tmp_path: Path, change: object) -> None:
    assert callable(change)
    teacher, images = RememberingTeacher(copy.deepcopy(network), tmp_path / "answers.pt"), torch.randn(5, 3, 2, 2)
    teacher(images)
    other = change(images)
    assert torch.equal(teacher(other), network(other))
    assert teacher.network.calls == 2


def test_answers_in_another_precision_are_asked_for(network: _Counted, tmp_path: Path) -> None:
    teacher, images = RememberingTeacher(copy.deepcopy(network), tmp_path / "answers.pt"), torch.randn(5, 3, 2, 2)
    full = teacher(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = teacher(images)
    assert (full.dtype, half.dtype, teacher.network.calls) == (torch.float32, torch.bfloat16, 2)


def test_the_file_answers_in_the_next_run(network: _Counted, tmp_path: Path) -> None:
    file, images = tmp_path / "answers.pt", torch.randn(5, 3, 2, 2)
    first = RememberingTeacher(copy.deepcopy(network), file)
    wanted = first(images)
    assert not file.exists()
    first.save()
    second = RememberingTeacher(copy.deepcopy(network), file)
    assert torch.equal(second(images), wanted)
    assert second.network.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["answers.pt"]


_VGG, _RESNET34 = "VGG-16, -94 % of parameters", "ResNet-34, -70 % of parameters"


def _row(name: str, training: str, seed: int, precision: str, right: str = "ff") -> dict[str, Any]:
    start = RECOVERED if name in ROWS else DENSE
    values = {"images": 8, "right": right, "accuracy": 12.5 * int(right, 16).bit_count(), "before": 50.0}
    return {"key": [name, start, training, seed], "precision": precision, **values}


def test_the_page_names_the_seeds_that_were_trained_in_bfloat16() -> None:
    rows = [_row(name, WHOLE, seed, "bf16" if seed else "no") for name in ("vgg16", _VGG) for seed in range(3)]
    assert page.precisions({"rows": rows}, WHOLE) == (
        f"Trained in bfloat16: {_VGG} (seed 1, 2); the others in float32."
    )
    rows[0]["precision"] = "bf16"
    text = page.precisions({"rows": rows}, WHOLE)
    assert text.endswith(f"One network of the two in bfloat16: {_VGG} (seed 0).")


def test_a_row_with_its_own_training_is_in_the_first_table_alone() -> None:
    rows = [_row("resnet34", SMALLER, 0, "bf16"), _row(_RESNET34, SMALLER, 0, "bf16", "7f")]
    first = page.table_of_rows({"rows": rows}, WHOLE)
    assert _RESNET34 in first and "87.5" in first and "at most 0.3 behind: missed" in first
    planned = list(keys(list(ROWS), 1))
    assert [key[2] for key in planned if key[0] in ("resnet34", _RESNET34)] == [SMALLER, SMALLER]
