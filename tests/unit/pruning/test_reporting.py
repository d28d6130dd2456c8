"""Reports of a result: arguments are checked before anything is written, models are left as they were."""

from __future__ import annotations

import copy
import dataclasses
import html
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fec_fast
from fec_fast.pruning.allocation.policies import GlobalPolicy
from fec_fast.pruning.reporting import report_content
from helpers.networks import SharedWeight

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def pruned() -> tuple[SharedWeight, torch.Tensor, fec_fast.PruneResult]:
    torch.manual_seed(0)
    model, image = SharedWeight().eval(), torch.randn(1, 3, 8, 8)
    return model, image, fec_fast.prune(model, image, ratio=0.5, recover=None)


def test_a_report_leaves_the_models_as_they_were(pruned: Any, tmp_path: Path) -> None:
    model, image, result = pruned
    before = [copy.deepcopy(network.state_dict()) for network in (model, result.model)]
    state = torch.random.get_rng_state()
    assert result.report(tmp_path / "one.html", model, image) == tmp_path / "one.html"
    assert torch.equal(torch.random.get_rng_state(), state)
    for network, old in zip((model, result.model), before, strict=True):
        new = network.state_dict()
        assert all(torch.equal(new[name], tensor) for name, tensor in old.items())


def test_the_same_result_gives_the_same_file(pruned: Any, tmp_path: Path) -> None:
    model, image, result = pruned
    files = [result.report(tmp_path / name, model, image).read_bytes() for name in ("one.html", "two.html")]
    assert files[0] == files[1]


def test_a_result_alone_is_enough(pruned: Any, tmp_path: Path) -> None:
    result = pruned[2]
    text = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>SharedWeight</h1>" in text
    assert f"{result.before.parameters:,}" in text or "k →" in text
    for key in ("sensitivity", "distances", "images", "first-layer"):
        assert f'<section id="{key}"' not in text


def test_links_name_those_that_read_the_channels(pruned: Any) -> None:
    model, image, result = pruned
    links = {link.name: link for link in report_content(result.plan, "t", original=model, example_inputs=image).links}
    expected = {coupled.name: coupled for coupled in fec_fast.couplings(model, image).sets}
    assert set(links) == set(expected)
    assert "outer" in links["inner"].readers and links["inner"].makers == ("inner",)
    assert 0 < links["inner"].share < 1
    without = report_content(result.plan, "t", original=model).links
    assert [link.readers for link in without] == [()] * len(without)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (None, 'Removal spread over the layers by the policy "ablation"'),
        ("entropy", 'by the policy "entropy"'),
        ("uniform", 'by the policy "uniform": every coupled set loses the same share.'),
        (GlobalPolicy(price_power=0.0), 'by the policy "global"'),
        ({"stem": 0.5, "inner": 0.7}, "Removal spread over the layers in the given proportions."),
    ],
)
def test_the_policy_is_named(pruned: Any, tmp_path: Path, ratios: Any, words: str) -> None:
    result = fec_fast.prune(
        pruned[0], pruned[1], budget=fec_fast.Budget(params=0.2), ratios=ratios, verify=False, recover=None
    )
    text = html.unescape(result.report(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert words in text


def test_rounds_are_joined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = SharedWeight().eval(), torch.randn(1, 3, 8, 8)
    first = fec_fast.prune(model, image, ratio=0.5, recover=None)
    second = fec_fast.prune(first.model, image, ratio=0.5, recover=None)
    plan = fec_fast.compose(first.plan, second.plan)
    links = report_content(plan, "t").links
    assert len(links) == len(first.plan.sets)
    stem = next(link for link in links if "stem" in link.makers)
    assert stem.share == second.model.stem.out_channels / model.stem.out_channels
    removed = sum(len(record["removed"]) for record in plan.sets)
    assert repr(plan).startswith(f"<Plan: {removed} units removed, ") and " in 2 rounds, " in repr(plan)
    result = dataclasses.replace(second, plan=plan, before=first.before)
    assert ", round 2" in result.report(tmp_path / "report.html", model, image).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"original": torch.nn.Conv2d(3, 8, 1)}, fec_fast.PlanError, "for another model"),
        ({"original": None}, fec_fast.ArgumentError, "example_inputs: the network before pruning"),
        ({"sensitivity": {"a": 1}}, fec_fast.ArgumentError, "expected a fec_fast.Sensitivity, got a dict"),
        ({"filters": ["stem"]}, fec_fast.ArgumentError, "filters: 'stem': give pairs"),
        ({"filters": [("nowhere", 1)]}, fec_fast.LayerError, "no layer 'nowhere' in the plan"),
        ({"filters": [("stem", 99)]}, fec_fast.LayerError, "'stem' has the filters 0 to 7, not 99"),
        ({"images": [torch.rand(3, 8, 8)]}, fec_fast.InputError, "SharedWeight"),
        (
            {"original": None, "example_inputs": None, "filters": [("stem", 1)]},
            fec_fast.ArgumentError,
            "give original=",
        ),
    ],
)
def test_wrong_arguments_write_nothing(
    pruned: Any, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, image, result = pruned
    arguments = {"original": model, "example_inputs": image, **change}
    with pytest.raises(error, match=message):
        result.report(tmp_path / "report.html", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [3, None])
def test_what_is_no_path(pruned: Any, path: Any) -> None:
    with pytest.raises(fec_fast.ArgumentError, match="path=.*: give a path"):
        pruned[2].report(path)


def test_a_missing_library_names_the_command(pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(fec_fast.MissingExtraError, match=r"pip install 'fec_fast\[report\]'"):
        pruned[2].report(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
