"""Every Python block of every page runs and prints what the page shows; the programs take the commands of the pages."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from fec_fast.cli.app import app
from helpers.page_runs import NEEDS, WITH_PYTHON, assert_page_runs, parameters
from helpers.pages import DOCS, PAGES, ROOT, blocks, commands, name_of

TUTORIALS = DOCS / "tutorials"  # test_tutorial_blocks.py runs them: another process, where there are several
NOT_RUN = {
    "docs/budgets.md": 1,  # milliseconds of another machine
    "docs/latency.md": 1,  # likewise
    "docs/gpu.md": 1,  # needs a GPU
    "docs/int8.md": 1,  # needs an environment variable; tests/unit/deployment/test_pt2e.py does the same
    "docs/yolo.md": 2,  # resumes an interrupted training; needs many epochs
}


@pytest.mark.parametrize("page", parameters([page for page in WITH_PYTHON if page.parent != TUTORIALS]))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_page_runs(page, tmp_path, monkeypatch, capsys)


def test_few_blocks_are_not_run_and_say_why() -> None:
    python = [(name_of(page), block) for page in PAGES for block in blocks(page) if block.language.startswith("py")]
    assert {block.language for _, block in python} == {"python"}
    left_out = [(name, block) for name, block in python if block.reason is not None]
    assert {name: sum(name == other for other, _ in left_out) for name, _ in left_out} == NOT_RUN
    assert all(len(block.reason or "") > 10 for _, block in left_out)
    assert len(python) > 50


def test_pages_that_need_something_have_python() -> None:
    assert set(NEEDS) <= {name_of(page) for page in WITH_PYTHON}


def words_of(command: str) -> list[str]:
    """The words of a shell command without its comment, and without what stands for one of the reader's own."""
    return shlex.split(command, comments=True)


COMMANDS = [(page, line, command) for page in PAGES for line, command in commands(page)]
PROGRAM = [
    pytest.param(words_of(match[1]), id=f"{name_of(page)}:{line}")
    for page, line, command in COMMANDS
    for part in command.split("&&")
    if (
        match := re.match(r"(?:\S*/)?(?:accelerate launch .*-m fec_fast|(?:\.venv/bin/)?fec-fast)\s+(.*)", part.strip())
    )
]
MODULES = sorted({name for _, _, command in COMMANDS for name in re.findall(r"-m (benchmarks[\w.]*)", command)})


def parse(words: list[str]) -> None:
    """Parses a command as the program does, and runs nothing; raises a usage error."""
    command: Any = typer.main.get_command(app)
    context, left, name = None, list(words), "fec-fast"
    while True:
        context = command.make_context(name, left, parent=context)
        left = [*getattr(context, "_protected_args", []), *context.args]
        if not left or not hasattr(command, "resolve_command"):
            return
        name, command, left = command.resolve_command(context, left)


@pytest.mark.parametrize("words", PROGRAM)
def test_the_command_line_takes_the_commands_of_the_pages(words: list[str]) -> None:
    """Commands, options, their types and the numbers of arguments are those of the program; files need not exist."""
    parse(words)


@pytest.mark.parametrize("words", ["prune", "prune a b", "prun zoo:vgg-digits", "prune a --bogus 1", "export onnx a"])
def test_a_wrong_command_is_seen(words: str) -> None:
    with pytest.raises(Exception, match="(?i)missing|unexpected|no such"):
        parse(words.split())


def test_there_are_commands_in_the_pages() -> None:
    assert len(PROGRAM) > 25 and len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES)
def test_the_benchmarks_of_the_pages_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None and (ROOT / "benchmarks").is_dir()
