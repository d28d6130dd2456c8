"""The pages that the benchmarks write say what the committed results say."""

from __future__ import annotations

import importlib
import json
import math
import shlex
from pathlib import Path

import pytest
import torch

from fec_fast import Formula
from fec_fast.cli import recipe as recipes
from fec_fast.scoring import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("writer", "results", "page"),
    [
        ("benchmarks.scoring.page", "scoring.json", "performance.md"),
        ("benchmarks.coverage.page", "coverage.json", "coverage.md"),
        ("benchmarks.surgery.page", "surgery.json", "surgery.md"),
        ("benchmarks.study.page", "study.json", "study.md"),
        ("benchmarks.study.trials_page", "trials.json", "trials.md"),
        ("benchmarks.detection.page", "ssd.json", "ssd.md"),
    ],
)
def test_a_page_is_that_of_the_results(writer: str, results: str, page: str) -> None:
    module = importlib.import_module(writer)
    result = json.loads((ROOT / "benchmarks" / "results" / results).read_text())
    assert module.page(result) == (ROOT / "docs" / page).read_text()


def test_the_recipes_page_is_that_of_the_runs() -> None:
    module = importlib.import_module("benchmarks.recipes.page")
    assert module.kept() and module.page(module.kept()) == (ROOT / "docs" / "results.md").read_text()
    command = module.command("vgg16-cifar10", module.kept()["vgg16-cifar10"]["recipe"])
    assert "--set finetune.epochs=8" in command and "budget" not in command


def test_the_commands_of_the_recipes_page_are_what_was_run() -> None:
    pytest.importorskip("jsonschema")
    module = importlib.import_module("benchmarks.recipes.page")
    for name, run in module.kept().items():
        words = shlex.split(module.command(name, run["recipe"]).replace("\\\n", " "))
        options: dict[str, list[str]] = {}
        for key, value in zip(words[3::2], words[4::2], strict=True):
            options.setdefault(key, []).append(value)
        given = {"data.name": options["--data"][0], "weights": options.get("--weights", [None])[0]}
        typed = recipes.read_recipe(ROOT / words[2], options["--set"], given).content
        assert {key: value for key, value in typed.items() if value is not None} == {
            key: value for key, value in run["recipe"].items() if value is not None
        }


def test_the_study_has_every_combination_once() -> None:
    pytest.importorskip("PIL")
    planned = importlib.import_module("benchmarks.study.jobs")
    keys = [json.dumps(job.key()) for job in planned.jobs(3)]
    assert len(keys) == len(set(keys))
    formulas = dict(planned.formulas())
    assert len(formulas) == 4 * 2 * 2 * 5  # compress, axis, sides, and the entropies with their scales of tau
    rows = [json.loads(key) for key in keys]
    assert {row[4] for row in rows if row[3] == "params"} == {0.5, 0.7, 0.9, 0.94}
    assert {row[2] for row in rows} >= {"uniform", "entropy", "global", "sensitivity"}
    assert {row[5] for row in rows} == {0, 1, 2}
    study = importlib.import_module("benchmarks.study.run")
    assert study.packed([True, False, False, True, False, True, True, True]) == "97"
    assert study.packed([True, False, False, True, True]) == "13"


def test_scores_that_were_tried_by_hand() -> None:
    pytest.importorskip("PIL")
    trials = importlib.import_module("benchmarks.study.trials")
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trials.entropy(weight), reference.entropy(weight, Formula()))
    # Two filters of one weight each, 1 and 4: distances 0 and 3, of which the mean is 3/2.
    pair = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    near, far = (1 + math.exp(-2)) / 2, (1 + math.exp(-4)) / 2
    zero = torch.tensor([near + math.exp(-2 / 3), near + math.exp(-8 / 3)], dtype=torch.float64) / 2
    norms = torch.tensor([1.0, 4.0], dtype=torch.float64)
    same = torch.ones(2, dtype=torch.float64)
    for name, expected in (
        ("city-block distance", -math.log(near) * same),
        ("a filter of zeros among the others", -zero.log()),
        ("both of these", -zero.log()),
        ("exp(-(d / tau)^2)", -math.log(far) * same),
        ("exp(H) - 1", (1 / near - 1) * same),
        ("H times L2", -math.log(near) * norms),
    ):
        torch.testing.assert_close(trials.TRIED[name](pair), expected)
    assert not trials.entropy(torch.ones(3, 2, 1, 1)).any()
    keys = [json.dumps(job.key()) for job in trials.trials(3)]
    assert len(keys) == len(set(keys))


