"""Full disks, and folders that are gone or may not be written to: an error, and what was there is whole."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.training import state
from fec_fast.utils.files import atomic_file, atomic_folder, write_text
from helpers.folders import contents
from helpers.kills import in_child
from helpers.training import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * 36, 3)).eval()


@pytest.fixture(scope="module")
def result() -> fec_fast.PruneResult:
    return fec_fast.prune(network(), IMAGES, ratio=0.5, recover=None)


@pytest.fixture
def public(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that every user may enter, unlike that of a test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def measure(cache: Path) -> None:
    fec_fast.measure_sensitivity(network(), IMAGES, calibration=lambda model: 0.5, cache=cache, progress=False)


def save(folder: Path, result: fec_fast.PruneResult) -> None:
    fec_fast.save(result, folder)


def training(folder: Path, epochs: int) -> None:
    train(network(), epochs=epochs, checkpoint=folder, resume=epochs > 1)


# What is written, by name; the first function writes what is there before, the second one replaces it.
WRITERS: dict[str, tuple[Callable[[Path, Any], Any], Callable[[Path, Any], Any]]] = {
    "save": (
        lambda folder, result: fec_fast.save(result, folder),
        lambda folder, result: fec_fast.save(result, folder),
    ),
    "training state": (lambda folder, result: training(folder, 1), lambda folder, result: write_state(folder)),
    "sensitivity cache": (lambda folder, result: folder.mkdir(), lambda folder, result: measure(folder)),
    "text": (
        lambda folder, result: (folder.mkdir(), write_text(folder / "page.md", "old")),
        lambda folder, result: write_text(folder / "page.md", "x" * 400_000),
    ),
}


def write_state(folder: Path) -> None:
    tensors = {"weight": torch.zeros(100_000)}
    state.write_state(folder, state.TrainingState(0, {}, [], 1.0, "epochs", None, tensors, {}, {}, {}))


def expect_error(work: Callable[[], Any]) -> Callable[[], None]:
    """Makes a function for a child process that fails unless work raises a documented error."""

    def run() -> None:
        with pytest.raises((fec_fast.FecError, OSError)):
            work()

    return run


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name: str, result: fec_fast.PruneResult, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    WRITERS[name][0](folder, result)
    before = contents(folder)
    bytes_left = 20 if name == "sensitivity cache" else 50_000

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is an error then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
        WRITERS[name][1](folder, result)

    assert in_child(expect_error(write)) == 0
    after = contents(folder)
    if name == "sensitivity cache":
        (file,) = folder.iterdir()
        assert len(file.read_bytes()) <= bytes_left
        measure(folder)  # and the torn line is measured again
    else:
        assert after == before and os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("name", WRITERS)
def test_permission_denied(name: str, result: fec_fast.PruneResult, public: Path) -> None:
    folder = public / "folder"
    WRITERS[name][0](folder, result)
    before = contents(folder)

    def write() -> None:
        os.setgid(65534)
        os.setuid(65534)
        WRITERS[name][1](folder, result)

    assert in_child(expect_error(write)) == 0
    assert contents(folder) == before and os.listdir(public) == ["folder"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_where_nothing_can_be_made(name: str, result: fec_fast.PruneResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "folder", Path("/proc/fec_fast/folder"), tmp_path / ("x" * 300)):
        with pytest.raises((fec_fast.FecError, OSError)):
            WRITERS[name][1](place, result)
    assert contents(tmp_path) == {"file": b"in the way"}


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_a_folder_that_is_removed_meanwhile(kind: Any, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(FileNotFoundError), kind(place / "target") as temporary:
        shutil.rmtree(place)
        temporary.write_text("x")
    assert not place.exists()


def test_a_training_whose_disk_is_full_keeps_the_state_before(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    training(folder, 1)
    before = contents(folder)

    def go_on() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        model = network()
        own = copy.copy(vars(model))
        try:
            train(model, epochs=1, checkpoint=folder)
        finally:
            assert vars(model) == own

    assert in_child(expect_error(go_on)) == 0
    assert contents(folder) == before
