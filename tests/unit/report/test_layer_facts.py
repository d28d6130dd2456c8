"""Layer facts: the sentences say what the numbers say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.report.content import ReportContent
from fec_fast.report.layer_facts import LayerFacts, facts_of


class Residual(nn.Module):
    """Two tied layers, two others of different widths, and outputs that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.wide, self.head = nn.Conv2d(16, 64, 5, padding=2), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x).relu()
        x = self.wide(x + self.two(x)).relu()
        return self.head(x.mean((2, 3)))


def facts(result: fec_fast.PruneResult, **more: Any) -> dict[str, LayerFacts]:
    content = ReportContent("title", result.plan, before=result.before, after=result.after, **more)
    return {one.width.name: one for one in facts_of(content)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def test_sizes_and_order_are_those_of_the_model(model: nn.Module) -> None:
    result = fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratios={"wide": 0.75}, recover=None)
    by_name = facts(result)
    assert list(by_name) == ["one", "two", "wide", "head"]
    assert by_name["wide"].before == result.before.by_layer["wide"]
    assert by_name["wide"].after == result.after.by_layer["wide"]
    assert [by_name[name].lost for name in by_name] == [0, 0, 0.75, 0]


def test_a_layer_that_lost_much_says_why(model: nn.Module) -> None:
    result = fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratios={"wide": 0.75}, criterion="l1", recover=None)
    by_name = facts(result, distinct={"wide": 20.0})
    why = " ".join(by_name["wide"].why)
    assert "Lost 75% of its filters, all layers together 50%." in why
    record = next(record for record in result.plan.sets if record["name"] == "wide")
    scores = torch.tensor(record["scores"], dtype=torch.float64)
    removed = torch.zeros(64, dtype=torch.bool).index_fill(0, torch.tensor(record["removed"]), True)
    assert f"The highest removed score is {float(scores[removed].max() / scores[~removed].mean()):.0%}" in why
    assert "About 20 of its 64 filters are distinct (31%)." in why
    assert not any("Lost" in reason for reason in by_name["one"].why)
    assert "Its channels are tied to those of two: one decision for all." in by_name["one"].why
    assert by_name["head"].why == ("Keeps all its filters: its channels are outputs of the model.",)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [("reconstruction", ", once the others make up for them, an"), ("ablation", " an")],
)
def test_the_error_of_what_was_removed_is_named(model: nn.Module, criterion: str, words: str) -> None:
    images = torch.randn(64, 3, 8, 8)
    result = fec_fast.prune(
        model, images[:1], ratios={"wide": 0.5}, criterion=criterion, calibration=images, recover=None
    )
    record = next(record for record in result.plan.sets if record["name"] == "wide")
    error = max(record["scores"][unit] for unit in record["removed"])
    assert f"Without the 32 removed units{words} estimated error of {error:.2g} is left" in facts(result)["wide"].why[1]


def test_the_largest_filters_are_named(model: nn.Module) -> None:
    by_name = facts(fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratio=0.5, recover=None))
    assert "One filter holds 401 parameters, more than in any other layer." in by_name["wide"].why
    assert "One filter holds" not in " ".join(by_name["one"].why + by_name["two"].why)


def test_a_plan_alone_gives_widths(model: nn.Module) -> None:
    plan = fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratio=0.5, recover=None).plan
    rows = {one.width.name: one for one in facts_of(ReportContent("title", plan))}
    assert (rows["wide"].width.kept, rows["wide"].width.width) == (32, 64)
    assert rows["wide"].before.parameters == 0
