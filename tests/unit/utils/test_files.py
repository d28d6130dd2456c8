"""Atomic writes: what was there before survives every error, and no temporary file is left."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fec_fast.utils import files
from fec_fast.utils.files import atomic_file, atomic_folder, is_scratch, sha256, write_text
from helpers.folders import umask


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path and target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert os.listdir(tmp_path) == ["table.csv"]


def test_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(OSError, match="No space"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout, /dev/null and /dev/full are no files
    for name in ("pipe", "link"):
        if name == "link":
            (tmp_path / name).symlink_to("pipe")
        with pytest.raises(FileExistsError, match="not replaced"):
            write_text(tmp_path / name, "text")
        assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    link, file = tmp_path / "latest.json", tmp_path / "volume" / "own.json"
    link.symlink_to(file)  # to no file yet
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink() and file.read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["latest.json", "volume"] and os.listdir(file.parent) == ["own.json"]


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "page.md", "3 × 3\n")
    assert (tmp_path / "page.md").read_bytes() == "3 × 3\n".encode()


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "deep" / "saved"
    for generation in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / generation).write_text(generation)
            (temporary / "part").mkdir()
            (temporary / "part" / "inner").write_text(generation)
        assert sorted(os.listdir(target)) == sorted([generation, "part"])
        assert (target / "part" / "inner").read_text() == generation
    assert target.stat().st_mode & 0o777 == 0o777 & ~umask()
    assert os.listdir(target.parent) == ["saved"]


def test_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ValueError, match="damaged"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
        raise ValueError("damaged")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["saved"]


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def abandoned(folder: Path) -> Path:
    """A scratch folder of a process that was killed while it wrote."""
    kill = (
        "import os, pathlib, sys\n"
        "from fec_fast.utils.files import atomic_file\n"
        "with atomic_file(pathlib.Path(sys.argv[1]) / 'table.csv') as file:\n"
        "    file.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", kill, str(folder)], check=False)
    (left,) = [path for path in folder.iterdir() if is_scratch(path)]
    return left


def test_the_scratch_of_a_killed_run_is_removed_by_the_next_write(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    with atomic_folder(tmp_path / "other") as temporary:
        assert not left.exists()
        with atomic_file(tmp_path / "table.csv") as file:  # the folder that is being written is not taken for abandoned
            file.write_text("whole")
        (temporary / "new").write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["other", "table.csv"]


def test_the_users_own_files_are_not_taken_for_scratch(tmp_path: Path) -> None:
    (tmp_path / ".notes.fec-scratch").write_text("a file")
    (tmp_path / "run.fec-scratch").mkdir()
    (tmp_path / ".link.fec-scratch").symlink_to(tmp_path / "run.fec-scratch")
    write_text(tmp_path / "page.md", "x")
    assert len(os.listdir(tmp_path)) == 4


def test_writing_threads_do_not_remove_each_others_scratch(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            write_text(tmp_path / f"{number % 3}.txt", "x" * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert sorted(os.listdir(tmp_path)) == ["0.txt", "1.txt", "2.txt"]
    assert {(tmp_path / name).stat().st_size for name in os.listdir(tmp_path)} == {1000}
