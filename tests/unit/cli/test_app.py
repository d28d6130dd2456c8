"""The command line: what it prints and writes; wrong input is reported in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.cli import file_scores
from fec_fast.cli.options import example_shape
from fec_fast.vision import weight_files, zoo
from fec_fast.vision.weights import load_weights

RUNNER = CliRunner()


def run(*arguments: str | Path) -> Result:
    return RUNNER.invoke(cli.app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(zoo.build("zoo:vgg-digits").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def pruned(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "checkpoint"
    succeed("prune", "zoo:vgg-digits", "--weights", weights, "--out", folder, "--ratio", "0.25", "--calibrate", "none")
    return folder


def test_score(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    formula = ["--compress", "rms", "--axis", "filters", "--entropy", "softmax"]
    printed = succeed("score", "zoo:vgg-digits", "--weights", weights, "--layers", "--json", file, *formula)
    scores = fec_fast.ModelScores.from_json(file.read_text())
    expected = fec_fast.Formula(compress="rms", axis="filters", entropy="softmax")
    model = load_weights(zoo.build("zoo:vgg-digits"), weights)
    assert scores == fec_fast.score_model(model, formula=expected)
    assert printed.strip() == str(scores)
    assert os.listdir(tmp_path) == ["scores.json"]


def test_score_reads_a_tensor_at_a_time(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight of the network has memory, and no reader of whole files is called."""
    scored: list[torch.nn.Module] = []

    def score(model: torch.nn.Module, **arguments: Any) -> fec_fast.ModelScores:
        scored.append(model)
        return fec_fast.score_model(model, **arguments)

    monkeypatch.setattr(file_scores, "score_model", score)
    monkeypatch.setattr(file_scores, "load_weights", None)
    monkeypatch.setattr(weight_files, "load_file", None)
    # A factory that loads weights itself: they find no place.
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom safetensors.torch import load_file\nfrom fec_fast.vision import zoo\n\n"
        "def net():\n    model = zoo.build('zoo:vgg-digits')\n"
        f"    model.load_state_dict(load_file({str(weights)!r}))\n    return model\n"
    )
    for name in ("zoo:vgg-digits", f"{file}:net"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            succeed("score", name, "--weights", weights)
        assert all(tensor.is_meta for tensor in scored.pop().state_dict().values())


def test_score_loads_a_file_whole_where_it_must_and_says_so(weights: Path, tmp_path: Path) -> None:
    expected = succeed("score", "zoo:vgg-digits", "--weights", weights, "--layers")
    wrapped, file = tmp_path / "wrapped.safetensors", tmp_path / "mine.py"
    save_file({f"module.{name}": value for name, value in load_file(weights).items()}, wrapped)
    file.write_text(
        "from fec_fast.vision import zoo\n\ndef net():\n    model = zoo.build('zoo:vgg-digits')\n"
        "    assert next(model.parameters()).sum().item() != 0\n    return model\n"
    )
    for name, given, why in (
        ("zoo:vgg-digits", wrapped, "there is no 'features.0.weight'"),
        (f"{file}:net", weights, "cannot be built on the meta device"),
    ):
        with pytest.warns(fec_fast.FecWarning, match=f"is loaded whole, .*{why}"):
            assert succeed("score", name, "--weights", given, "--layers") == expected


def test_score_refuses_the_file_of_another_network(weights: Path, tmp_path: Path) -> None:
    """It has all layers that are scored, and one more."""
    file = tmp_path / "larger.safetensors"
    save_file({**load_file(weights), "more.weight": torch.ones(1)}, file)
    assert "has 'more.weight', which the model does not have" in fail("score", "zoo:vgg-digits", "--weights", file)


def test_score_with_default_formula(weights: Path) -> None:
    assert str(fec_fast.Formula()) in succeed("score", "zoo:vgg-digits", "--weights", weights)


def test_score_of_a_factory_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 7, 3))\n")
    assert "7x3x3x3" in succeed("score", f"{file}:net", "--layers")


