"""Sparse training: the penalties' formulas, channels that are exactly zero, and cuts that change nothing."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import GroupLasso, GrowingPenalty, Plan
from fec_fast.training import finetuning
from fec_fast.training.progress import TrainingProgress
from fec_fast.training.settings import TrainingSettings
from fec_fast.training.sparsity import Shrinkage
from fec_fast.utils.evaluation import evaluate
from helpers.comparison import same_weights
from helpers.states import assert_same_state, masked_copy, state
from helpers.training import InterruptedLoader, classifier, dot_images, dot_loader, train, without_times

IMAGE = torch.zeros(1, 1, 6, 6)


class Residual(nn.Module):
    """Two convolutions whose results are added, a grouped one, and a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.head = nn.Linear(6 * 36, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        return self.head(self.grouped((x + self.inner(x)).relu()).relu().flatten(1))


def residual() -> Residual:
    torch.manual_seed(3)
    return Residual()


def plan_of(model: nn.Module, ratio: float = 0.5) -> Plan:
    return fec_fast.prune(model, IMAGE, ratio=ratio, verify=False, recover=None).plan


def sets_of(model: nn.Module) -> Any:
    return fec_fast.couplings(model, IMAGE).sets


def removed_entries(model: nn.Module, plan: Plan) -> Tensor:
    """The values of all parameters that a plan removes."""
    found = []
    for name, parameter in model.named_parameters():
        kept = torch.ones(parameter.shape, dtype=torch.bool)
        for axis, indices in plan.keep.get(name, {}).items():
            on_axis = torch.zeros(parameter.shape[int(axis)], dtype=torch.bool)
            on_axis[indices] = True
            kept &= on_axis.view([-1 if axis_ == int(axis) else 1 for axis_ in range(parameter.ndim)])
        found.append(parameter.detach()[~kept])
    return torch.cat(found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "lr": 0.01, "accumulate": 2},
        {"ema_decay": 0.9},
        {"mixed_precision": "bf16"},
        {"max_minutes": 0.001, "epochs": 50},
    ],
    ids=["sgd", "adamw", "average", "bf16", "clock"],
)
@pytest.mark.parametrize("until", [0.5, 1.0])
def test_channels_of_a_plan_are_zero_and_the_cut_changes_nothing(options: dict[str, Any], until: float) -> None:
    model = residual()
    plan = plan_of(model)
    assert removed_entries(model, plan).abs().max() > 0.01
    train(model, **{"epochs": 3, "lr": 0.05, **options}, sparsify=GrowingPenalty(plan, until=until))
    assert not removed_entries(model, plan).any()
    images = dot_images().tensors[0]
    with torch.no_grad():
        dense = model.eval()(images)
        masked = masked_copy(model, plan)(images)
        fec_fast.apply_plan(model, plan)
        small = model(images)
    scale = float(dense.abs().max())
    assert torch.allclose(dense, masked, atol=1e-5 * scale) and torch.allclose(dense, small, atol=1e-5 * scale)


def test_channels_fade_while_the_others_learn() -> None:
    model = residual()
    plan = plan_of(model)
    train(model, epochs=8, lr=0.05, sparsify=GrowingPenalty(plan))
    fec_fast.apply_plan(model, plan)
    assert evaluate(model, dot_loader()) > 0.9


def test_penalty_grows_from_one_step_to_the_next() -> None:
    model = residual()
    plan = plan_of(model)
    before = removed_entries(model, plan).double()
    shrinkage = Shrinkage(model, GrowingPenalty(plan))
    kept = copy.deepcopy(model)
    both = sum(len(axes) > 1 for axes in plan.keep.values())
    assert both  # entries that are removed on two axes shrink by both factors
    norm = "norm.weight"
    removed = sorted(set(range(8)) - set(plan.keep[norm]["0"]))
    first = model.norm.weight.detach().clone()
    for left in (4, 3, 2, 1):
        shrinkage.shrink(0.1, left)
        wanted = first[removed] * (left - 1) / 4
        assert torch.allclose(model.norm.weight.detach()[removed], wanted)
    assert torch.equal(model.norm.weight[plan.keep[norm]["0"]], kept.norm.weight[plan.keep[norm]["0"]])
    assert before.any() and not removed_entries(model, plan).any()


@functools.cache
def coupled_sets() -> Any:
    return sets_of(residual())


@given(st.floats(1e-4, 10), st.floats(1e-3, 1), st.integers(0, 1000))
def test_lasso_is_the_proximal_operator_in_float64(strength: float, lr: float, seed: int) -> None:
    model = residual()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sets = coupled_sets()
    wanted = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    original = {name: value.clone() for name, value in wanted.items()}
    for coupled in sets:
        members = {key: units for key, units in coupled.members.items() if key[0] in wanted}
        for unit in range(coupled.units):
            parts = [(name, axis, list(units[unit])) for (name, axis), units in members.items()]
            squares = sum(
                float(original[name].index_select(axis, torch.tensor(i)).square().sum()) for name, axis, i in parts
            )
            count = sum(original[name].index_select(axis, torch.tensor(i)).numel() for name, axis, i in parts)
            factor = max(0.0, 1 - lr * strength * math.sqrt(count) / math.sqrt(squares))
            for name, axis, indices in parts:
                shape = [-1 if each == axis else 1 for each in range(wanted[name].ndim)]
                factors = torch.ones(wanted[name].shape[axis], dtype=torch.float64)
                factors[indices] = factor
                wanted[name] = wanted[name] * factors.view(shape)
    Shrinkage(model, GroupLasso(sets, strength=strength)).shrink(lr, 0.0)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.detach().double(), wanted[name], rtol=1e-4, atol=1e-5), name


