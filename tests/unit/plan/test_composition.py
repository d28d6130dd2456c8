"""Two plans as one: applied to the original, it has the effect of both in turn."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast.vision import zoo
from helpers.comparison import assert_same_weights
from helpers.divided import divided_network
from helpers.networks import SharedWeight

DIGIT = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def prune(model: nn.Module, **options: Any) -> fec_fast.PruneResult:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was pruned")
        return fec_fast.prune(model, DIGIT, **options, recover=None)


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = SharedWeight(in_channels=1).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert_same_weights(one, other)
    for (name, a), (_, b) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert a.extra_repr() == b.extra_repr(), name
    with torch.no_grad():
        assert torch.equal(one(DIGIT), other(DIGIT))


ROUNDS = st.fixed_dictionaries(
    {
        "ratio": st.floats(0, 0.8),
        "criterion": st.sampled_from(["fec_l1", "fec", "l1", "random"]),
        "sides": st.sampled_from(["both", "producer"]),
        "ignore": st.sampled_from([(), ("one",), ("up",)]),
    }
)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), rounds=st.lists(ROUNDS, min_size=3, max_size=3))
def test_a_composed_plan_is_the_plans_in_turn(seed: int, rounds: list[dict[str, Any]]) -> None:
    original = small(seed)
    model, plans = original, []
    for options in rounds:
        result = prune(model, **options)
        model = result.model
        plans.append(result.plan)
    first, second, third = plans
    left = fec_fast.compose(fec_fast.compose(first, second), third)
    right = fec_fast.compose(first, fec_fast.compose(second, third))
    for plan in (left, right, fec_fast.Plan.from_json(left.to_json())):
        fresh = copy.deepcopy(original)
        fec_fast.apply_plan(fresh, plan)
        assert_same(fresh, model)
    assert (left.keep, left.attributes, left.sets, left.pinned) == (
        right.keep,
        right.attributes,
        right.sets,
        right.pinned,
    )
    assert set(left.notes) >= set(first.notes + second.notes + third.notes)
    assert fec_fast.verify_equivalence(original, model, left, DIGIT) < 1e-9
    for name in left.pinned:
        whole, now = original.get_submodule(name), model.get_submodule(name)
        width = "out_features" if isinstance(whole, nn.Linear) else "out_channels"
        assert getattr(whole, width) == getattr(now, width)


@pytest.fixture(scope="module")
def rounds() -> tuple[nn.Module, fec_fast.PruneResult, fec_fast.PruneResult]:
    torch.manual_seed(0)
    model = zoo.build("zoo:resnet-digits").eval()
    first = prune(model, ratio=0.5, criterion="l1", sides="producer", ignore=("layer1.0.conv1",))
    trained = copy.deepcopy(first.model).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        trained(DIGIT).square().mean().backward()
        optimizer.step()
    return model, first, prune(trained.eval(), ratio=0.25, ignore=("conv1",))


def test_prune_train_prune_save_load(rounds: Any, tmp_path: Any) -> None:
    _, first, second = rounds
    plan = fec_fast.compose(first.plan, second.plan)
    path = fec_fast.save(second.model, plan, tmp_path / "twice")
    torch.manual_seed(9)
    assert_same(fec_fast.load(zoo.build("zoo:resnet-digits").eval(), path), second.model)


def test_contents_of_a_composed_plan(rounds: Any) -> None:
    model, first, second = rounds
    before = (first.plan.to_json(), second.plan.to_json())
    plan = fec_fast.compose(first.plan, second.plan)
    assert (first.plan.to_json(), second.plan.to_json()) == before
    assert plan.fingerprint == first.plan.fingerprint != plan.pruned_fingerprint == second.plan.pruned_fingerprint
    assert (plan.criterion, plan.formula, plan.sides) == ("fec_l1", second.plan.formula, "both")
    assert "criterion of the rounds to 1: l1; afterwards: fec_l1" in plan.notes
    assert "sides of the rounds to 1: producer; afterwards: both" in plan.notes
    assert [record["round"] for record in plan.sets] == [1] * len(first.plan.sets) + [2] * len(second.plan.sets)
    assert plan.sets[: len(first.plan.sets)] == first.plan.sets
    for record, own in zip(plan.sets[len(first.plan.sets) :], second.plan.sets, strict=True):
        assert (record["scores"], record["removed"]) == (own["scores"], own["removed"])
        for layer, units in record["filters"].items():
            assert len(units) == model.get_submodule(layer).out_channels
            kept = first.plan.keep.get(f"{layer}.weight", {}).get("0", list(range(len(units))))
            assert [units[index] for index in kept] == own["filters"][layer]
            assert all(unit is None for index, unit in enumerate(units) if index not in kept)
    # Ignored in the first round alone: not pinned. Ignored in the second, after it had lost filters: a note.
    assert "layer1.0.conv1" in first.plan.pinned and "layer1.0.conv1" not in plan.pinned
    assert "conv1" in second.plan.pinned and "conv1" not in plan.pinned
    assert "conv1: lost filters by round 1, then none: it is ignored as 'conv1'" in plan.notes
    assert "fc" in plan.pinned


def test_plans_that_do_not_follow_each_other(rounds: Any) -> None:
    model, first, second = rounds
    with pytest.raises(fec_fast.PlanError, match=r"does not follow.*expects \S+ of shape \[32.*the first leaves"):
        fec_fast.compose(first.plan, first.plan)
    with pytest.raises(fec_fast.PlanError, match="does not follow"):
        fec_fast.compose(second.plan, first.plan)
    third = prune(second.model, ratio=0.5).plan
    with pytest.raises(fec_fast.PlanError, match="does not follow"):
        fec_fast.compose(first.plan, third)
    other = prune(zoo.build("zoo:vgg-digits").eval(), ratio=0.5).plan
    with pytest.raises(fec_fast.PlanError, match="other names or shapes"):
        fec_fast.compose(first.plan, other)
    with pytest.raises(fec_fast.ArgumentError, match="PruneResult"):
        fec_fast.compose(first, second)


@pytest.mark.parametrize("name", ["C2f by split", "FasterNet", "MixNet", "generator by module"])
def test_sizes_in_attributes_go_from_the_first_value_to_the_last(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    original, image = divided_network(name), torch.randn(2, 3, 12, 12)
    first = fec_fast.prune(original, image, ratio=0.5, recover=None)
    second = fec_fast.prune(first.model, image, ratio=0.5, recover=None)
    third = fec_fast.prune(second.model, image, ratio=0.0, recover=None)
    assert first.plan.sizes and second.plan.sizes and not third.plan.sizes
    plan = fec_fast.compose(first.plan, second.plan)
    assert fec_fast.compose(plan, third.plan).sizes == plan.sizes
    for module, attributes in plan.sizes.items():
        for attribute, values in attributes.items():
            assert values["before"] == first.plan.sizes[module][attribute]["before"]
            assert (
                values["after"]
                == second.plan.sizes[module].get(attribute, first.plan.sizes[module][attribute])["after"]
            )
    assert fec_fast.verify_equivalence(original, second.model, plan, image) < 1e-9
    fec_fast.save(second.model, plan, tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(fec_fast.load(divided_network(name), tmp_path / "twice")(image), second.model(image))


def test_sizes_that_do_not_follow_one_another_are_refused() -> None:
    torch.manual_seed(0)
    original, image = divided_network("C2f by split"), torch.randn(2, 3, 12, 12)
    first = fec_fast.prune(original, image, ratio=0.5, recover=None)
    second = fec_fast.prune(first.model, image, ratio=0.5, recover=None)
    other = dataclasses.replace(second.plan, sizes={"block": {"c": {"before": 5, "after": 3}}})
    with pytest.raises(fec_fast.PlanError, match="expects block.c to be 5, the first leaves 6"):
        fec_fast.compose(first.plan, other)