def test_prune(weights: Path, pruned: Path) -> None:
    model = fec_fast.load(zoo.build("zoo:vgg-digits").eval(), pruned)
    original = load_weights(zoo.build("zoo:vgg-digits"), weights)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, original)]
    assert 0.4 * sizes[1] < sizes[0] < 0.7 * sizes[1]
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_prune_prints_a_summary(weights: Path, tmp_path: Path) -> None:
    arguments = ["--criterion", "l1", "--sides", "producer", "--round-to", "4", "--input-shape", "1,1,8,8"]
    arguments += ["--layers", "--calibrate", "none"]
    printed = succeed("prune", "zoo:vgg-digits", "--weights", weights, "--out", tmp_path / "out", *arguments)
    assert "total" in printed and str(tmp_path / "out") in printed
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (plan["criterion"], plan["sides"]) == ("l1", "producer")


def test_prune_takes_norms(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1))\n"
    )
    arguments = ["prune", f"{file}:net", "--out", tmp_path / "out", "--input-shape", "1,3,8,8"]
    assert 'norms="renormalise" lets them go' in fail(*arguments)
    printed = succeed(*arguments, "--norms", "renormalise")
    assert "the statistics of 1 run over the kept channels alone" in printed
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["norms"]["1"][0]["kept"]


