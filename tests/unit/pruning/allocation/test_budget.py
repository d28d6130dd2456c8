"""Budgets: met as counted on the pruned network, as nearly as whole steps allow, or refused."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.graph.groups import couple_channels
from fec_fast.graph.size_model import SizeModel
from fec_fast.graph.trace import trace_model
from fec_fast.pruning.allocation.ratios import allowed_removal_counts
from fec_fast.pruning.allocation.solver import smallest_removal
from fec_fast.utils.model_index import ModelIndex
from fec_fast.vision import networks
from helpers.networks import Blocks

POLICIES = ("uniform", "entropy", "global")


def blocks(width: int = 16, branch: int = 12, group: int = 4, groups: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Blocks(width, branch, group, groups).eval()


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def whole_sizes(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Returns the sizes of a network, counted on itself."""
    traced = trace_model(ModelIndex.of(model), image)
    coupling = couple_channels(traced)
    counted = count(model, image)
    memory = float(SizeModel(ModelIndex.of(model), traced, coupling).memory(np.zeros(len(coupling.sets))))
    return {"params": counted.parameters, "macs": counted.macs, "memory": memory}


def prune(model: nn.Module, image: Tensor = IMAGE, **options: Any) -> fec_fast.PruneResult:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was pruned")
        return fec_fast.prune(model, image, **options, recover=None)


@settings(max_examples=40)
@given(
    width=st.integers(1, 24),
    branch=st.integers(1, 16),
    group=st.sampled_from([1, 2, 4, 8]),
    groups=st.integers(1, 5),
    ratio=st.floats(0, 0.9),
    round_to=st.sampled_from([1, 2, 4]),
)
def test_sizes_are_those_of_the_really_pruned_network(width, branch, group, groups, ratio, round_to) -> None:
    model = blocks(width, branch, group, groups)
    result = prune(model, ratio=ratio, round_to=round_to, criterion="random", verify=False)
    traced = trace_model(ModelIndex.of(model), IMAGE)
    coupling = couple_channels(traced)
    sizes = SizeModel(ModelIndex.of(model), traced, coupling)
    counts = np.array([len(record["removed"]) for record in result.plan.sets])
    found = {name: float(getattr(sizes, name)(counts)) for name in ("params", "macs", "memory")}
    assert found == whole_sizes(result.model, IMAGE)
    several = np.stack([np.zeros_like(counts), counts])
    for name, value in found.items():
        assert getattr(sizes, name)(several).tolist() == [whole_sizes(model, IMAGE)[name], value]


def test_memory_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1), nn.Flatten()).eval()
    # While the second convolution runs, both results are in memory. The input is the caller's; a view needs no memory.
    weights = 4 * (3 * 8 + 8 + 8 * 4 + 4)
    assert whole_sizes(model, IMAGE)["memory"] == weights + 4 * 2 * 36 * (8 + 4)
    twice = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    assert whole_sizes(twice, IMAGE)["memory"] == weights + 4 * 2 * 36 * (8 + 8)


@settings(max_examples=40)
@given(
    widths=st.tuples(st.integers(4, 24), st.integers(2, 16), st.sampled_from([1, 4, 8]), st.integers(1, 5)),
    currency=st.sampled_from(["params", "macs", "memory"]),
    share=st.floats(0.02, 0.98),
    policy=st.sampled_from([*POLICIES, {"stem": 0.2, "join": 0.6, "hidden": 0.5, "side": 0.3}]),
    min_channels=st.sampled_from([1, 2, 5]),
    round_to=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 3),
)
def test_a_budget_is_met_or_the_nearest_is_named(widths, currency, share, policy, min_channels, round_to, seed) -> None:
    model = blocks(*widths, seed=seed)
    options = {"ratios": policy, "min_channels": min_channels, "round_to": round_to, "verify": True}
    before = whole_sizes(model, IMAGE)[currency]
    try:
        result = prune(model, budget=Budget(**{currency: share}), **options)
    except fec_fast.BudgetError as error:
        if "nothing can be removed" not in str(error):
            nearest = float(str(error).rpartition("=")[2].rstrip(")"))
            assert nearest < share
            result = prune(model, budget=Budget(**{currency: nearest}), **options)
            assert 1 - whole_sizes(result.model, IMAGE)[currency] / before == pytest.approx(nearest, abs=1e-4)
        return
    assert result.difference is not None and result.difference < 1e-9
    left = whole_sizes(result.model, IMAGE)[currency]
    assert left <= before * (1 - share) * (1 + 1e-12)
    # The target is met within a hundredth, or no set can keep one step more.
    if (1 - left / before) - share > 0.01 * share:
        assert any("as near as whole steps" in note for note in result.plan.notes)
        traced = trace_model(ModelIndex.of(model), IMAGE)
        coupling = couple_channels(traced)
        counts = np.array([len(record["removed"]) for record in result.plan.sets])
        size = getattr(SizeModel(ModelIndex.of(model), traced, coupling), currency)
        for number, one in enumerate(coupling.sets):
            allowed = allowed_removal_counts(one, coupling.axis_lengths, round_to, min_channels)
            place = int(np.searchsorted(allowed, counts[number]))
            if place:
                fewer = counts.copy()
                fewer[number] = allowed[place - 1]
                assert size(fewer) > before * (1 - share)
    for name, module in result.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.shape[0] >= min(min_channels, model.get_submodule(name).weight.shape[0])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("currency", ["params", "macs"])
