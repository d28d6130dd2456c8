"""Recipes: what is wrong is named by its key; every recipe that is shipped runs to its end on a few images."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.cli import recipe as recipes
from fec_fast.utils.errors import CheckpointError, InputError
from fec_fast.vision import data, loaders, zoo

pytest.importorskip("yaml")
pytest.importorskip("jsonschema")
pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")

FOLDER = Path(__file__).parents[3] / "recipes"
SHIPPED = sorted(path.name for path in FOLDER.glob("*.yaml") if "voc" not in path.name)  # see test_detection.py
DIGITS = """
model: zoo:vgg-digits
data: {name: "sklearn:digits", limit: 20}
prune: {budget: {params: 0.5}, ratios: uniform}
recalibrate: 200
dense: true
teacher: true
finetune: {epochs: 2, lr: 0.02}
"""


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(DIGITS)
    return file


def test_schema_knows_every_setting_and_no_other() -> None:
    from jsonschema import Draft202012Validator

    schema = recipes.schema()
    Draft202012Validator.check_schema(schema)
    parts = schema["properties"]
    assert set(parts["finetune"]["properties"]) == {entry.name for entry in fields(fec_fast.TrainingSettings)}
    assert set(parts["data"]["properties"]) == {
        "name",
        "batch_size",
        *(entry.name for entry in fields(loaders.DataOptions)),
        *("splits", "classes"),  # of voc:
    }

    def described(part: dict[str, Any]) -> bool:
        return "description" in part and all(map(described, part.get("properties", {}).values()))

    assert described(schema)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("finetune.epoch=3", r"no key finetune.epoch; nearest: 'epochs'"),
        ("finetun.epochs=3", r"no key finetun; nearest: 'finetune'"),
        ("finetune.lr=1e-3", r"finetune.lr: '1e-3' is not of type 'number'; give .*1.0e-3, not 1e-3"),
        ("finetune.mixed_precision=no", r"finetune.mixed_precision: False is not one of .*in quotes"),
        ("finetune.epochs=0", r"finetune.epochs: 0 is less than the minimum of 1; give the number of passes"),
        ("finetune={}", r"finetune.epochs is missing: give the number of passes"),
        ("data.name=null", r"data.name: None is not of type 'string'; give imagefolder:PATH"),
        ("prune.budget={params: 0.5, macs: 0.5}", r"prune.budget: .*exactly one of params, macs"),
        ("prune.criterion=fecc", r"prune.criterion: 'fecc' is not one of"),
        ("finetune.warmup_epochs=9", r"warmup_epochs=9 with epochs=2"),
        ("model.name=a", r"model is 'zoo:vgg-digits' and holds no keys"),
        ("finetune.epochs", r"give KEY=VALUE"),
        ("finetune.epochs={", r"not YAML"),
    ],
)
def test_what_is_wrong_is_named(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        recipes.read_recipe(recipe, [override])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for text, words in (("- a\n", "keys and values"), ("{", "not YAML"), ("model: x\n", "data is missing")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            recipes.read_recipe(file)
    with pytest.raises(InputError, match="cannot be read"):
        recipes.read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_need_nothing_but_data(name: str) -> None:
    with pytest.raises(InputError, match="data.name is missing: give imagefolder:PATH"):
        recipes.read_recipe(FOLDER / name)
    assert recipes.read_recipe(FOLDER / name, given={"data.name": "imagefolder:x"}).training.epochs >= 40


def _images(root: Path, size: int) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in range(3):
            (root / part / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
                image.fromarray(pixels.numpy()).save(root / part / f"class{label}" / f"{index}.png")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_run_to_their_end(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    small = "cifar" in name
    _images(tmp_path / "images", 32 if small else 64)
    # Less of everything that takes time. The dense network's training differs from the pruned one's in nothing.
    less = ["finetune.epochs=1", "finetune.warmup_epochs=0.5", "data.limit=3", "data.batch_size=5", "recalibrate=9"]
    less += [] if small else ["data.image_size=32", "data.workers=0", "input_shape=[1, 3, 32, 32]"]
    less += [] if name == "resnet56-cifar10.yaml" else ["dense=false"]
    sets = [word for value in less for word in ("--set", value)]
    with pytest.warns(UserWarning, match="names no weights"):
        done = run(
            "run", FOLDER / name, "--data", f"imagefolder:{tmp_path / 'images'}", "--out", tmp_path / "out", *sets
        )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    recipe = recipes.read_recipe(FOLDER / name, given={"data.name": "x"})
    ((currency, share),) = recipe.prune["budget"].items()
    assert results["size"]["removed"][{"params": "parameters"}.get(currency, currency)] >= share
    stages = [
        "before",
        "pruned",
        "recalibrated",
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
def test_an_interrupted_run_goes_on_to_the_same_figures(
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
    done = run(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    found = json.loads((out / "results.json").read_text())
    assert found["metrics"] == whole["metrics"] and found["size"] == whole["size"]
    # Dense and pruned had the same training.
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
    done = run("prune", "zoo:vgg-digits", "--weights", weights, "--ratio", "0.25", "--out", tmp_path / "pruned")
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


@pytest.mark.parametrize("package", ["yaml", "jsonschema"])
def test_missing_packages_name_the_command(package: str, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fec_fast\[train\]'"):
        recipes.read_recipe(recipe)