def test_prune_recovers_on_images(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    data = ["--calibrate", "sklearn:digits", "--images", "100", "--criterion", "reconstruction", "--layers"]
    printed = succeed("prune", "zoo:vgg-digits", "--weights", weights, "--out", tmp_path / "out", *data)
    assert "recovered by least squares on 100 images" in printed and "error before" in printed
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["criterion"] == "reconstruction" and "on 100 images" in plan["notes"][-1]


def test_prune_recovers_without_images(weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", weights, "--out", tmp_path / "out", "--calibrate", "data-free", "--layers"]
    printed = succeed("prune", "zoo:vgg-digits", *arguments)
    assert "recovered data-free, on noise" in printed and "error before" in printed
    assert "data-free" in json.loads((tmp_path / "out" / "plan.json").read_text())["notes"][-1]


def test_prune_leaves_ignored_layers_alone(weights: Path, tmp_path: Path) -> None:
    convolutions = [name for name, m in zoo.build("zoo:vgg-digits").named_modules() if isinstance(m, nn.Conv2d)]
    ignored = [word for name in convolutions[:2] for word in ("--ignore", name)]
    succeed("prune", "zoo:vgg-digits", "--weights", weights, "--out", tmp_path / "out", *ignored, "--calibrate", "none")
    keep = json.loads((tmp_path / "out" / "plan.json").read_text())["keep"]
    assert [name for name in convolutions if "0" in keep.get(f"{name}.weight", {})] == convolutions[2:]
    assert "nearest" in fail("prune", "zoo:vgg-digits", "--out", tmp_path / "none", "--ignore", "featurs")


def test_finetune(pruned: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("accelerate")
    out = tmp_path / "tuned"
    arguments = ["--checkpoint", pruned, "--data", "sklearn:digits", "--epochs", "1", "--out", out]
    assert "held-out accuracy" in succeed("finetune", "zoo:vgg-digits", *arguments)
    before, after = (fec_fast.load(zoo.build("zoo:vgg-digits"), folder) for folder in (pruned, out))
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]
    assert not torch.equal(next(before.parameters()), next(after.parameters()))


def test_demo_writes_to_the_given_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[tuple[Path, Path]] = []
    monkeypatch.setattr(cli, "run_demo", lambda *files: outputs.append(files))
    succeed("demo", "--json", tmp_path / "figures.json", "--report", tmp_path / "report.html")
    assert outputs == [(tmp_path / "figures.json", tmp_path / "report.html")]


def test_info() -> None:
    printed = succeed("info")
    assert f"torch {torch.__version__}" in printed
    for name, backend in fec_fast.backends().items():
        line = next(line for line in printed.splitlines() if line.startswith(f"{name}: "))
        assert line.startswith(f"{name}: usable") == backend.usable
        assert backend.reason in line


def test_wrong_input_is_reported_in_one_line(weights: Path, pruned: Path, tmp_path: Path) -> None:
    digits, out = "zoo:vgg-digits", tmp_path / "out"
    assert "vgg-digits" in fail("score", "zoo:vgg-digit")
    assert "nowhere" in fail("score", digits, "--weights", tmp_path / "nowhere.pth")
    assert "'rms'" in fail("score", digits, "--compress", "rmss")
    assert "gone" in fail("score", digits, "--json", tmp_path / "gone" / "scores.json")
    assert "1.5" in fail("prune", digits, "--out", out, "--ratio", "1.5")
    assert "'l1'" in fail("prune", digits, "--out", out, "--criterion", "l11")
    assert "'1,x'" in fail("prune", digits, "--out", out, "--input-shape", "1,x")
    assert "positive" in fail("prune", digits, "--out", out, "--input-shape", "1,0,8,8")
    assert "[1, 3, 8, 8]" in fail("prune", digits, "--out", out, "--input-shape", "1,3,8,8")
    data = ["--data", "sklearn:digits", "--epochs", "1"]
    assert "no checkpoint" in fail("finetune", digits, "--checkpoint", tmp_path / "none", *data, "--out", out)
    assert "another model" in fail("finetune", "zoo:resnet-digits", "--checkpoint", pruned, *data, "--out", out)
    data[1] = "sklearn:letters"
    assert "sklearn:digits" in fail("finetune", digits, "--checkpoint", pruned, *data, "--out", out)
    assert not out.exists()


def test_output_folder_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the work was started")

    monkeypatch.setattr(zoo, "build", unreachable)
    (tmp_path / "mine.txt").write_text("")
    assert "mine.txt" in fail("prune", "zoo:vgg-digits", "--out", tmp_path)
    data = ["--data", "sklearn:digits", "--epochs", "1"]
    assert "mine.txt" in fail("finetune", "zoo:vgg-digits", "--checkpoint", tmp_path, *data, "--out", tmp_path)


def test_input_shape_by_name() -> None:
    assert example_shape("zoo:resnet-digits", None) == (1, 1, 8, 8)
    assert example_shape("zoo:vgg16-cifar", None) == (1, 3, 32, 32)
    assert example_shape("torchvision:resnet50", None) == (1, 3, 224, 224)
    assert example_shape("zoo:vgg16-cifar", "2,3,64,48") == (2, 3, 64, 48)


def test_installed_command() -> None:
    command = Path(sys.executable).parent / "fec-fast"
    done = subprocess.run([command, "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cpu: usable" in done.stdout


def test_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fec_fast", "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "cpu: usable" in done.stdout, done.stderr


def test_prune_to_a_budget(weights: Path, tmp_path: Path) -> None:
    arguments = ["--budget", "params=0.7", "--ratios", "entropy", "--round-to", "4", "--min-channels", "8"]
    arguments += ["--calibrate", "none"]
    printed = succeed("prune", "zoo:vgg-digits", "--weights", weights, "--out", tmp_path / "out", *arguments)
    assert "note: budget params=0.7: 0.7" in printed
    pruned = fec_fast.load(zoo.build("zoo:vgg-digits"), tmp_path / "out")
    sizes = [sum(p.numel() for p in net.parameters()) for net in (pruned, zoo.build("zoo:vgg-digits"))]
    assert 0.7 <= 1 - sizes[0] / sizes[1] <= 0.72  # layers lose four channels at a time
    widths = [m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    assert min(widths) >= 8 and all(width % 4 == 0 for width in widths)


def test_invalid_budgets_are_reported_in_one_line(weights: Path, tmp_path: Path) -> None:
    start = ["prune", "zoo:vgg-digits", "--weights", weights, "--out", tmp_path / "out", "--calibrate", "none"]
    assert "NAME=NUMBER" in fail(*start, "--budget", "0.7")
    assert "'params'" in fail(*start, "--budget", "parms=0.7")
    assert "2 amounts are given" in fail(*start, "--budget", "params=0.7", "--ratio", "0.5")
    assert "2 amounts are given" in fail(*start, "--remove", "params=0.7", "--keep", "params=0.7")
    assert "add a budget" in fail(*start, "--ratios", "entropy")
    assert "needs calibration" in fail(*start, "--budget", "params=0.7", "--ratios", "sensitivity")
    assert "nearest that can be met" in fail(*start, "--budget", "params=0.99", "--min-channels", "16")
    assert not (tmp_path / "out").exists()
