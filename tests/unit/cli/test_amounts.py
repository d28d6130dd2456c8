"""Amounts of pruning in words: the same on the command line, in recipes and in Python, and never backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast import Budget
from fec_fast.cli.amounts import amount_of, amounts_of
from fec_fast.utils.errors import BudgetError, RatioError

SHARES = st.integers(1, 99).map(lambda percent: percent / 100)


@given(st.sampled_from(["params", "macs", "memory", "filters"]), SHARES)
def test_what_is_removed_is_not_kept(name: str, share: float) -> None:
    removed = amounts_of([f"{name}={share}"], None, None)
    kept = amounts_of(None, [f"{name}={1 - share!r}"], None)
    assert [as_share(amount) for amount in removed + kept] == [pytest.approx(share)] * 2
    assert amounts_of(None, None, [f"params={share}"]) == [Budget(params=share)]


def as_share(amount: Budget | float) -> float:
    return amount.share_of(1e9) if isinstance(amount, Budget) else amount


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=1.2G", Budget(macs="1.2G")),
        ("params=5M", Budget(params="5M")),
        ("memory=50 MB", Budget(memory="50 MB")),
        ("latency=3 ms", Budget(latency="3 ms")),
        ("params=0.3", Budget(params=0.7)),
    ],
)
def test_amounts_that_may_be_left(text: str, budget: Budget) -> None:
    assert amounts_of(None, [text], None) == [budget]


@pytest.mark.parametrize(
    ("remove", "keep", "words"),
    [
        (
            ["macs=1.2G"],
            None,
            "--remove macs=1.2G: give a share, such as 0.5; an amount that may be left belongs to keep",
        ),
        (["latency=3ms"], None, "latency has no share: --keep latency=3ms"),
        (None, ["latency=50%"], "a latency has no share: give a time with its unit, such as 3ms"),
        (["parms=0.5"], None, "nearest: 'params'"),
        (["0.5"], None, "--remove '0.5': write NAME=NUMBER"),
        (["params=70"], None, "between 0 and 1"),
        (["filters=1"], None, "between 0 and 1"),
        (["params="], None, "give a share"),
        (None, ["latency=3"], "give a time with its unit"),
        (None, ["params=30"], "between 0 and 1"),
        (None, ["filters=many"], "give a share, such as 0.5$"),
        (None, ["macs=1.2X"], "a unit"),
        (None, ["params=nan"], "between 0 and 1"),
    ],
)
def test_what_is_wrong_is_named(remove: Any, keep: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        amounts_of(remove, keep, None)


def test_a_recipe_says_the_same() -> None:
    assert amount_of("remove", {"params": 0.7}, "x") == Budget(params=0.7)
    assert amount_of("keep", {"latency": "3 ms"}, "x") == Budget(latency="3 ms")
    assert amount_of("keep", {"filters": 0.3}, "x") == 0.7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()


def test_prune_takes_the_share_to_remove() -> None:
    example = torch.zeros(1, 3, 8, 8)
    kept = [
        len(layer.weight)
        for layer in fec_fast.prune(network(), example, remove=0.25, recover=None).model
        if len(layer._parameters)
    ]
    assert kept == [12, 18, 4]
    by_layer = fec_fast.prune(network(), example, remove={"0": 0.5}, recover=None).model
    assert [len(layer.weight) for layer in by_layer if len(layer._parameters)] == [8, 24, 4]
    old = [
        fec_fast.prune(network(), example, **{"ratio": 0.25}, recover=None),
        fec_fast.prune(network(), example, ratios={"0": 0.5}, recover=None),
    ]
    assert [len(result.model[0].weight) for result in old] == [12, 8]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"remove": 1.0}, "remove=1.0: give the share of channels to remove"),
        ({"remove": {"0": 2}}, r"remove\['0'\]=2: give the share"),
        ({"remove": "half"}, "remove='half': give the share"),
        ({"remove": 0.5, "ratio": 0.5}, "remove= says how much .* and ratio= too"),
        ({"remove": 0.5, "ratios": {"0": 0.5}}, "remove= says how much .* and ratios= too"),
        ({"remove": 0.5, "budget": Budget(params=0.5)}, "remove= says how much .* and budget= too"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RatioError, match=words):
        fec_fast.prune(network(), torch.zeros(1, 3, 8, 8), **options, recover=None)


def test_rounds_refuse_a_share_of_every_layer() -> None:
    with pytest.raises(RatioError, match="remove=: give budget= alone"):
        fec_fast.prune_iteratively(
            network(), torch.zeros(1, 3, 8, 8), budget=Budget(params=0.5), train=print, remove=0.5, recover=None
        )
