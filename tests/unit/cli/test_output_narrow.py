"""Every command at 60 columns, in a pipe and a file: no line is too long, no number cut, no control character."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from fec_fast.cli import app as cli
from fec_fast.vision import zoo
from helpers.optional import skip_without

MODEL = "zoo:vgg-digits"
COLUMNS = 60


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "", **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("narrow")
    save_file(zoo.build(MODEL).state_dict(), folder / "w.safetensors")
    weights: list[str | Path] = ["--weights", folder / "w.safetensors", "--calibrate", "none"]
    done = run("prune", MODEL, *weights, "--out", folder / "pruned")
    assert done.exit_code == 0, done.output
    (folder / "data.py").write_text(
        "import torch\n"
        "def loaders():\n"
        "    torch.manual_seed(0)\n"
        "    batch = (torch.rand(32, 1, 8, 8), torch.arange(32) % 10)\n"
        "    return [batch], [batch]\n"
    )
    (folder / "recipe.yaml").write_text(
        "model: zoo:vgg-digits\ndata: {name: x}\nprune: {remove: {params: 0.5}}\nrecover: 0\nrecalibrate: 32\n"
        "finetune: {epochs: 1, lr: 0.01}\n"
    )
    return folder


def commands(folder: Path, out: Path) -> dict[str, list[str | Path]]:
    """One call of every command, with all that it prints."""
    weights: list[str | Path] = ["--weights", folder / "w.safetensors"]
    data = f"{folder / 'data.py'}:loaders"
    return {
        "score": ["score", MODEL, *weights],
        "score --layers": ["score", MODEL, *weights, "--layers"],
        "prune": ["prune", MODEL, *weights, "--calibrate", "none", "--out", out / "prune"],
        "prune --layers": ["prune", MODEL, *weights, "--calibrate", data, "--layers", "--out", out / "layers"],
        "explain": ["explain", folder / "pruned", "features.0"],
        "report": ["report", folder / "pruned", "--out", out / "report.html"],
        "compare": ["compare", MODEL, folder / "pruned", *weights, "--data", data, "--latency"],
        "sweep": ["sweep", MODEL, *weights, "--data", data, "--remove", "macs=0.5", "--within", "100"],
        "sensitivity": ["sensitivity", MODEL, *weights, "--data", data, "--cache", folder / "cache"],
        "sensitivity --layers": [
            *("sensitivity", MODEL, *weights, "--data", data, "--cache", folder / "cache", "--layers")
        ],
        "finetune": [
            *("finetune", MODEL, "--checkpoint", folder / "pruned", "--data", data, "--epochs", "1"),
            *("--out", out / "tuned"),
        ],
        "run": ["run", folder / "recipe.yaml", "--data", data, *weights, "--out", out / "run"],
        "info": ["info"],
        "doctor": ["doctor"],
        "export onnx": ["export", "onnx", MODEL, folder / "pruned", "--out", out / "pruned.onnx"],
        "export int8": ["export", "int8", MODEL, folder / "pruned", "--calibrate", data, "--out", out / "int8.onnx"],
        "load-check": ["load-check", folder / "pruned"],
    }


NAMES = list(commands(Path(), Path()))
NEEDS = {
    "report": "matplotlib",
    "export onnx": "onnxscript",
    "export int8": "onnxscript",
    "finetune": "accelerate",
    "run": "jsonschema",
}


def test_every_command_is_tried() -> None:
    groups = {name.partition(" ")[0] for name in NAMES}
    known = {command.name for command in cli.app.registered_commands}
    known |= {group.name for group in cli.app.registered_groups}
    assert groups == known - {"demo"}  # tests/unit/cli/test_demo.py has its widths


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_and_words_stay_whole(name: str, folder: Path, tmp_path: Path) -> None:
    skip_without(NEEDS.get(name, "torch"))
    folded = run(*commands(folder, tmp_path)[name], COLUMNS=str(COLUMNS), NO_COLOR="1", TERM="dumb")
    assert folded.exit_code == 0, folded.output
    assert folded.stdout.strip()
    for line in folded.stdout.splitlines():
        # A path, or another word that is longer than the line, stays whole.
        assert len(line) <= COLUMNS or len(line.split()) == 1 or max(map(len, line.split())) > COLUMNS - 20, line
    assert not control_characters(folded.stdout) and not control_characters(folded.stderr)
    if name in ("score --layers", "explain", "sensitivity --layers"):  # tables, without times
        whole = run(*commands(folder, tmp_path)[name])  # as into a pipe
        assert not control_characters(whole.stdout) and not control_characters(whole.stderr)
        numbers = [set(re.findall(r"\d[\d,.]*\d", text)) for text in (folded.stdout, whole.stdout)]
        assert numbers[0] == numbers[1]


def control_characters(text: str) -> list[str]:
    return re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_file_gets_whole_lines_and_progress_now_and_then(folder: Path, tmp_path: Path) -> None:
    """As a user redirects them: no bar, and a table as wide as it is."""
    call = [*commands(folder, tmp_path)["sensitivity --layers"][:-3], "--layers"]  # without the cache
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with (tmp_path / "out.txt").open("w") as out, (tmp_path / "err.txt").open("w") as err:
        subprocess.run(
            [sys.executable, "-m", "fec_fast", *map(str, call)], stdout=out, stderr=err, check=True, env=environment
        )
    written, progress = (tmp_path / "out.txt").read_text(), (tmp_path / "err.txt").read_text()
    assert not control_characters(written) and not control_characters(progress)
    assert any(len(line) > COLUMNS for line in written.splitlines())
    assert re.search(r"^sensitivity: (\d+) of \1$", progress, re.MULTILINE)
