"""Every Python block of the tutorials runs and prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.page_runs import WITH_PYTHON, assert_page_runs, parameters
from helpers.pages import DOCS


@pytest.mark.parametrize("page", parameters([page for page in WITH_PYTHON if page.parent == DOCS / "tutorials"]))
def test_the_blocks_of_a_tutorial_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_page_runs(page, tmp_path, monkeypatch, capsys)
