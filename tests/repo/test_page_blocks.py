"""Every Python block of every page runs and prints what the page shows; the programs take the commands of the pages."""

from __future__ import annotations

import importlib.util
import re
import shlex
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
import typer

from fec_fast.cli.app import app
from helpers.page_stand_ins import StandIn, blood_cells, own_boxes, trained_resnet
from helpers.pages import PAGES, ROOT, blocks, commands, name_of


class Needs(NamedTuple):
    """What the blocks of a page need: optional packages, time, and stand-ins for what the reader has."""

    packages: tuple[str, ...] = ()
    slow: bool = False
    stand_in: StandIn | None = None


_TRAINING = ("accelerate", "torchmetrics", "sklearn")
_DETECTION = ("torchvision", "PIL", "defusedxml", "pycocotools", "accelerate", "matplotlib")
NEEDS = {
    "README.md": Needs(("torchvision", "accelerate", "torchmetrics", "matplotlib"), True, trained_resnet),
    "docs/budgets.md": Needs(("torchvision",), True),
    "docs/coming-from.md": Needs(("torchvision", "torch_pruning")),
    "docs/index.md": Needs((*_TRAINING, "matplotlib"), True),
    "docs/tutorials/classifier.md": Needs((*_TRAINING, "matplotlib"), True),
    "docs/tutorials/detector.md": Needs(_DETECTION, True, own_boxes),
    "docs/tutorials/during-training.md": Needs(_TRAINING, True),
    "docs/tutorials/onnx.md": Needs(("onnxscript", "onnxruntime"), True),
    "docs/tutorials/without-labels.md": Needs(_TRAINING, True),
    "docs/choosing.md": Needs((*_TRAINING, "matplotlib"), True),
    "docs/couplings.md": Needs(("torchvision", "torch_pruning", "onnxscript", "onnxruntime"), True),
    "docs/finetuning.md": Needs((*_TRAINING, "torchvision"), True),
    "docs/report.md": Needs(("matplotlib",)),
    "docs/scale.md": Needs(("torchvision",)),
    "docs/ssd.md": Needs(_DETECTION, True, blood_cells),
}
WITH_PYTHON = [page for page in PAGES if any(block.language in ("python", "py") for block in blocks(page))]
NOT_RUN = {
    "docs/budgets.md": 1,  # milliseconds of another machine
    "docs/gpu.md": 1,  # needs a GPU
}


def run_blocks(page: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> int:
    """Runs the Python blocks of a page in one namespace; returns how many.

    A block without a language that follows one of Python is what that prints, shortened.
    """
    ran, printed, before = 0, "", ""
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            # Empty lines before the block make the line numbers of a failure those of the page.
            exec(compile("\n" * (block.line - 1) + block.source, str(page), "exec"), namespace)
            ran, printed = ran + 1, capsys.readouterr().out
        elif not block.language and before == "python":
            missing = [row for row in block.source.splitlines() if row != "..." and row not in printed.splitlines()]
            assert not missing, f"{name_of(page)}, line {block.line}: not printed: {missing}"
        before = block.language
    return ran


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if NEEDS.get(name_of(page), Needs()).slow else [], id=name_of(page))
        for page in WITH_PYTHON
    ],
)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = NEEDS.get(name_of(page), Needs())
    for package in needs.packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if needs.stand_in is not None:
            needs.stand_in(namespace, tmp_path, monkeypatch)
        ran = run_blocks(page, namespace, capsys)
    assert ran == sum(block.language == "python" and block.reason is None for block in blocks(page))


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


@pytest.mark.parametrize("words", PROGRAM)
def test_the_command_line_takes_the_commands_of_the_pages(words: list[str]) -> None:
    """Commands, options and the numbers of arguments are those of the program; files need not exist."""
    program: Any = typer.main.get_command(app)
    with click.Context(program, info_name="fec-fast") as context:
        while isinstance(program, click.Group):
            while words and words[0].startswith("-"):
                option, words = words[0], words[1:]
                assert any(option in parameter.opts for parameter in program.params), option
            if not words:
                return
            name, program, words = program.resolve_command(context, list(words))
            assert program is not None, name
        program.make_parser(context).parse_args(list(words))  # an unknown option raises click.UsageError


def test_there_are_commands_in_the_pages() -> None:
    assert len(PROGRAM) > 25 and len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES)
def test_the_benchmarks_of_the_pages_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None and (ROOT / "benchmarks").is_dir()
