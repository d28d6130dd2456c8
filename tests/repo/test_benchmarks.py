"""The pages that the benchmarks write say what the committed results say."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.imports import run as imports
from benchmarks.study import comparisons, estimates, jobs, rows, tables
from fec_fast import Formula
from fec_fast.cli import recipe as recipes
from fec_fast.pruning import criteria
from fec_fast.pruning.allocation import policies
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
        ("benchmarks.defaults.page", "defaults.json", "defaults.md"),
        ("benchmarks.sparse_training.page", "sparse_training.json", "sparse_training.md"),
        ("benchmarks.trained.page", "trained.json", "trained.md"),
        ("benchmarks.detection.page", "ssd.json", "ssd.md"),
        ("benchmarks.recovery.page", "recovery.json", "recovery.md"),
        ("benchmarks.latency.page", "latency.json", "latency.md"),
        ("benchmarks.int8.page", "int8.json", "int8.md"),
    ],
)
def test_a_page_is_that_of_the_results(writer: str, results: str, page: str) -> None:
    module = importlib.import_module(writer)
    result = json.loads((ROOT / "benchmarks" / "results" / results).read_text())
    assert module.page(result) == (ROOT / "docs" / page).read_text()


def test_the_recipes_page_is_that_of_the_runs() -> None:
    module = importlib.import_module("benchmarks.recipes.page")
    assert module.recorded() and module.page(module.recorded()) == (ROOT / "docs" / "results.md").read_text()
    command = module.command("vgg16-cifar10", module.recorded()["vgg16-cifar10"]["recipe"])
    assert "--set finetune.epochs=8" in command and "budget" not in command


def test_the_commands_of_the_recipes_page_are_what_was_run() -> None:
    pytest.importorskip("jsonschema")
    module = importlib.import_module("benchmarks.recipes.page")
    recorded = module.recorded()
    assert recorded
    for name, run in recorded.items():
        words = shlex.split(module.command(name, run["recipe"]).replace("\\\n", " "))
        options: dict[str, list[str]] = {}
        for key, value in zip(words[3::2], words[4::2], strict=True):
            options.setdefault(key, []).append(value)
        given = {"data.name": options["--data"][0], "weights": options.get("--weights", [None])[0]}
        typed = recipes.read_recipe(ROOT / words[2], options["--set"], given).content
        off = {"dense": False, "teacher": False}  # where a recipe does not say it
        assert off | {key: value for key, value in typed.items() if value is not None} == off | {
            key: value for key, value in run["recipe"].items() if value is not None
        }


def test_the_study_has_every_combination_once() -> None:
    pytest.importorskip("PIL")
    keys = [json.dumps(job.key()) for job in jobs.jobs(3)]
    assert len(keys) == len(set(keys))
    formulas = dict(jobs.formulas())
    assert len(formulas) == 4 * 2 * 2 * 5  # compress, axis, sides, and the entropies with their scales of tau
    planned = [json.loads(key) for key in keys]
    assert {key[4] for key in planned if key[3] == "params"} == {0.5, 0.7, 0.9, 0.94}
    assert {key[2] for key in planned} >= {"uniform", "entropy", "global", "sensitivity"}
    assert {key[5] for key in planned} == {0, 1, 2}
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
    first, second = estimates.unpacked("97", 8), estimates.unpacked("07", 8)
    assert first.tolist() == [1, 0, 0, 1, 0, 1, 1, 1] and second.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    one_seed = estimates.estimate({0: estimates.unpacked("e" * 25, 100)})
    assert one_seed.mean == 75 and one_seed.half_width() == pytest.approx(
        198.42 * (0.75 * 0.25 / 100) ** 0.5, rel=1e-4
    )  # t, 99 degrees
    # two-sided at 0.05 / 7
    assert one_seed.half_width(among=7) / one_seed.half_width() == pytest.approx(2.747 / 1.984, rel=1e-3)
    # two seeds: 5 and 3 of 8 are right; per image the means are 1/2, 0, 0, 1/2, 0, 1, 1, 1
    two_seeds = estimates.estimate({0: first, 1: second})
    assert two_seeds.mean == 50
    assert two_seeds.half_width() == pytest.approx(261.54 * (0.1875 / 8 + 0.03125 / 2) ** 0.5, rel=1e-4)  # t, 4.73
    # by the seed that both have
    assert estimates.difference({0: first, 1: second}, {0: second, 2: first}).mean == 25
    four = estimates.pooled([one_seed] * 4)  # t, 396 degrees
    assert four.mean == 75 and four.half_width() / one_seed.half_width() == pytest.approx(
        1.96597 / 1.98422 / 2, rel=1e-4
    )


def test_a_difference_is_level_where_its_interval_contains_zero() -> None:
    def verdict(mean: float, variance: float, among: int = 1) -> str:
        return estimates.Estimate(mean, ((variance, 10**6),)).verdict(among)

    assert verdict(2.0, 1.0) == "ahead" and verdict(-2.0, 1.0) == "behind"  # half the width is 1.96
    assert verdict(1.95, 1.0) == "level" and verdict(-1.95, 1.0) == "level"
    assert verdict(2.0, 1.0, among=7) == "level" and verdict(0.0, 0.0) == "level"


def study_rows(right: dict[tuple[str, str, str], str], currency: str = "params", tuned: bool = True) -> rows.Rows:
    """Rows of the study by network, criterion and policy, with 8 test images, of one seed at a share of 0.5."""
    keys = {key: [*key, currency, 0.5, 0, tuned] for key in right}
    networks = {network: {"images": 8} for network, *_ in right}
    return rows.Rows({"rows": [{"key": keys[key], "right": bits} for key, bits in right.items()], "dense": networks})


RIGHT = {  # of 8 images, by network and criterion
    ("resnet56", "fec_l1", "entropy"): "f0",
    ("resnet56", "l1", "entropy"): "fe",
    ("resnet56", "l2", "entropy"): "e0",
    ("vgg16", "fec_l1", "entropy"): "f0",
    ("vgg16", "l1", "entropy"): "80",
    ("vgg16", "l2", "entropy"): "f0",
    ("vgg16", "fpgm", "entropy"): "ff",  # not measured on the other network: not compared over both
}


def test_the_best_rival_is_one_for_all_networks_or_one_for_each() -> None:
    lines = comparisons.table_of_criteria(study_rows(RIGHT), ("resnet56", "vgg16"), True).splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in lines if " | " in line}
    # l1: (4 - 7 + 4 - 1) / 16; l2: (4 - 3) / 16; of each network: (4 - 7 + 4 - 8) / 16
    best = cells["the best classical criterion"]
    assert best.startswith("+0.0 ± ") and best.endswith("(l1)")
    assert cells["the best one of each network"].startswith("-43.8 ± ")
    assert cells["l2, filters only"].startswith("+6.2 ± ")


def test_the_findings_of_the_study_follow_from_its_rows() -> None:
    networks = ("resnet56", "vgg16")
    findings = comparisons.criterion_findings(study_rows(RIGHT), networks, True)
    assert "the best classical criterion: level at every budget" in findings
    # All 8 images right against none, on both networks: no variance, so ahead by 100 points, or behind.
    for ours, theirs, verdict in (("ff", "00", "ahead"), ("00", "ff", "behind")):
        right = {(n, c, "entropy"): bits for n in networks for c, bits in (("fec_l1", ours), ("l1", theirs))}
        findings = comparisons.criterion_findings(study_rows(right), networks, True)
        assert "`l1` on filters only: " + verdict + " at every budget" in findings
        better = comparisons.better_criteria(study_rows(right), networks, True)
        assert better == (["-50 %: l1 (+100.0)"] if verdict == "behind" else [])
    right = {(n, "fec", policy): bits for n in networks for policy, bits in (("entropy", "ff"), ("uniform", "00"))}
    assert comparisons.policy_findings(study_rows(right), networks, True) == ["`uniform`: ahead at every budget"]


def test_the_study_compares_with_the_defaults_of_the_package() -> None:
    assert criteria.DEFAULT_CRITERION == rows.CRITERION
    assert policies.DEFAULT_POLICY == jobs.POLICY


def test_policies_are_compared_on_the_networks_that_have_both() -> None:
    right = {("resnet56", "fec", "entropy"): "f0", ("resnet56", "fec", "uniform"): "c0"}
    right |= {("vgg16", "fec", "entropy"): "ff", ("vgg16", "fec", "global"): "ff"}
    some, networks = study_rows(right, "macs", tuned=False), ("resnet56", "vgg16")
    uniform, everywhere = comparisons.table_of_policies(some, networks, False).splitlines()[2:4]
    assert uniform.startswith("| uniform |  |  |  |  | +25.0 ± ")  # (4 - 2) / 8
    assert everywhere == "| global |  |  |  |  | +0.0 ± 0.0 |  |"
    assert comparisons.table_of_policies(some, networks, True) == ""


def test_the_study_shows_every_formula() -> None:
    names = dict(jobs.formulas())
    of_formulas = [{"key": ["resnet56", name, "entropy", "params", 0.5, 0, False], "right": "e"} for name in names]
    some = rows.Rows({"rows": of_formulas, "dense": {"resnet56": {"images": 4}}})
    lines = tables.table_of_formulas(some).splitlines()
    assert sum(line.count("75.0") for line in lines) == len(names)
    assert any("| rms, channels, similarity |" in line for line in lines)
    assert tables.table_of_criteria(some, "resnet56", False) == ""


def test_import_times_are_medians_over_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = [{"torch": {"wall": 2.0, "cpu": 1.0}, "fec_fast": {"wall": w, "cpu": w / 2}} for w in (0.1, 0.4, 0.2)]
    assert imports.medians(times) == {"torch": {"wall": 2.0, "cpu": 1.0}, "fec_fast": {"wall": 0.2, "cpu": 0.1}}
    monkeypatch.setattr(imports, "import_times", lambda: times[0])
    monkeypatch.setattr(imports, "RESULT", tmp_path / "imports.json")
    monkeypatch.setattr(sys, "argv", ["imports"])
    imports.main()
    result = json.loads((tmp_path / "imports.json").read_text())
    assert len(result["rows"]) == 9 and result["medians"] == times[0]
    assert set(result["runs"][result["run"]]["machine"]) >= {"processor", "cores", "threads", "kernels"}
    monkeypatch.setattr(sys, "argv", ["imports", "--runs", "3"])
    with pytest.raises(SystemExit):
        imports.main()
