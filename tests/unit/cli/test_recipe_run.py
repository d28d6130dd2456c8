"""Recipes run: every shipped recipe to its end on a few images, and an interrupted one to the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.cli import recipe as recipes
from fec_fast.utils.errors import CheckpointError, FecWarning
from fec_fast.vision import data, zoo
from helpers import detection
from helpers.optional import skip_without
from helpers.recipes import CLASSIFIERS, FOLDER, write_digits

pytest.importorskip("yaml")
pytest.importorskip("jsonschema")
pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


pytestmark = pytest.mark.usefixtures("brief_latency")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_digits(tmp_path)


def _images(root: Path, size: int) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in range(3):
            (root / part / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
                image.fromarray(pixels.numpy()).save(root / part / f"class{label}" / f"{index}.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_recipes_run_to_their_end(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    small = "cifar" in name
    _images(tmp_path / "images", 32 if small else 64)
    # Less of everything that takes time. The dense network is trained in the same way as the pruned one.
    less = ["finetune.epochs=1", "finetune.warmup_epochs=0.5", "data.limit=3", "data.batch_size=5", "recover=9"]
    less += [] if small else ["data.image_size=32", "data.workers=0", "input_shape=[1, 3, 32, 32]"]
    less += [] if name == "resnet56-cifar10.yaml" else ["dense=false"]
    # To find what makes up for hundreds of channels, or 4,096, takes half a minute to a minute.
    if name in ("resnet34-cifar10.yaml", "resnet50-imagenet.yaml", "vgg16-imagenet.yaml"):
        less += ["prune.criterion=l1", "prune.ratios=uniform"]
    sets = [word for value in less for word in ("--set", value)]
    with pytest.warns(UserWarning, match="names no weights"):
        done = run(
            "run", FOLDER / name, "--data", f"imagefolder:{tmp_path / 'images'}", "--out", tmp_path / "out", *sets
        )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    recipe = recipes.read_recipe(FOLDER / name, given={"data.name": "x"})
    ((currency, share),) = recipe.prune["remove"].items()
    assert results["size"]["removed"][{"params": "parameters"}.get(currency, currency)] >= share
    stages = [
        "before",
        "pruned",
        "recovered",
        *(["dense_tuned"] if name == "resnet56-cifar10.yaml" else []),
        "pruned_tuned",
    ]
    assert list(results["metrics"]) == stages
    assert all(0 <= metrics["accuracy"] <= 1 and metrics["loss"] > 0 for metrics in results["metrics"].values())
    assert results["machine"]["torch"] == torch.__version__ and results["latency_ms"]["before"] > 0
    assert results["recipe"]["data"]["limit"] == 3
    network = fec_fast.load(zoo.build(recipe.model), tmp_path / "out" / "checkpoint")
    assert sum(p.numel() for p in network.parameters()) == results["size"]["after"]["parameters"]
    metrics = fec_fast.training.tasks.classification.Classification().evaluate(
        network,
        data.load(
            f"imagefolder:{tmp_path / 'images'}", **{k: v for k, v in results["recipe"]["data"].items() if k != "name"}
        )[1],
    )
    assert metrics == pytest.approx(results["metrics"]["pruned_tuned"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:the recipe names no weights")
def test_an_interrupted_run_resumes_to_the_same_figures(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(zoo.build("zoo:vgg-digits").state_dict(), weights)
    whole = fec_fast.cli.recipe_run.run_recipe(
        recipes.read_recipe(recipe, given={"weights": str(weights)}), tmp_path / "whole", progress=False
    )

    from fec_fast.training.engine import Trainer

    finished = []
    keep = Trainer.finish_epoch

    def interrupted(self: Trainer, row: Any) -> None:
        keep(self, row)
        finished.append(row)
        if len(finished) == 3:  # the pruned network's first epoch
            raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = ["run", recipe, "--weights", weights, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish_epoch", interrupted)
        done = run(*arguments)
    assert done.exit_code == 130 and "pruned_tuned: continue with resume=True (--resume)" in done.stderr
    assert not (out / "results.json").exists()
    assert run(*arguments).exit_code == 2 and "--resume" in run(*arguments).stderr
    with pytest.raises(CheckpointError, match="another recipe: dense was True and is False"):
        other = recipes.read_recipe(recipe, ["dense=false"], {"weights": str(weights)})
        fec_fast.cli.recipe_run.run_recipe(other, out, resume=True)
    with pytest.warns(FecWarning) as warned:
        done = run(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    at_chance = " ".join(str(warning.message) for warning in warned if "guessing among" in str(warning.message))
    stages = [stage for stage in ("before", "pruned", "recalibrated") if f"{stage}: the accuracy" in at_chance]
    assert stages == ["before", "recalibrated"]  # random weights; what is cut is re-estimated after it
    found = json.loads((out / "results.json").read_text())
    assert found["metrics"] == whole["metrics"] and found["size"] == whole["size"]
    # The dense and the pruned network had the same training.
    assert [len(found["training"][stage]["epochs"]) for stage in ("dense_tuned", "pruned_tuned")] == [2, 2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    done = run("run", recipe, "--out", tmp_path / "mine")
    assert done.exit_code == 2 and "left alone" in done.stderr


@pytest.mark.filterwarnings("ignore:the recipe names no weights")
def test_finetune_by_a_recipe_and_resumed(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(zoo.build("zoo:vgg-digits").state_dict(), weights)
    cut = ["--weights", weights, "--ratio", "0.25", "--calibrate", "none", "--out", tmp_path / "pruned"]
    done = run("prune", "zoo:vgg-digits", *cut)
    assert done.exit_code == 0, done.output
    start = ["finetune", "--config", recipe, "--checkpoint", tmp_path / "pruned"]
    done = run(*start, "--out", tmp_path / "tuned")
    assert done.exit_code == 2 and "teacher: true needs the weights" in done.stderr
    start += ["--set", f"weights={weights}", "--state", tmp_path / "state"]
    done = run(*start, "--out", tmp_path / "tuned", "--log", tmp_path / "log", "--set", "finetune.lr=0.01")
    assert done.exit_code == 0 and "after 2 epochs" in done.stdout, done.output
    assert len((tmp_path / "log" / "metrics.csv").read_text().splitlines()) == 3
    done = run(*start, "--out", tmp_path / "again", "--set", "finetune.lr=0.01", "--resume")
    assert done.exit_code == 0, done.output
    one, other = (fec_fast.load(zoo.build("zoo:vgg-digits"), tmp_path / name) for name in ("tuned", "again"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    done = run(*start, "--out", tmp_path / "other", "--resume")
    assert done.exit_code == 2 and "lr was 0.01 and is 0.02" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the recipe names no weights")
def test_recipe_of_ssd300_runs_a_few_steps_to_its_end(tmp_path: Path) -> None:
    skip_without("torchvision", "pycocotools", "defusedxml")
    folder = detection.rectangles(tmp_path / "voc")
    less = ("epochs=1", "warmup_epochs=0.5")
    sets = [f"finetune.{value}" for value in less] + [
        *(
            "data.splits=[train, val]",
            "data.limit=2",
            "data.batch_size=1",
            "data.workers=0",
            "dense=false",
            "recover=0",
        ),
        "model_options={num_classes: 3}",
    ]
    options = [word for value in sets for word in ("--set", value)]
    done = run("run", FOLDER / "ssd300-voc.yaml", "--data", f"voc:{folder}", "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["metrics"]) == ["before", "pruned", "pruned_tuned"]
    assert all(set(metrics) == detection.METRICS for metrics in results["metrics"].values())
    assert results["size"]["before"]["parameters"] > 20e6 and results["size"]["removed"]["parameters"] >= 0.5572
    (epoch,) = results["training"]["pruned_tuned"]["epochs"]
    assert epoch["images"] == 2 and set(epoch["metrics"]) == {"bbox_regression", "classification"}
    network = fec_fast.load(zoo.build("torchvision:ssd300_vgg16", num_classes=3), tmp_path / "out" / "checkpoint")
    assert sum(p.numel() for p in network.parameters()) == results["size"]["after"]["parameters"]
    detection.assert_all_parts_are_cut(
        fec_fast.Plan.from_json((tmp_path / "out" / "checkpoint" / "plan.json").read_text())
    )