def test_a_larger_budget_removes_more(policy: str, currency: str) -> None:
    torch.manual_seed(0)
    model, image = networks.resnet20_cifar().eval(), torch.randn(1, 3, 32, 32)
    sizes = []
    for share in (0.2, 0.4, 0.6, 0.8):
        result = prune(model, image, budget=Budget(**{currency: share}), ratios=policy, verify=False)
        after = result.after.parameters if currency == "params" else result.after.macs
        whole = result.before.parameters if currency == "params" else result.before.macs
        assert share <= 1 - after / whole <= 1.01 * share
        sizes.append(after)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("round_to", [1, 8])
def test_real_networks(round_to: int) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    for factory in (models.resnet50, models.mobilenet_v2, models.densenet121):
        model = factory().eval()
        budget = Budget(params=0.6)
        result = prune(model, image, budget=budget, round_to=round_to, criterion="l1", min_channels=8, verify=False)
        assert 0.6 <= 1 - result.after.parameters / result.before.parameters <= 0.606
        convolutions = [module for module in result.model.modules() if isinstance(module, nn.Conv2d)]
        assert all(module.out_channels >= 8 for module in convolutions)
        assert round_to == 1 or all(module.out_channels % 8 == 0 for module in convolutions)


def test_uniform_is_the_same_ratio_everywhere() -> None:
    torch.manual_seed(0)
    model, image = networks.vgg16_cifar().eval(), torch.randn(1, 3, 32, 32)
    plan = prune(model, image, budget=Budget(params=0.75), ratios="uniform", criterion="l1", verify=False).plan
    shares = [len(record["removed"]) / record["units"] for record in plan.sets]
    assert max(shares) - min(shares) < 0.02 and min(shares) > 0.48


def test_the_policy_of_a_budget_is_entropy_for_filters_unless_another_is_named() -> None:
    torch.manual_seed(0)
    model, image = networks.resnet_digits().eval(), torch.randn(1, 1, 8, 8)
    request: dict[str, Any] = {"budget": Budget(params=0.7), "criterion": "fec_l1"}
    plans = [prune(model, image, ratios=ratios, **request).plan for ratios in (None, "entropy")]
    assert plans[0].keep == plans[1].keep
    assert plans[0].keep != prune(model, image, ratios="uniform", **request).plan.keep


def test_ratios_by_layer_are_a_profile() -> None:
    torch.manual_seed(0)
    widths = [3, 400, 400, 400, 2]
    layers = [nn.Conv2d(inputs, outputs, 1) for inputs, outputs in itertools.pairwise(widths)]
    model, ratios = nn.Sequential(*layers).eval(), {"0": 0.2, "1": 0.36}
    plain = prune(model, torch.randn(1, 3, 2, 2), ratios=ratios, criterion="l1")
    share = 1 - plain.after.parameters / plain.before.parameters
    same = prune(model, torch.randn(1, 3, 2, 2), ratios=ratios, criterion="l1", budget=Budget(params=share - 1e-9))
    assert same.plan.keep == plain.plan.keep
    more = prune(model, torch.randn(1, 3, 2, 2), ratios=ratios, criterion="l1", budget=Budget(params=0.6))
    kept = [len(more.plan.keep[f"{layer}.weight"]["0"]) / 400 for layer in ("0", "1")]
    assert kept[1] == pytest.approx(kept[0] ** 2, abs=0.01) and "2.weight" not in {
        name for name, axes in more.plan.keep.items() if "0" in axes
    }


