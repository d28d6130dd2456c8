"""``fec-fast sweep`` and ``fec-fast sensitivity``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.vision import zoo
from helpers.optional import skip_without

# A network of two layers and its data, which need no package but torch.
MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def net():
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 3)]
    return nn.Sequential(*layers)

def data():
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(48) % 3
    images = torch.randn(48, 1, 6, 6, generator=generator) * 0.3
    images[torch.arange(48), 0, labels, labels] += 3.0
    return DataLoader(TensorDataset(images, labels), 16, shuffle=True), DataLoader(TensorDataset(images, labels), 16)
"""


@pytest.fixture
def start(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(MINE)
    return [f"{tmp_path / 'mine.py'}:net", "--data", f"{tmp_path / 'mine.py'}:data", "--input-shape", "1,1,6,6"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_sweep(start: list[str], tmp_path: Path) -> None:
    options = ["--budget", "macs=0.3", "--budget", "macs=0.6", "--criterion", "l1", "--results", tmp_path / "points"]
    done = run("sweep", *start, *options, "--within", "100", "--out", tmp_path / "out", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "s.json").read_text())
    assert [point["budget"] for point in document["points"]] == ["macs=0.3", "macs=0.6"]
    assert "the smallest within 100 points: macs=0.6, entropy, l1" in done.stdout
    model = fec_fast.load(zoo.build(start[0]), tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == document["points"][1]["parameters"]
    assert len(list((tmp_path / "points").iterdir())) == 2
    again = run("sweep", *start, *options, "--within", "100", "--json", "-")
    assert again.exit_code == 0 and json.loads(again.stdout) == document


def test_sweep_draws_and_tunes(start: list[str], tmp_path: Path) -> None:
    skip_without("accelerate", "torchmetrics", "matplotlib")
    options = ["--budget", "macs=0.5", "--epochs", "2", "--within", "100", "--plot", tmp_path / "sweep.svg"]
    done = run("sweep", *start, *options, "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["points"][0]["tuned"] is not None
    assert (tmp_path / "sweep.svg").is_file()


def test_sweep_says_what_is_wrong(start: list[str], tmp_path: Path) -> None:
    done = run("sweep", *start, "--budget", "macs=1.5")
    assert done.exit_code == 2 and "error: Budget(macs=1.5)" in done.stderr
    done = run("sweep", *start, "--json", tmp_path / "gone" / "s.json")
    assert done.exit_code == 2 and "there is no folder" in done.stderr
    done = run("sweep", *start, "--epochs", "-1")
    assert done.exit_code == 2 and "--epochs -1" in done.stderr


def test_sensitivity(start: list[str], tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in zoo.build(start[0]).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    weights = ["--weights", tmp_path / "w.safetensors", "--cache", tmp_path / "cache"]
    done = run("sensitivity", *start, *weights)
    assert done.exit_code == 0 and "nothing removed: " in done.stdout, done.output
    document = json.loads(run("sensitivity", *start, *weights, "--json", "-").stdout)
    assert document["units"] == {"0": 12} and set(document["values"]["0"]) == {"1", "4", "6", "8", "11"}
    assert torch.tensor(list(document["values"]["0"].values())).le(1).all()
