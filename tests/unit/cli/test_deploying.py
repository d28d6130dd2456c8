"""The commands export and load-check: files that were compared before they appear, and folders that others can use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fec_fast
from fec_fast.cli.app import app
from fec_fast.utils import onnx_files
from fec_fast.vision import zoo
from helpers.optional import skip_without

DIGITS = "zoo:resnet-digits"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def result() -> fec_fast.PruneResult:
    torch.manual_seed(0)
    return fec_fast.prune(zoo.build(DIGITS).eval(), torch.randn(2, 1, 8, 8), ratio=0.5, recover=None)


@pytest.fixture
def pruned(result: fec_fast.PruneResult, tmp_path: Path) -> Path:
    return fec_fast.save(result, tmp_path / "pruned")


@pytest.mark.slow
def test_export_onnx(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("onnx", "onnxscript", "onnxruntime")
    file = pruned.parent / "pruned.onnx"
    monkeypatch.setattr(onnx_files, "PARITY", -1.0)
    wrong = run("export", "onnx", DIGITS, pruned, "--out", file)
    assert wrong.exit_code == 2 and "computes other outputs than torch" in wrong.stderr
    assert os.listdir(pruned.parent) == ["pruned"]
    monkeypatch.undo()
    done = run("export", "onnx", DIGITS, pruned, "--out", file, "--json", "-")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["bytes"] == file.stat().st_size and document["difference"] < 1e-4
    refused = run("export", "onnx", DIGITS, pruned, "--out", file)
    assert refused.exit_code == 2 and "--force" in refused.stderr


@pytest.mark.slow
def test_export_int8(pruned: Path) -> None:
    skip_without("onnx", "onnxscript", "onnxruntime", "sklearn")
    file = pruned.parent / "int8.onnx"
    call = ("export", "int8", DIGITS, pruned, "--calibrate", "sklearn:digits", "--images", "32", "--out", file)
    done = run(*call, "--float", "fc", "--json", "-")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["bytes"] == file.stat().st_size < document["float_bytes"] and document["float_layers"] == ["fc"]
    assert document["agreement"]["images"] == 32
    unknown = run(*call, "--force", "--float", "head")
    assert unknown.exit_code == 2 and "no layer 'head'" in unknown.stderr


@pytest.mark.slow
def test_export_pt2e(pruned: Path) -> None:
    skip_without("torchao", "sklearn")
    file = pruned.parent / "int8.pt2"
    call = ("export", "pt2e", DIGITS, pruned, "--calibrate", "sklearn:digits", "--images", "32", "--out", file)
    done = run(*call, "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == file.stat().st_size


def test_load_check(pruned: Path) -> None:
    done = run("load-check", pruned)
    assert done.exit_code == 0, done.output
    assert "its files match their checksums" in done.stdout and f"fec_fast.load(model, '{pruned}')" in done.stdout
    document = json.loads(run("load-check", pruned, "--json", "-").stdout)
    assert document["format"] == "fec_fast.load_check" and document["card"] is None and document["onnx"] is None
    with (pruned / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    damaged = run("load-check", pruned)
    assert damaged.exit_code == 2 and "SHA-256" in damaged.stderr and damaged.stdout == ""
    assert run("load-check", pruned.parent / "nowhere").exit_code == 2