def test_global_removes_where_scores_are_low() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[:24] *= 0.01
    plan = prune(model, budget=Budget(params=0.5), ratios="global", criterion="l1", sides="producer").plan
    removed = [len(record["removed"]) for record in plan.sets]
    assert removed[0] > 2 * removed[1]


def test_entropy_removes_where_filters_are_similar() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight[8:] = model[1].weight[7] + 0.001 * torch.randn(24, 32, 3, 3)
    plan = prune(model, torch.randn(1, 3, 8, 8), budget=Budget(params=0.5), ratios="entropy").plan
    removed = [len(record["removed"]) for record in plan.sets]
    assert removed[1] > 1.5 * max(removed[0], removed[2])


def test_min_channels_holds_for_plain_ratios() -> None:
    result = prune(blocks(), ratio=0.9, min_channels=6)
    widths = [m.weight.shape[0] for m in result.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert min(widths) == 6


def test_solver_reaches_a_sum_exactly() -> None:
    prices = np.array([100.0, 30.0, 7.0, 1.0])
    thresholds = [np.arange(1, 11) / 10 for _ in prices]
    allowed = [np.arange(10) for _ in prices]
    for limit in (1380.0 - 777, 1380.0 - 201, 500.0):
        counts = smallest_removal(lambda n: (prices * (10 - n)).sum(-1), limit, limit, thresholds, allowed)
        assert limit - 7 < (prices * (10 - counts)).sum() <= limit


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"budget": 0.5}, fec_fast.ArgumentError, "Budget.remove\\(params=0.7\\)"),
        ({"budget": Budget(params=0.5), "ratio": 0.5}, fec_fast.RatioError, "not both"),
        ({"ratios": "entropy"}, fec_fast.RatioError, "add a budget"),
        ({"ratios": "entropi", "budget": Budget(params=0.5)}, fec_fast.ArgumentError, "'entropy'"),
        ({"ratios": {"stem": 0.5}, "ratio": 0.5}, fec_fast.RatioError, "not both"),
        ({"ratios": {"steem": 0.5}, "budget": Budget(params=0.5)}, fec_fast.LayerError, "'stem'"),
        ({"ratios": {"stem": 0.5}, "budget": Budget(params=0.9)}, fec_fast.BudgetError, "nearest that can be met is"),
        ({"budget": Budget(macs=0.99), "min_channels": 4}, fec_fast.BudgetError, "min_channels=4"),
        ({"min_channels": 0}, fec_fast.ArgumentError, "min_channels=0"),
        ({"ratios": 3}, fec_fast.ArgumentError, "int"),
    ],
)
def test_contradictions_are_refused_and_the_model_is_untouched(options: Any, kind: type, words: str) -> None:
    model = blocks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        fec_fast.prune(model, IMAGE, **options, recover=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({}, fec_fast.BudgetError, "exactly one of params, macs, memory, latency_ms, latency, not nothing"),
        ({"params": 0.5, "macs": 0.5}, fec_fast.BudgetError, "params=0.5, macs=0.5"),
        ({"params": 0}, fec_fast.BudgetError, "between 0 and 1"),
        ({"macs": 1.0}, fec_fast.BudgetError, "0.7 leaves 30 %"),
        ({"memory": float("nan")}, fec_fast.BudgetError, "nan"),
        ({"params": "0.5"}, fec_fast.ArgumentError, "'0.5'"),
        ({"params": True}, fec_fast.ArgumentError, "True"),
        ({"latency_ms": -1.0}, fec_fast.BudgetError, "positive"),
        ({"latency_ms": float("inf")}, fec_fast.BudgetError, "inf"),
    ],
)
def test_invalid_budgets_are_refused(values: dict[str, Any], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        Budget(**values)


def test_budgets_are_parsed_from_text() -> None:
    assert Budget.parse("params=0.7") == Budget(params=0.7) and str(Budget(params=0.7)) == "params=0.7"
    assert Budget.parse("latency_ms=3").amount == 3.0
    for text, words in (("params", "NAME=NUMBER"), ("param=0.5", "'params'"), ("params=x", "'x'")):
        with pytest.raises(fec_fast.BudgetError, match=words):
            Budget.parse(text)


@given(st.sampled_from(["params", "macs", "memory"]), st.floats(0.01, 0.99))
def test_shares_cannot_be_read_backwards(name: str, share: float) -> None:
    assert Budget.remove(**{name: share}) == Budget(**{name: share})
    kept = Budget.keep(**{name: share})
    assert kept.quantity == name and kept.amount == pytest.approx(1 - share)


@pytest.mark.parametrize(
    ("text", "quantity", "amount"),
    [
        ("macs=1.2G", "macs", 1.2e9),
        ("params=5M", "params", 5e6),
        ("params=3 k", "params", 3e3),
        ("memory=50 MB", "memory", 5e7),
        ("memory=2MiB", "memory", 2 * 2**20),
        ("latency=3 ms", "latency_ms", 3.0),
        ("latency=0.5 s", "latency_ms", 500.0),
        ("latency=250us", "latency_ms", 0.25),
        ("macs=0.5", "macs", 0.5),
    ],
)
def test_absolute_targets_are_read(text: str, quantity: str, amount: float) -> None:
    budget = Budget.parse(text)
    assert (budget.quantity, budget.amount) == (quantity, pytest.approx(amount))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("name", ["params", "macs", "memory"])
@settings(max_examples=10)
@given(share=st.floats(0.2, 0.8))
def test_an_absolute_target_is_met(name: str, share: float) -> None:
    model = blocks()
    left = int(whole_sizes(model, IMAGE)[name] * (1 - share))
    unit = "B" if name == "memory" else ""
    result = prune(model, budget=Budget.keep(**{name: f"{left}{unit}"}), verify=False)
    assert whole_sizes(result.model, IMAGE)[name] <= left


def test_an_absolute_target_in_rounds() -> None:
    model = blocks()
    left = whole_sizes(model, IMAGE)["params"] // 2
    result = fec_fast.prune_iteratively(
        model,
        IMAGE,
        budget=Budget(params=str(left)),
        rounds=2,
        train=lambda network, number: None,
        verify=False,
        recover=None,
    )
    assert result.after.parameters <= left


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Budget(macs="1.2 Q"), fec_fast.BudgetError, "one of: none, k, m, g, b, t"),
        (lambda: Budget(macs="0"), fec_fast.BudgetError, "positive number"),
        (lambda: Budget(memory="50"), fec_fast.BudgetError, "such as '50 MB'"),
        (lambda: Budget(latency="3"), fec_fast.BudgetError, "such as '3 ms'"),
        (lambda: Budget(latency=3), fec_fast.ArgumentError, "give a text with a unit"),
        (lambda: Budget(macs="1.2.3G"), fec_fast.BudgetError, "positive number"),
        (lambda: Budget(macs="1G", latency="3 ms"), fec_fast.BudgetError, "exactly one"),
        (lambda: Budget.keep(params=1.5), fec_fast.BudgetError, "that may be left"),
        (lambda: Budget.remove(params="5M"), fec_fast.ArgumentError, r"Budget.keep\(params='5M'\)"),
        (lambda: prune(blocks(), budget=Budget(params="1G")), fec_fast.BudgetError, "give a smaller target"),
    ],
)
def test_wrong_absolute_targets_are_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@given(
    milliseconds=st.floats(1e-3, 1e6),
    runtime=st.sampled_from(["torch", "torch.compile", "onnxruntime", "openvino"]),
)
def test_a_runtime_in_the_text_of_a_budget(milliseconds: float, runtime: str) -> None:
    budget = Budget.keep(latency=f"{milliseconds!r} ms", runtime=runtime)
    assert budget == Budget.keep(latency=f"{milliseconds!r} ms @ {runtime}")
    assert budget == Budget(latency_ms=milliseconds, runtime=runtime)
    assert budget == Budget.parse(f"latency={milliseconds!r}ms@{runtime}")
    again = Budget.parse(str(budget))  # as stored results have it
    assert again.runtime == runtime and again.amount == pytest.approx(milliseconds, rel=1e-5)
    assert ("@" in str(budget)) == (runtime != "torch")


def test_a_runtime_that_contradicts() -> None:
    with pytest.raises(fec_fast.BudgetError, match="the text names another runtime"):
        Budget.keep(latency="3 ms@openvino", runtime="onnxruntime")
    with pytest.raises(fec_fast.BudgetError, match="a runtime belongs to latency="):
        Budget.keep(macs=0.5, runtime="onnxruntime")
    with pytest.raises(fec_fast.ArgumentError, match="nearest: 'onnxruntime'"):
        Budget.parse("latency=3 ms@onnx")
    with pytest.raises(fec_fast.BudgetError, match="is not a number"):
        Budget.parse("latency_ms=x@onnxruntime")
