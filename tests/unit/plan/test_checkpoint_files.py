"""Folders that a checkpoint cannot replace are refused before the work, and are left as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fec_fast.plan.checkpoint import check_destination
from fec_fast.utils.errors import CheckpointError


def test_the_working_folder_and_those_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "around" / "own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "around" / "own")  # replaced, it would be gone for the shell that is in there
    for folder in (".", "", "..", tmp_path / "around" / "own"):
        with pytest.raises(CheckpointError, match="the working folder"):
            check_destination(folder)
    assert check_destination("new") == tmp_path / "around" / "own" / "new"
    assert check_destination("../other") == tmp_path / "around" / "other"


def test_a_mounted_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()  # as a volume of a container: rename(2) refuses it, after all the work
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a mounted file system.*such as .*out/pruned"):
        check_destination(tmp_path / "out")
    assert check_destination(tmp_path / "out" / "pruned") == tmp_path / "out" / "pruned"


def test_a_link_names_the_folder_to_give(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(CheckpointError, match="symbolic link; give the folder .*/folder itself"):
        check_destination(tmp_path / "link")


def test_a_folder_in_which_nothing_may_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="files cannot be made"):
        check_destination(tmp_path / "missing" / "out")
