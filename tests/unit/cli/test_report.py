"""`fec-fast report`: what each option adds to the page, and wrong calls, which write nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.vision import zoo

pytest.importorskip("matplotlib")
RUNNER = CliRunner()


def call(*arguments: str | Path) -> tuple[int, str]:
    result = RUNNER.invoke(cli.app, ["report", *(str(argument) for argument in arguments)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, the weights before pruning, and what else the options name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report")
    model = zoo.build("zoo:vgg-digits").eval()
    save_file(model.state_dict(), folder / "dense.safetensors")
    fec_fast.save(fec_fast.prune(model, torch.randn(1, 1, 8, 8), ratio=0.5, recover=None), folder / "pruned")
    return folder


def test_a_folder_alone_gives_widths_and_scores(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert call(folder / "pruned", "-o", file) == (0, f"report written to {file}\n")
    text = file.read_text(encoding="utf-8")
    assert '<section id="layers"' in text and '<section id="scores"' in text and '<section id="couplings"' in text
    assert "without the model before pruning (--model)" in text and '<section id="distances"' not in text


def test_a_folder_whose_name_is_not_utf_8(folder: Path, tmp_path: Path) -> None:
    odd, file = tmp_path / os.fsdecode(b"\xff"), tmp_path / "report.html"
    shutil.copytree(folder / "pruned", odd)
    assert call(odd, "-o", file)[0] == 0
    assert "\\udcff" in file.read_text(encoding="utf-8")


def test_the_model_adds_sizes_and_readers(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    code, _ = call(folder / "pruned", "-o", file, "--model", "zoo:vgg-digits")
    text = file.read_text(encoding="utf-8")
    assert code == 0 and "hollow diamonds read them" in text and ">MACs<" in text
    assert "no pictures of filters" in text and '<section id="distances"' not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_weights_add_pictures_and_data_sensitivity(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "report.html"
    model = ["--model", "zoo:vgg-digits", "--weights", folder / "dense.safetensors"]
    layer = [name for name, part in zoo.build("zoo:vgg-digits").named_modules() if hasattr(part, "out_channels")][1]
    code, output = call(
        folder / "pruned", "-o", file, *model, "--sensitivity", "sklearn:digits", "--filter", f"{layer}:3"
    )
    assert code == 0, output
    text = file.read_text(encoding="utf-8")
    assert '<section id="first-layer"' in text and '<section id="sensitivity"' in text
    assert text.count('<div data-panel="maps">') == 1 and "filter 3, " in text
    assert "accuracy on the held-out part of sklearn:digits" in text and "filters are distinct" in text


def test_files_of_sweep_and_sensitivity_are_shown(folder: Path, tmp_path: Path) -> None:
    model, example = zoo.build("zoo:vgg-digits").eval(), torch.randn(1, 1, 8, 8)

    def parameters(network: torch.nn.Module) -> float:
        return float(sum(part.numel() for part in network.parameters()))

    measured = fec_fast.measure_sensitivity(model, example, parameters, at=(0.5,), progress=False)
    swept = fec_fast.sweep(model, example, None, metric=parameters, budgets=["params=0.5"], progress=False)
    (tmp_path / "s.json").write_text(measured.to_json())
    (tmp_path / "w.json").write_text(swept.to_json())
    file = tmp_path / "report.html"
    start = [folder / "pruned", "-o", file]
    code, output = call(*start, "--sensitivity", tmp_path / "s.json", "--sweep", tmp_path / "w.json")
    assert code == 0, output
    text = file.read_text(encoding="utf-8")
    assert '<section id="sensitivity"' in text and '<section id="sweep"' in text
    for option, wrong in (("--sweep", "s.json"), ("--sensitivity", "w.json")):
        code, output = call(*start, "--force", option, tmp_path / wrong)
        assert code == 2 and "error: the JSON of a" in output
    (tmp_path / "s.json").write_text(measured.to_json().replace("sha256:", "sha512:"))
    code, output = call(*start, "--force", "--sensitivity", tmp_path / "s.json")
    assert code == 2 and "it is of another network" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "x.safetensors"], "give the model they belong to with --model"),
        (["--sensitivity", "sklearn:digits"], "give the model before pruning with --model and --weights"),
        (
            ["--images", "voc:x", "--model", "zoo:vgg-digits"],
            "give the model before pruning with --model and --weights",
        ),
        (["--filter", "conv1:3"], "give the model before pruning with --model and --weights"),
        (["--model", "zoo:resnet-digits"], "the plan is for another model"),
        (["-o", "nowhere/report.html"], "there is no folder"),
        (["-o", "."], "is a folder"),
    ],
)
def test_wrong_calls_write_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = call(folder / "pruned", *arguments)
    assert code == 2 and output.startswith("error: ") and message in output, output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["conv1", "conv1:", ":3", "conv1:-1", "conv1:x", "nothing:3"])
def test_wrong_filters_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "report.html"
    model = ["--model", "zoo:vgg-digits", "--weights", folder / "dense.safetensors"]
    code, output = call(folder / "pruned", "-o", file, *model, "--filter", name)
    assert code == 2 and ("write LAYER:NUMBER" in output or "no layer 'nothing'" in output), output
    assert not file.exists()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    code, output = call(tmp_path, "-o", tmp_path / "report.html")
    assert code == 2 and "is not a checkpoint" in output


DETECTOR = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        found = []
        for image in images:
            box = self.head(self.stem(image[None]).relu()).mean((2, 3)).sigmoid()
            found.append({"boxes": box + torch.tensor([[0.0, 0, 9, 9]]).to(box), "scores": torch.ones(1).to(box)})
        return found

def net():
    return Net()

def data(batch_size=2):
    torch.manual_seed(0)
    batches = [([torch.rand(3, 12, 12) for _ in range(batch_size)], [])]
    return batches, batches
"""


def test_images_show_what_detectors_find(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(DETECTOR)
    model = zoo.build(f"{code}:net").eval()
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    fec_fast.save(fec_fast.prune(model, torch.rand(1, 3, 12, 12), ratio=0.5, recover=None), tmp_path / "pruned")
    file = tmp_path / "report.html"
    options = ["--model", f"{code}:net", "--weights", tmp_path / "dense.safetensors", "--input-shape", "1,3,12,12"]
    status, output = call(tmp_path / "pruned", "-o", file, *options, "--images", f"{code}:data")
    assert status == 0, output
    text = file.read_text(encoding="utf-8")
    captions = [f"image {number}, {state}: 1 object, scores 1.00" for number in (1, 4) for state in ("before", "after")]
    assert all(f"<figcaption>{caption}</figcaption>" in text for caption in captions) and "image 5," not in text
