"""Checks of arguments: a file that cannot be written is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fec_fast.utils.arguments import check_file_to_write
from fec_fast.utils.errors import InputError


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_device_or_a_pipe_is_no_file_to_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", os.devnull):
        with pytest.raises(InputError, match="report=.*that is a device or a pipe"):
            check_file_to_write("report", name)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_file_to_write("report", tmp_path / "a.html") == tmp_path / "a.html"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="files cannot be made"):
        check_file_to_write("report", tmp_path / "a.html")