def test_lasso_empties_units_and_pruning_finds_them() -> None:
    model = residual()
    train(model, epochs=12, lr=0.05, sparsify=GroupLasso(sets_of(model), strength=0.1))
    empty = {unit for unit in range(6) if not model.grouped.weight[unit].any()}
    assert 0 < len(empty) < 6 and evaluate(model, dot_loader()) > 0.9
    plan = fec_fast.prune(model, IMAGE, ratios={"grouped": len(empty) / 6}, criterion="l1", recover=None).plan
    assert set(range(6)) - set(plan.keep["grouped.weight"]["0"]) == empty


def test_unpruned_parts_are_not_shrunk() -> None:
    """Layers that no set holds train as without a penalty."""
    model = classifier()
    before = model[4].bias.detach().clone()
    Shrinkage(model, GroupLasso(sets_of(model), strength=1e6)).shrink(1.0, 0.0)
    assert torch.equal(model[4].bias, before) and not model[4].weight.any() and not model[0].weight.any()


@pytest.mark.parametrize("kind", ["plan", "lasso"])
@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_resume_gives_the_same_bits(tmp_path: Path, kind: str, interrupted_after: int) -> None:
    def sparsity() -> Any:
        return GrowingPenalty(plan_of(residual()), 0.7) if kind == "plan" else GroupLasso(sets_of(residual()))

    options: dict[str, Any] = {"epochs": 4, "lr": 0.05, "ema_decay": 0.9}
    straight, first, second = residual(), residual(), residual()
    whole = train(straight, **options, sparsify=sparsity(), val_loader=dot_loader(shuffle=False))
    options["checkpoint"] = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        held_out: Any = InterruptedLoader(dot_loader(shuffle=False), interrupted_after)
        train(first, **options, sparsify=sparsity(), val_loader=held_out)
    with pytest.raises(fec_fast.CheckpointError, match="sparsify"):
        train(second, **options, resume=True, val_loader=dot_loader(shuffle=False))
    resumed = train(second, **options, sparsify=sparsity(), resume=True, val_loader=dot_loader(shuffle=False))
    assert same_weights(second, straight) and without_times(resumed.history) == without_times(whole.history)


def test_steps_left_follow_the_clock_where_it_decides() -> None:
    accelerator: Any = SimpleNamespace(num_processes=1, device="cpu")
    steps = TrainingProgress(TrainingSettings(epochs=10, accumulate=2), 10, None, accelerator)
    steps.begin_step(20, 0, 1.0, 0.0)
    assert steps.steps_until(0.5) == pytest.approx(15)
    clock = TrainingProgress(TrainingSettings(epochs=10, max_minutes=1), 10, None, accelerator)
    clock.begin_step(20, 0, 24.0, 0.0)  # 20 steps in 24 of 60 seconds: 50 fit
    assert clock.steps_until(0.5) == pytest.approx(5)


def _of_another_network() -> Any:
    return [SimpleNamespace(name="x", units=1, members={("stem.weight", 0): ((50,),)})]


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no penalty": (lambda _: 0.1, {}, fec_fast.ArgumentError, "GrowingPenalty"),
    "a bare plan": (plan_of, {}, fec_fast.ArgumentError, "GrowingPenalty"),
    "a plan for another": (lambda _: GrowingPenalty(plan_of(classifier())), {}, fec_fast.PlanError, "another model"),
    "sets of another": (
        lambda _: GroupLasso(sets_of(classifier())),
        {},
        fec_fast.InputError,
        "0.weight.*no such tensor",
    ),
    "indices of another": (lambda _: GroupLasso(_of_another_network()), {}, fec_fast.InputError, "index 50 of axis 0"),
    "patience": (
        lambda model: GrowingPenalty(plan_of(model)),
        {"patience": 2, "val_loader": dot_loader()},
        fec_fast.ArgumentError,
        "patience=2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_before_anything_changes(case: str) -> None:
    make, options, error, message = BAD[case]
    model = residual()
    before = state(model)
    with pytest.raises(error, match=message):
        train(model, **options, sparsify=make(model))
    assert_same_state(model, before)


def test_frozen_channels_are_refused() -> None:
    model = residual()
    sparsities = (GrowingPenalty(plan_of(model)), GroupLasso(sets_of(model)))
    model.inner.weight.requires_grad_(False)
    for sparsity in sparsities:
        with pytest.raises(fec_fast.InputError, match=r"inner\.weight is frozen.*ignore="):
            train(model, sparsify=sparsity)


def test_plans_and_sets_with_nothing_to_shrink_are_refused() -> None:
    model = residual()
    with pytest.raises(fec_fast.ArgumentError, match="removes no channel"):
        GrowingPenalty(plan_of(model, ratio=0.0))
    with pytest.raises(fec_fast.ArgumentError, match="no channel can be removed"):
        GroupLasso(())


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "uses_fsdp2", lambda accelerator: True)
    model = residual()
    before = state(model)
    with pytest.raises(fec_fast.BackendError, match="FSDP2 shards them"):
        train(model, sparsify=GroupLasso(sets_of(model)))
    assert_same_state(model, before)
