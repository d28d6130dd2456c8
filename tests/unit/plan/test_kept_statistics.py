"""Norms over the kept channels: the plan holds them, the proof uses them, and finds what is wrong in them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast

pytestmark = pytest.mark.filterwarnings("ignore:norms take statistics")
IMAGE = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """A group norm, a layer norm on the last dimension and a hand-written one in the model's own forward."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.a, self.group = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(groups, 24)
        self.b, self.layer = nn.Conv2d(24, 12, 1), nn.LayerNorm(12)
        self.c, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.a(x)).relu()
        x = self.layer(self.b(x).movedim(1, -1)).movedim(-1, 1)
        x = self.c(x.relu())
        x = (x - x.mean(1, True)) / (x.std(1, keepdim=True) + 0.1)
        return self.head(x.relu().mean((2, 3)))


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Mixed(**options)
    for tensor in (*model.group.parameters(), *model.layer.parameters()):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def pruned(**options: Any) -> tuple[nn.Module, fec_fast.PruneResult]:
    model = network()
    return model, fec_fast.prune(model, IMAGE, ratio=0.5, norms="renormalise", **options, recover=None)


def test_the_plan_lists_every_norm_and_rebuilds_the_network(tmp_path: Path) -> None:
    model, result = pruned()
    plan = fec_fast.Plan.from_json(result.plan.to_json())
    assert plan == result.plan
    places = {(module, record["operator"], record["number"]) for module, rows in plan.norms.items() for record in rows}
    assert places == {
        ("group", "aten.native_group_norm.default", 0),
        ("layer", "aten.native_layer_norm.default", 0),
        ("", "aten.mean.dim", 0),
        ("", "aten.std.correction", 0),
    }
    assert plan.changed_norms == ["group", "layer", "the model itself"]
    assert plan.sizes == {
        "group": {"num_channels": {"before": 24, "after": 12}},
        "layer": {"normalized_shape": {"before": [12], "after": [6]}},
    }
    applied = copy.deepcopy(model)
    fec_fast.apply_plan(applied, plan)
    fec_fast.save(result, tmp_path / "pruned")
    loaded = fec_fast.load(network(), tmp_path / "pruned")
    with torch.no_grad():
        for again in (applied, loaded):
            assert torch.equal(again(IMAGE), result.model(IMAGE))
    assert loaded.layer.normalized_shape == (6,) and loaded.group.num_groups == 4
    text = str(fec_fast.explain(plan, "a", model))
    assert "norms=" in text and "run over the kept channels alone" in text
    result.model.train()(IMAGE).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.model.parameters())


@pytest.mark.parametrize("module", ["group", "layer", ""])
def test_statistics_over_other_channels_are_found(module: str) -> None:
    model, result = pruned()
    assert fec_fast.verify_equivalence(model, result.model, result.plan, IMAGE) < 1e-9
    records = copy.deepcopy(result.plan.norms)
    for record in records[module]:
        removed = sorted({*range(24 if module == "group" else 12 if module else 10)} - {*record["kept"]})
        record["kept"] = removed[: len(record["kept"])]
    wrong = replace(result.plan, norms=records)
    with pytest.raises(fec_fast.EquivalenceError, match="differs from the masked original"):
        fec_fast.verify_equivalence(model, result.model, wrong, IMAGE)
    without = replace(result.plan, norms={name: rows for name, rows in records.items() if name != module})
    with pytest.raises(fec_fast.EquivalenceError, match="differs from the masked original"):
        fec_fast.verify_equivalence(model, result.model, without, IMAGE)


