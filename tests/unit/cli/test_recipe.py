"""Recipes as files: what is wrong is named by its key; those that are shipped need nothing but data."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fec_fast
from fec_fast.cli import recipe as recipes
from fec_fast.utils.errors import InputError
from fec_fast.vision import loaders
from helpers.recipes import CLASSIFIERS, DETECTORS, FOLDER, write_digits

pytest.importorskip("yaml")
pytest.importorskip("jsonschema")
pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_digits(tmp_path)


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
        *("splits", "classes", "held_out"),  # of data with boxes
        *("annotations", "images"),  # of coco:
        *("image", "label", "objects", "box_format"),  # of hf:
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
        ("prune={remove: {params: 0.5, macs: 0.5}}", r"prune.remove: .*exactly one of params, macs"),
        (
            "prune={remove: {params: 5M}}",
            r"prune.remove.params: '5M' is not of type 'number'; give the share to remove",
        ),
        ("prune={keep: {macs: 1.5}}", r"prune.keep.macs: 1.5 is greater .*; give what may be left"),
        ("prune={keep: {latency: 3}}", r"prune.keep.latency: 3 is not of type 'string'; give the time of one call"),
        ("prune.criterion=fecc", r"prune.criterion: 'fecc' is not one of"),
        (
            "finetune.warmup_epochs=9",
            r"recipe .*: finetune: warmup_epochs=9 with epochs=2: .* lower warmup_epochs, .*; --set finetune.KEY=VALUE",
        ),
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


def test_every_shipped_recipe_is_known() -> None:
    assert len(CLASSIFIERS) == 9 and DETECTORS == ["ssd300-voc.yaml"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_recipes_need_nothing_but_data(name: str) -> None:
    with pytest.raises(InputError, match="data.name is missing: give imagefolder:PATH"):
        recipes.read_recipe(FOLDER / name)
    assert recipes.read_recipe(FOLDER / name, given={"data.name": "imagefolder:x"}).training.epochs >= 40


@pytest.mark.parametrize("package", ["yaml", "jsonschema"])
def test_missing_packages_name_the_command(package: str, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fec_fast\[train\]'"):
        recipes.read_recipe(recipe)
