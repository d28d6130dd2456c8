"""``fec-fast prune`` recovers unless it is told not to, and says where it did not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app

MODEL_FILE = """import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
"""


def test_the_program_recovers_unless_it_is_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)

    def run(name: str, *options: str) -> Result:
        arguments = ["prune", f"{tmp_path / 'mine.py'}:{name}", "--input-shape", "1,3,8,8", *options]
        return CliRunner().invoke(app.app, [*arguments, "--out", str(tmp_path / f"out{len(options)}{name}"), "--force"])

    def plan(name: str, count: int = 0) -> fec_fast.Plan:
        return fec_fast.Plan.from_json((tmp_path / f"out{count}{name}" / "plan.json").read_text())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fec_fast.FecWarning)  # of random weights
        done = run("net")
        assert done.exit_code == 0 and "not recovered" not in done.stdout, done.output
        assert "recovered data-free, on noise: 1 layer changed" in plan("net").notes[-1]
        assert plan("net").criterion == "reconstruction"
        done = run("net", "--calibrate", "none")
        assert done.exit_code == 0 and "not recovered: most of the accuracy may be lost" in done.stdout
        assert plan("net", 2).criterion == "fec_l1"
        assert not any("recovered" in note for note in plan("net", 2).notes)
        done = run("bare", "--calibrate", "none")
        assert done.exit_code == 0 and "not recovered" in done.stdout
    with pytest.warns(fec_fast.FecWarning, match="no batch norm says what the layers read"):
        done = run("bare")
    assert done.exit_code == 0 and "not recovered" not in done.stdout  # the warning says it
    for calibrate in ((), ("--calibrate", "none"), ("--calibrate", "data-free")):
        done = run("net", "--images", "100", *calibrate)
        assert done.exit_code == 2 and "--images 100: it belongs to --calibrate DATA" in done.stderr
