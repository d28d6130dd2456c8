"""The progress bar: a bar in a terminal, a line now and then in a file."""

from __future__ import annotations

import pytest

from fec_fast.utils import progress


def test_a_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 8))  # seconds: eight between two looks at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.progress_bar("networks", 20, shown=True) as done:
        for _ in range(20):
            done()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "networks: 20 of 20" and 2 <= len(lines) <= 7
    assert all(line.startswith("networks: ") for line in lines)


def test_nothing_is_shown_if_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("networks", 2, shown=False) as done:
        done()
        done()
    assert capsys.readouterr().err == ""


def test_a_quiet_call_of_the_program_hides_bars_until_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.quiet_until_end():
        progress.be_quiet()
        with progress.progress_bar("hidden", 1, shown=True) as done:
            done()
    progress.be_quiet()  # outside a call of the program
    with progress.progress_bar("shown", 1, shown=True) as done:
        done()
    assert capsys.readouterr().err == "shown: 1 of 1\n"


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_bar("networks", 2, shown=True) as done:
        done()
        done()
    assert "2/2" in capsys.readouterr().err
