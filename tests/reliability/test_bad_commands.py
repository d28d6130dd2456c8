"""Bad input on the command line: exit code 2 and one line, whatever the option."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fec_fast.cli import app as cli

MODEL = "zoo:vgg-digits"
NAMES = ["", "zoo:", "zoo:nothing", "torchvision:nothing", "nothing", "a.py:f", "a b.py:f", "3", "x" * 5000]
FILES = ["nowhere", "", ".", "folder", "text.txt", "x" * 5000]
NUMBERS = ["nan", "inf", "-1", "x", "", "1e999", "9" * 400, "0"]
WORDS = ["", "nothing", "3", "x" * 5000]
OPTIONS: dict[str, list[str]] = {
    "--ratio": [*NUMBERS[:-1], "1"],
    "--budget": ["", "params", "params=", "params=x", "params=nan", "size=0.5", "params=0.5=0.5", "params=2"],
    "--remove": ["", "params", "params=", "params=x", "params=nan", "macs=1.2G", "latency=3ms", "filters=1"],
    "--keep": [
        "",
        "params",
        "params=",
        "params=x",
        "params=nan",
        "macs=1.2X",
        "latency=3",
        "latency=3ms@onnx",
        "filters=1",
    ],
    "--ratios": WORDS,
    "--calibrate": [
        "",
        "nothing",
        "imagefolder:nowhere",
        "voc:nowhere",
        "coco:nowhere",
        "yolo:nowhere",
        "hf:nowhere",
        "sklearn:nothing",
        "a.py:f",
    ],
    "--images": NUMBERS,
    "--min-channels": NUMBERS,
    "--round-to": NUMBERS,
    "--criterion": WORDS,
    "--sides": WORDS,
    "--norms": WORDS,
    "--input-shape": ["", "x", "1,1", "0,1,8,8", "-1,1,8,8", "1,1,8,8,8,8", "1;1;8;8", "9" * 400],
    "--ignore": ["nothing", "x" * 5000],
    "--weights": FILES,
    "--nothing": ["1"],
}
SETTINGS = ["", "=", "a", "a=1", "finetune=[", "finetune.lr=nan", "finetune.epochs=0", "model=3", "data.name=&a 1"]
CALLS = [
    [],
    ["nothing"],
    *(["score", name] for name in NAMES),
    *(["score", MODEL, "--weights", file] for file in FILES),
    *(["score", MODEL, *pair] for pair in itertools.product(("--compress", "--axis", "--entropy"), WORDS)),
    *(["prune", name, "--out", "out"] for name in NAMES),
    *(["prune", MODEL, "--out", "out", option, value] for option, values in OPTIONS.items() for value in values),
    *(["prune", MODEL, "--out", file] for file in ("text.txt", "folder")),
    *(["explain", file, "--layer", "a"] for file in FILES),
    *(["run", file, "--out", "out"] for file in FILES),
    *(["run", "recipe.yaml", "--out", "out", "--set", text] for text in SETTINGS),
    *(["finetune", file, "--model", MODEL, "--out", "out"] for file in FILES),
]  # fmt: skip


def test_there_are_many_calls() -> None:
    assert len(CALLS) > 100


@pytest.mark.slow
def test_bad_commands_end_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/own.txt").write_text("own")
    Path("text.txt").write_text("{}")
    Path("recipe.yaml").write_text(f"model: {MODEL}\ndata: {{name: 'sklearn:digits'}}\nfinetune: {{epochs: 1}}\n")
    before, wrong = sorted(os.listdir()), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in CALLS:
            result = CliRunner().invoke(cli.app, call)
            shown = " ".join(call)[:120]
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                wrong.append(f"{shown}: {type(result.exception).__name__}: {result.exception}")
            elif result.exit_code != 2:
                wrong.append(f"{shown}: exit code {result.exit_code}")
            elif sorted(os.listdir()) != before:
                wrong.append(f"{shown}: left {sorted(set(os.listdir()) - set(before))}")
                before = sorted(os.listdir())
    assert not wrong, "\n".join(wrong)
