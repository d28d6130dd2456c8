"""What people who know only the README type in their first hour: the answer names what they typed, and the remedy."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.vision import data, zoo
from helpers.optional import skip_without
from helpers.processes import run_python

DIGITS = "zoo:vgg-digits"
# Every batch is drawn anew, as a loader does that shuffles and augments.
DRAWN = """import torch
class Drawn:
    def __iter__(self):
        return iter([(torch.randn(64, 1, 8, 8), torch.arange(64) % 10) for _ in range(3)])
def loaders():
    return Drawn(), Drawn()
"""


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "", **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-hour")
    torch.manual_seed(0)
    save_file(zoo.build(DIGITS).state_dict(), folder / "w.safetensors")
    (folder / "drawn.py").write_text(DRAWN)
    cut = ["--weights", folder / "w.safetensors", "--calibrate", "none", "--out", folder / "pruned"]
    assert run("prune", DIGITS, *cut).exit_code == 0
    return folder


def test_the_same_command_gives_the_same_result(folder: Path, tmp_path: Path) -> None:
    weights = ["--weights", folder / "w.safetensors", "--remove", "params=0.7"]
    for out in ("first", "second"):
        torch.manual_seed(len(out))  # what the process has drawn before does not matter
        state = torch.get_rng_state()
        done = run("prune", DIGITS, *weights, "--calibrate", f"{folder / 'drawn.py'}:loaders", "--out", tmp_path / out)
        assert done.exit_code == 0, done.output
        assert torch.equal(torch.get_rng_state(), state)
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert (tmp_path / "first" / "plan.json").read_bytes() == (tmp_path / "second" / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--remove", "macs=50%"], "error: --remove macs=50%: give a share, such as 0.5\n"),
        (["--keep", "macs=50%"], "error: --keep macs=50%: write the share as a number: macs=0.5\n"),
        (["--remove", "macs=half"], "give a share, such as 0.5; an amount that may be left belongs to keep"),
        (["--remove", "macs=0"], "error: --remove macs=0: give the share to remove; a share is a number between"),
        (["--remove", "macs=1"], "error: --remove macs=1: give the share to remove; a share is a number between"),
        (["--keep", "macs=nan"], "error: --keep macs=nan: give the share that may be left, or an amount with a unit"),
        (["--remove", "FLOPs=0.5"], "remove one of params, macs, memory, filters; nearest: 'macs'"),
        (["--remove", "macs=0.999", "--min-channels", "16"], "removed with --round-to=1, --min-channels=16 and"),
        (["--criterion", "l3"], "error: --criterion='l3': nearest: 'l2', 'l1'"),
        (["--round-to", "0"], "error: --round-to=0: give a whole number of at least 1\n"),
    ],
)
def test_an_error_names_the_option_that_was_typed(options: list[str], shown: str, folder: Path, tmp_path: Path) -> None:
    weights = ["--weights", folder / "w.safetensors", "--calibrate", "none"]
    done = run("prune", DIGITS, *weights, *options, "--out", tmp_path / "out")
    assert done.exit_code == 2 and shown in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_warning_names_the_options_too(folder: Path, tmp_path: Path) -> None:
    weights = ["--weights", folder / "w.safetensors", "--calibrate", "none"]
    # A process of its own: pytest keeps warnings from being printed.
    done = run_python("-m", "fec_fast", "prune", DIGITS, *weights, "--remove", "macs=0.98", "--out", tmp_path / "out")
    assert done.returncode == 0 and "set --min-channels=, or name layers in --ignore=" in done.stderr


@pytest.mark.parametrize("option", ["-q", "--quiet", "--debug"])
def test_an_option_of_the_program_behind_the_command(option: str) -> None:
    done = run("prune", DIGITS, option, "--out", "never")
    assert done.exit_code == 2
    assert f"{option}; it belongs before the command: fec-fast {option} prune ..." in " ".join(done.stderr.split())
    assert "belongs before" not in run("prune", DIGITS, "--no-such", "--out", "never").stderr


def test_prune_says_that_nothing_was_recovered(folder: Path, tmp_path: Path) -> None:
    weights = ["--weights", folder / "w.safetensors"]
    plain = run("prune", DIGITS, *weights, "--calibrate", "none", "--out", tmp_path / "plain").stdout
    assert "not recovered: most of the accuracy may be lost; --calibrate DATA (images)" in plain
    drawn = f"{folder / 'drawn.py'}:loaders"
    assert "not recovered" not in run("prune", DIGITS, *weights, "--calibrate", drawn, "--out", tmp_path / "r").stdout


def test_load_check_of_what_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    done = run("load-check", folder)
    assert done.exit_code == 2 and "its folder 'pruned' is one\n" in done.stderr and "integration" not in done.stderr
    done = run("load-check", folder / "w.safetensors")
    assert done.exit_code == 2 and "w.safetensors is a file; a checkpoint is a folder" in done.stderr


def test_images_are_scaled_to_the_example_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("torchvision", "PIL")
    from PIL import Image

    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (12, 12), "red" if name == "cat" else "blue").save(tmp_path / part / name / "0.png")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))\n"
    )
    sizes: list[tuple[int, ...]] = []
    original = data.load

    def noted(*given: object, **options: object) -> object:
        loaders = original(*given, **options)  # type: ignore[arg-type]
        sizes.append(tuple(loaders[1].dataset[0][0].shape))
        return loaders

    monkeypatch.setattr(data, "load", noted)
    command = ["sensitivity", f"{tmp_path / 'net.py'}:make", "--data", f"imagefolder:{tmp_path}"]
    with pytest.warns(fec_fast.FecWarning, match="12 x 12 are enlarged to 16 x 16.* give --input-shape 1,3,12,12"):
        run(*command, "--input-shape", "1,3,16,16")
    assert sizes[-1] == (3, 16, 16)
    with warnings.catch_warnings(record=True) as given:
        run(*command, "--input-shape", "1,3,12,12")
        run(*command, "--input-shape", "1,3,8,8")
    assert sizes[-3:] == [(3, 12, 12), (3, 12, 12), (3, 8, 8)]
    assert not [one for one in given if "12 x 12" in str(one.message)]
    with pytest.warns(fec_fast.FecWarning, match="has images of 12 x 12 and the example input 224 x 224"):
        run(*command)
    assert sizes[-1] == (3, 12, 12)
