"""Standard streams: what was computed is written, although nobody reads what is printed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

import pytest
import torch
from rich.console import Console

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.cli.streams import LastingStream, lasting_streams
from fec_fast.vision import zoo
from helpers.optional import skip_without

DIGITS = "zoo:vgg-digits"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = fec_fast.prune(zoo.build(DIGITS).eval(), example, remove=0.5, recover=None)
    return fec_fast.save(result, tmp_path_factory.mktemp("pruned") / "checkpoint")


def without_reader() -> TextIO:
    """A standard output whose reader has left, as that of ``fec-fast ... | head -0``."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def exit_code(monkeypatch: pytest.MonkeyPatch, output: TextIO | None, *arguments: str | Path) -> int:
    """Runs the program with this standard output."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "stdout", output)
        cli.app([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("open_output", [without_reader, lambda: None], ids=["left", "none"])
def test_a_reader_that_leaves_ends_no_command(
    open_output: object,
    pruned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(open_output)
    output = open_output()
    call = (
        "prune",
        DIGITS,
        "--remove",
        "params=0.3",
        "--calibrate",
        "none",
        "--criterion",
        "l1",
        "--ratios",
        "uniform",
    )
    code = exit_code(monkeypatch, output, *call, "--out", tmp_path / "out", "--json", tmp_path / "a.json")
    assert code == 0 and "error" not in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["checkpoint"] == str(tmp_path / "out")
    assert fec_fast.load(zoo.build(DIGITS), tmp_path / "out") is not None
    if output is not None:
        output.close()  # and nothing is left in its buffer, which Python would report at its end


@pytest.mark.slow
def test_a_training_whose_reader_leaves_is_saved(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("accelerate", "torchmetrics", "sklearn", "yaml", "jsonschema")
    call = ("finetune", DIGITS, "--checkpoint", pruned, "--data", "sklearn:digits", "--epochs", "1")
    assert exit_code(monkeypatch, without_reader(), *call, "--out", tmp_path / "tuned") == 0
    fec_fast.load(zoo.build(DIGITS), tmp_path / "tuned")


def test_json_that_nobody_reads_is_an_error(
    pruned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, without_reader(), "load-check", pruned, "--json", "-") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the standard output was not written" in line


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_is_an_error_after_the_work(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as output:
        code = exit_code(monkeypatch, output, "load-check", pruned, "--json", tmp_path / "a.json")
    assert code == 2 and "No space left" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["folder"] == str(pruned)


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "日本"), ("ascii", "é"), ("utf-8", os.fsdecode(b"\xff"))])
def test_names_that_the_encoding_lacks_are_escaped(
    encoding: str, name: str, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    shutil.copytree(pruned, folder)
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    assert exit_code(monkeypatch, output, "load-check", folder) == 0
    output.seek(0)
    assert name.encode(encoding, "backslashreplace").decode(encoding) in output.read()


def test_rich_prints_on_although_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", without_reader())
    with lasting_streams() as output:
        for _ in range(3):
            Console().print("a stage of a recipe")  # by itself rich ends the program here
        assert isinstance(output.failure, BrokenPipeError)
        with pytest.raises(OSError, match="not written"):
            output.check()


def test_a_stream_that_works_is_unchanged() -> None:
    inner = io.StringIO()
    stream = LastingStream(inner)
    assert stream.write("text") == 4 and not stream.isatty()
    stream.check()
    assert inner.getvalue() == "text" and stream.failure is None
