"""Atomic writes: what was there before survives every error, and no temporary file is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fec_fast.utils import files
from fec_fast.utils.files import atomic_file, atomic_folder, sha256, umask, write_text


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and target.read_text() == "old"
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
