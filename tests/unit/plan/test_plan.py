"""The plan as a file: its published schema, and what is checked beyond it when one is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.plan.validation import ATTRIBUTES
from fec_fast.vision import networks, zoo
from helpers.divided import divided_network

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads((files("fec_fast") / "plan/plan.schema.json").read_text(encoding="utf-8"))
Edit = Callable[[dict[str, Any]], object]


class Mixed(nn.Module):
    """Grouped, depthwise, transposed and linear layers, and filters that are in no set."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.square = nn.ConvTranspose2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x)).relu())
        return self.head(self.square(self.norm(self.up(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def plans() -> dict[str, fec_fast.Plan]:
    torch.manual_seed(0)
    image, digit = torch.randn(2, 3, 16, 16), torch.randn(2, 1, 8, 8)
    model = zoo.build("zoo:resnet-digits").eval()
    first = fec_fast.prune(model, digit, ratio=0.5, recover=None)
    second = fec_fast.prune(first.model, digit, ratio=0.25, criterion="l1", recover=None)
    return {
        "residual": first.plan,
        "composed": fec_fast.compose(first.plan, second.plan),
        "mixed": fec_fast.prune(Mixed().eval(), image, ratio=0.4, recover=None).plan,
        "padded shortcuts": fec_fast.prune(
            networks.resnet20_cifar().eval(), image, ratio=0.5, criterion="l2", recover=None
        ).plan,
        "sizes": fec_fast.prune(divided_network("MixNet"), image, ratio=0.5, recover=None).plan,
    }


def test_schema_is_sound_and_names_what_a_plan_has() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    names = {"format", "version", *(entry.name for entry in fields(fec_fast.Plan))}
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == names
    assert SCHEMA["properties"]["attributes"]["additionalProperties"]["propertyNames"]["enum"] == list(ATTRIBUTES)


@pytest.mark.parametrize("name", ["residual", "composed", "mixed", "padded shortcuts", "sizes"])
def test_real_plans_fit_the_schema_and_are_read_back(plans: dict[str, fec_fast.Plan], name: str) -> None:
    text = plans[name].to_json()
    jsonschema.validate(json.loads(text), SCHEMA, cls=jsonschema.Draft202012Validator)
    assert any(record["removed"] for record in plans[name].sets)
    assert fec_fast.Plan.from_json(text) == plans[name]
    assert fec_fast.Plan.from_json(text).to_json() == text


def put(*path: Any) -> Edit:
    """An edit that puts the last of the arguments at the path of the others."""

    def edit(document: dict[str, Any]) -> None:
        *way, last, value = path
        place: Any = document
        for step in way:
            place = place[step]
        place[last] = value

    return edit


WEIGHT = "conv1.weight"
BY_SCHEMA: list[tuple[Edit, str]] = [
    (put("format", "x"), "not a plan"),
    (put("version", 99), "version 99"),
    (lambda d: d.pop("sets"), "entries"),
    (put("fingerprint", "md5:0"), "fingerprint"),
    (put("pruned_fingerprint", None), "pruned_fingerprint"),
    (put("shapes", []), "shapes"),
    (put("shapes", WEIGHT, [32, "1", 3, 3]), "shapes: conv1.weight"),
    (put("keep", WEIGHT, {}), "keep: conv1.weight"),
    (put("keep", WEIGHT, "0", []), "at least one"),
    (put("keep", WEIGHT, "0", [1, 1]), "ascending"),
    (put("keep", WEIGHT, "0", [-1, 1]), "outside"),
    (put("keep", WEIGHT, "0", [0.5, 1]), "whole number"),
    (put("keep", WEIGHT, "00", [1]), "axes"),
    (put("attributes", []), "attributes"),
    (put("attributes", "conv1", [3]), "attributes: conv1"),
    (put("attributes", "conv1", "training", 1), "not an attribute"),
    (put("attributes", "conv1", "groups", 0), "not an attribute"),
    (put("sizes", []), "sizes"),
    (put("sizes", {"conv1": {}}), "sizes: conv1"),
    (put("sizes", {"conv1": {"c": 3}}), "sizes: conv1.c: expected"),
    (put("sizes", {"": {"c": {"before": 4}}}), "sizes: c: expected"),
    (put("sizes", {"": {"c": {"before": 4, "after": 2.5}}}), "sizes: c: the values"),
    (put("sizes", {"": {"c": {"before": [], "after": []}}}), "sizes: c: "),
    (put("sets", {}), "sets"),
    (put("sets", 0, None), r"sets\[0\]"),
    (put("sets", 0, "colour", "red"), r"sets\[0\].*entries"),
    (put("sets", 0, "units", 0), "units"),
    (put("sets", 0, "round", 0), "round"),
    (put("sets", 0, "layers", [1]), "layers"),
    (put("sets", 0, "removed", [-1]), "removed units"),
    (put("sets", 0, "removed", [1, 1]), "removed units"),
    (put("sets", 0, "scores", ["high"]), "scores"),
    (put("sets", 0, "filters", []), "filters"),
    (put("sets", 0, "filters", "conv1", [0.5]), "filters of conv1"),
    (put("criterion", 3), "criterion"),
    (put("formula", "rms"), "formula"),
    (put("sides", "neither"), "sides"),
    (put("pinned", "fc", 3), "pinned"),
    (put("notes", [3]), "notes"),
]
BEYOND_SCHEMA: list[tuple[Edit, str]] = [
    (put("keep", WEIGHT, "7", [0]), "axes"),
    (put("keep", WEIGHT, "0", [3, 1]), "ascending"),
    (put("keep", WEIGHT, "0", [0, 32]), "outside"),
    (put("keep", "ghost", {"0": [0]}), "shape of every tensor"),
    (put("attributes", "conv1", "out_channels", 3), "does not fit"),
    (put("sizes", {"": {"c d": {"before": 4, "after": 2}}}), "the name of an attribute"),
    (put("sizes", {"": {"c": {"before": 4, "after": [2]}}}), "two lists of as many"),
    (put("sizes", {"": {"c": {"before": [4, 2], "after": [2]}}}), "two lists of as many"),
    (put("sizes", {"": {"c": {"before": 4, "after": 4}}}), "sizes shrink"),
    (put("sizes", {"": {"c": {"before": 4, "after": 5}}}), "sizes shrink"),
    (put("sizes", {"": {"c": {"before": [4, 2], "after": [2, 0]}}}), "sizes shrink"),
    (put("sets", 0, "name", "conv9"), "own name"),
    (put("sets", 0, "removed", [5, 3]), "removed units"),
    (put("sets", 0, "removed", [999]), "removed units"),
    (put("sets", 0, "removed", list(range(32))), "at least one must be kept"),
    (put("sets", 0, "removed", [0]), "conv1: its sets leave 31 of 32 filters, its attributes say 16"),
    (put("sets", 0, "scores", [1.0]), "32 finite numbers"),
    (put("sets", 0, "filters", "conv1", [0]), "filters of conv1"),
    (put("sets", 0, "filters", "conv1", list(range(32))[::-1]), "conv1.weight: its kept indices are not the filters"),
    (lambda d: d["sets"][0]["filters"].pop("conv1"), "each of the layers once"),
    (lambda d: d["sets"][0]["filters"]["conv1"].append(None), "filters"),
    (lambda d: d["sets"].append(copy.deepcopy(d["sets"][0])), "removed by one set and decided by another"),
    (lambda d: d["sets"].append({**copy.deepcopy(d["sets"][0]), "removed": []}), "decided by another"),
]


@pytest.mark.parametrize(("edit", "words"), BY_SCHEMA + BEYOND_SCHEMA)
def test_edited_plans_are_refused(plans: dict[str, fec_fast.Plan], edit: Edit, words: str) -> None:
    document = json.loads(plans["residual"].to_json())
    edit(document)
    fits = jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    assert fits == ((edit, words) in BEYOND_SCHEMA)
    with pytest.raises(fec_fast.PlanError, match=words):
        fec_fast.Plan.from_json(json.dumps(document))


def test_a_score_that_is_not_finite_is_refused(plans: dict[str, fec_fast.Plan]) -> None:
    document = json.loads(plans["residual"].to_json())
    document["sets"][0]["scores"][3] = float("nan")
    with pytest.raises(fec_fast.PlanError, match="not JSON"):
        fec_fast.Plan.from_json(json.dumps(document))


def test_a_consistent_edit_is_found_when_the_plan_is_used(plans: dict[str, fec_fast.Plan]) -> None:
    document = json.loads(plans["residual"].to_json())
    for name in ("bn1.weight", "bn1.bias"):
        document["keep"][name]["0"] = document["keep"][name]["0"][1:]
    document["attributes"]["bn1"]["num_features"] -= 1
    plan = fec_fast.Plan.from_json(json.dumps(document))
    with pytest.raises(fec_fast.PlanError, match="edited"):
        fec_fast.apply_plan(zoo.build("zoo:resnet-digits"), plan)


def test_a_plan_of_the_first_version_is_named(plans: dict[str, fec_fast.Plan]) -> None:
    document = {**json.loads(plans["residual"].to_json()), "version": 1}
    with pytest.raises(fec_fast.PlanError, match="version 1; this release reads version 3"):
        fec_fast.Plan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("module", "attribute", "value", "words"),
    [
        ("block", "splits", [7, 4, 5], r"block.splits is \[7, 4, 5\], the plan expects \[7, 5, 4\]"),
        ("block", "splits", 7, "block.splits is 7"),
        ("block", "splits", None, "block.splits is None"),
    ],
)
def test_a_model_that_holds_other_sizes_is_refused_unchanged(
    plans: dict[str, fec_fast.Plan], module: str, attribute: str, value: Any, words: str
) -> None:
    model = divided_network("MixNet")
    setattr(model.get_submodule(module), attribute, value)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fec_fast.PlanError, match=words):
        fec_fast.apply_plan(model, plans["sizes"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda attributes: attributes["conv1"].pop("in_channels"), "sets .* of 'conv1'"),
        (lambda attributes: attributes.update(conv1={"num_features": attributes["conv1"]["out_channels"]}), "'conv1'"),
        (lambda attributes: attributes.pop("conv1"), "narrows 'conv1' and does not set"),
        (lambda attributes: attributes.pop("bn1"), "narrows 'bn1' and does not set"),
    ],
)
def test_a_plan_that_leaves_attributes_behind_is_refused(
    plans: dict[str, fec_fast.Plan], change: Callable[[Any], Any], words: str
) -> None:
    document = json.loads(plans["residual"].to_json())
    change(document["attributes"])
    model = zoo.build("zoo:resnet-digits")
    before = [list(value.shape) for value in model.state_dict().values()]
    with pytest.raises(fec_fast.PlanError, match=words):
        fec_fast.apply_plan(model, fec_fast.Plan.from_json(json.dumps(document)))
    assert [list(value.shape) for value in model.state_dict().values()] == before