def test_intervals_of_the_study_by_hand() -> None:
    estimates = importlib.import_module("benchmarks.study.estimates")
    first, second = estimates.rights("97", 8), estimates.rights("07", 8)
    assert first.tolist() == [1, 0, 0, 1, 0, 1, 1, 1] and second.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    one = estimates.estimate({0: estimates.rights("e" * 25, 100)})
    assert one.mean == 75 and one.half() == pytest.approx(
        198.42 * (0.75 * 0.25 / 100) ** 0.5, rel=1e-4
    )  # t, 99 degrees
    assert one.half(among=7) / one.half() == pytest.approx(2.747 / 1.984, rel=1e-3)  # two-sided at 0.05 / 7
    # two seeds: 5 and 3 of 8 are right; per image the means are 1/2, 0, 0, 1/2, 0, 1, 1, 1
    two = estimates.estimate({0: first, 1: second})
    assert two.mean == 50
    assert two.half() == pytest.approx(261.54 * (0.1875 / 8 + 0.03125 / 2) ** 0.5, rel=1e-4)  # t, 4.73 degrees
    # by the seed that both have
    assert estimates.difference({0: first, 1: second}, {0: second, 2: first}).mean == 25
    four = estimates.pooled([one] * 4)  # t, 396 degrees
    assert four.mean == 75 and four.half() / one.half() == pytest.approx(1.96597 / 1.98422 / 2, rel=1e-4)


def test_the_verdict_picks_one_rival_for_all_networks_or_one_for_each() -> None:
    page = importlib.import_module("benchmarks.study.page")
    right = {  # of 8 images, by network and criterion
        ("resnet56", "fec_l1"): "f0",
        ("resnet56", "l1"): "fe",
        ("resnet56", "l2"): "e0",
        ("vgg16", "fec_l1"): "f0",
        ("vgg16", "l1"): "80",
        ("vgg16", "l2"): "f0",
        ("vgg16", "fpgm"): "ff",  # not measured on the other network: no one for all
    }
    rows = [{"key": [n, c, "entropy", "params", 0.5, 0, True], "right": bits} for (n, c), bits in right.items()]
    dense = {"resnet56": {"images": 8}, "vgg16": {"images": 8}}
    lines = page.verdict(page.Rows({"rows": rows, "dense": dense}), ("resnet56", "vgg16"), True)
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in lines if " | " in line}
    # l1: (4 - 7 + 4 - 1) / 16; l2: (4 - 3) / 16; of each network: (4 - 7 + 4 - 8) / 16
    assert cells["the best classical one"].startswith("+0.0 ± ") and cells["the best classical one"].endswith("(l1)")
    assert cells["the best of each network"].startswith("-43.8 ± ")
    assert cells["l2, filters only"].startswith("+6.2 ± ")


def test_policies_are_compared_on_the_networks_that_have_both() -> None:
    page = importlib.import_module("benchmarks.study.page")
    right = {("resnet56", "entropy"): "f0", ("resnet56", "uniform"): "c0", ("vgg16", "entropy"): "ff"}
    right[("vgg16", "global")] = "ff"
    rows = [{"key": [n, "fec", policy, "macs", 0.5, 0, False], "right": bits} for (n, policy), bits in right.items()]
    rows = page.Rows({"rows": rows, "dense": {"resnet56": {"images": 8}, "vgg16": {"images": 8}}})
    uniform, everywhere = page.spreads(rows, ("resnet56", "vgg16"), False)[2:4]
    assert uniform.startswith("| uniform |  |  |  |  | +25.0 ± ")  # (4 - 2) / 8
    assert everywhere == "| global |  |  |  |  | +0.0 ± 0.0 |  |"
    assert page.spreads(rows, ("resnet56", "vgg16"), True) == []


def test_the_study_shows_every_formula() -> None:
    pytest.importorskip("PIL")
    planned, page = importlib.import_module("benchmarks.study.jobs"), importlib.import_module("benchmarks.study.page")
    names = dict(planned.formulas())
    rows = [{"key": ["resnet56", name, "entropy", "params", 0.5, 0, False], "right": "e"} for name in names]
    lines = page.formulas(page.Rows({"rows": rows, "dense": {"resnet56": {"images": 4}}}))
    assert sum(line.count("75.0") for line in lines) == len(names)
    assert any("| rms, channels, similarity |" in line for line in lines)
    assert page.criteria(page.Rows({"rows": rows, "dense": {}}), "resnet56", False) == []
