"""The paths of one call: no result takes the place of another file that the call names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fec_fast.cli import app as cli
from fec_fast.cli.written_paths import check_apart
from fec_fast.utils.errors import InputError

DIGITS = "zoo:vgg-digits"


def paths(**values: str) -> dict[tuple[str, str], Path]:
    return {(name, f"--{name} {value}"): Path(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("onnx", {"out": "a.onnx", "json": "a.onnx"}),
        ("demo", {"report": "a", "json": "./a"}),
        ("score", {"weights": "w.pth", "json": "w.pth"}),
        ("finetune", {"out": "a", "state": "a"}),
        ("finetune", {"out": "a", "log": "a/log"}),
        ("sweep", {"out": "a", "results": "a/b/c"}),
        ("prune", {"out": "a", "json": "a/a.json"}),
    ],
)
def test_paths_in_each_other_s_place_are_refused(command: str, values: dict[str, str]) -> None:
    with pytest.raises(InputError, match="give another name|outside of it"):
        check_apart(command, paths(**values))


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("finetune", {"out": "a", "checkpoint_folder": "a"}),  # with --force
        ("finetune", {"out": "a", "state": "b", "log": "b"}),
        ("run", {"out": "a", "json": "a/a.json"}),
        ("report", {"out": "a.html", "result": "a"}),
        ("prune", {"out": "ab", "json": "a"}),
    ],
)
def test_other_paths_are_not(command: str, values: dict[str, str]) -> None:
    check_apart(command, paths(**values))


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match="is the same"):
        check_apart("onnx", paths(out=str(tmp_path / "file"), json=str(tmp_path / "link")))


def test_the_program_refuses_before_the_work(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"own")
    (tmp_path / "folder").mkdir()
    for call, words in (
        (["score", DIGITS, "--weights", weights, "--json", weights], "is the same"),
        (["export", "onnx", DIGITS, "nowhere", "--out", "a.onnx", "--json", "a.onnx"], "is the same"),
        (["finetune", DIGITS, "--checkpoint", "nowhere", "--out", "b", "--state", "b/s"], "outside of it"),
        (["load-check", "nowhere", "--json", tmp_path / "folder"], "that is a folder"),
        (["export", "onnx", DIGITS, "nowhere", "--force", "--out", tmp_path / "folder"], "that is a folder"),
    ):
        done = CliRunner().invoke(cli.app, [str(argument) for argument in call])
        assert done.exit_code == 2 and words in done.stderr, done.output
    assert weights.read_bytes() == b"own" and sorted(os.listdir(tmp_path)) == ["folder", "weights.pth"]