@pytest.mark.parametrize("attribute", ["weight", "bias"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_swapped_values_of_a_norm_are_found(norm: str, attribute: str) -> None:
    model, result = pruned()
    with torch.no_grad():
        getattr(getattr(result.model, norm), attribute).copy_(getattr(getattr(result.model, norm), attribute).flip(0))
    with pytest.raises(fec_fast.EquivalenceError):
        fec_fast.verify_equivalence(model, result.model, result.plan, IMAGE)


@pytest.mark.parametrize("first", ["exact", "renormalise"])
@pytest.mark.parametrize("second", ["exact", "renormalise"])
def test_two_rounds_are_one_plan(first: str, second: str) -> None:
    model = network()
    one = fec_fast.prune(model, IMAGE, ratio=0.34, norms=first, recover=None)
    two = fec_fast.prune(one.model, IMAGE, ratio=0.5, norms=second, recover=None)
    plan = fec_fast.compose(one.plan, two.plan)
    assert fec_fast.verify_equivalence(model, two.model, plan, IMAGE) < 1e-9
    (record,) = plan.norms["group"]
    assert record["exact"] == (first == second == "exact")
    assert record["kept"] == plan.keep["a.weight"]["0"]
    applied = copy.deepcopy(model)
    fec_fast.apply_plan(applied, plan)
    with torch.no_grad():
        assert torch.equal(applied(IMAGE), two.model(IMAGE))


def test_an_exact_plan_leaves_the_statistics_of_the_original() -> None:
    model = network()
    with pytest.warns(UserWarning, match="channels of b, c: 2 layers keep all their channels, 1 can.*renormalise"):
        result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert not result.plan.changed_norms and not any("norms=" in note for note in result.proof.notes)
    assert [record["exact"] for rows in result.plan.norms.values() for record in rows] == [True]
    assert (result.model.group.num_groups, result.model.group.num_channels) == (2, 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": []}, "kept channels"),
        ({"kept": [3, 1]}, "ascending"),
        ({"dim": 1}, "dimension"),
        ({"number": -1}, "number"),
        ({"exact": 1}, "exact"),
        ({"operator": None}, "entries"),
        ({"other": 1}, "entries"),
    ],
)
def test_wrong_records_are_refused(change: dict[str, Any], words: str) -> None:
    document = json.loads(pruned()[1].plan.to_json())
    document["norms"]["layer"][0].update(change)
    with pytest.raises(fec_fast.PlanError, match=f"norms: layer.*{words}"):
        fec_fast.Plan.from_json(json.dumps(document))


def test_other_values_of_norms_are_refused() -> None:
    model = network()
    for call in (fec_fast.prune, fec_fast.couplings):
        with pytest.raises(fec_fast.ArgumentError, match="norms='exact_': give 'exact' or 'renormalise'"):
            call(model, IMAGE, norms="exact_")


def test_couplings_and_rounds_take_the_option() -> None:
    model = network()
    assert {item.name: item.units for item in fec_fast.couplings(model, IMAGE).sets} == {"a": 4}
    listed = fec_fast.couplings(model, IMAGE, norms="renormalise")
    assert {item.name: item.units for item in listed.sets} == {"a": 6, "b": 12, "c": 10}
    budget = fec_fast.Budget(params=0.7)
    result = fec_fast.prune_iteratively(
        model, IMAGE, budget=budget, train=lambda *_: None, rounds=2, norms="renormalise", recover=None
    )
    assert fec_fast.verify_equivalence(model, result.model, result.plan, IMAGE) < 1e-9
    measured = fec_fast.measure_sensitivity(model, IMAGE, lambda _: 0.5, norms="renormalise", progress=False)
    assert set(measured.units) == {"a", "b", "c"}


def test_one_norm_for_different_channels() -> None:
    """A norm without parameters that is called twice: channels at the same positions go together."""

    class Twice(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, width, 1), nn.Conv2d(width, 2, 1)
            self.norm = ByShape()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.b(self.norm(self.a(x)).relu())))

    class ByShape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)

    same = fec_fast.prune(Twice(12).eval(), IMAGE, ratio=0.5, norms="renormalise", recover=None)
    assert same.plan.keep["a.weight"]["0"] == same.plan.keep["b.weight"]["0"] and same.model.a.out_channels == 6
    with pytest.raises(fec_fast.LayerError, match="norm normalises different channels with the same code"):
        fec_fast.prune(Twice(8).eval(), IMAGE, ratio=0.5, norms="renormalise", recover=None)


def test_training_takes_other_statistics() -> None:
    """A branch of training mode that is seen once a proof fails: what it normalises with the same code is united."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 1)
            self.heads = nn.ModuleList([nn.Conv2d(12, 2, 1), nn.Conv2d(12, 2, 1)])

        def forward(self, x: Tensor) -> list[Tensor]:
            parts = [self.b(x), self.a(x)] if self.training else [self.a(x), self.b(x)]
            normed = [part - part.mean(1, True) for part in parts]
            heads = self.heads[::-1] if self.training else self.heads
            return [head(part) for head, part in zip(heads, normed, strict=True)]

    result = fec_fast.prune(Branches().eval(), IMAGE, ratio=0.5, norms="renormalise", recover=None)
    assert result.plan.keep["a.weight"]["0"] == result.plan.keep["b.weight"]["0"]
    assert result.proof is not None and "drawn weights in training mode" in result.proof.runs
