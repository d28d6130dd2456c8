"""The table of a sweep in a report."""

from __future__ import annotations

import pytest
import torch

import fec_fast
from fec_fast.choosing.points import SweepPoint
from fec_fast.plan.plan import Plan
from fec_fast.report.content import ReportContent
from fec_fast.report.sweep import sweep_section

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1))
    return fec_fast.prune(model, torch.randn(1, 1, 4, 4), ratio=0.5, recover=None).plan


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (fec_fast.Budget(macs=0.5), "macs − 50%"),
        (fec_fast.Budget(params=0.5572), "params − 55.72%"),
        (fec_fast.Budget(macs=0.125), "macs − 12.5%"),
        (fec_fast.Budget(macs="1.2G"), "macs ≤ 1.2G"),
        (fec_fast.Budget.keep(latency="3ms"), "latency_ms ≤ 3"),
    ],
)
def test_a_budget_is_shown_as_it_was_given(plan: Plan, budget: fec_fast.Budget, words: str) -> None:
    point = SweepPoint(str(budget), "uniform", "l1", 0.8, None, 500, 50, None, None)
    found = fec_fast.Sweep("accuracy", fec_fast.DenseNetwork(0.9, 1000, 100), (point,), {})
    body = sweep_section(ReportContent("x", plan), found).body
    assert f"{words}<" in body.replace("<wbr>", "")  # a place where a line may break
