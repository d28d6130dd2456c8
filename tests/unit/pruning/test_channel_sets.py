"""The listing of coupled sets: complete, exact, and enough to prune by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.pruning.channel_sets import ChannelSet, Pinned

models = pytest.importorskip("torchvision").models


class Residual(nn.Module):
    """A residual sum, a grouped convolution, a flatten, a branch of training mode, a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.fc = nn.Linear(48, 5)
        self.aux, self.unused = nn.Conv2d(8, 6, 1), nn.ConvTranspose2d(2, 7, 1)

    def forward(self, x: torch.Tensor) -> object:
        x = self.a(x)
        x = x + self.norm(self.b(x))
        y = self.fc(self.grouped(x).flatten(1))
        return (y, self.aux(x)) if self.training else y


def test_every_member_by_hand() -> None:
    listed = fec_fast.couplings(Residual(), torch.randn(2, 3, 2, 2))
    pairs = tuple((unit, unit + 4) for unit in range(4))
    outer = {(name, 0) for name in ("a.weight", "a.bias", "b.weight")}
    norm = {(f"norm.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    first, second = listed.sets
    assert first == ChannelSet(
        name="a",
        units=4,
        channels={"a": 2, "b": 2},
        members={
            **dict.fromkeys(outer | norm | {("b.weight", 1), ("aux.weight", 1)}, pairs),
            ("grouped.weight", 1): tuple((unit,) for unit in range(4)),
        },
    )
    assert first.layers == ("a", "b")
    triples = tuple((unit, unit + 6) for unit in range(6))
    assert second.name == "grouped" and second.units == 6 and second.channels == {"grouped": 2}
    assert second.members[("grouped.weight", 0)] == second.members[("grouped.bias", 0)] == triples
    flat = tuple(tuple(range(4 * unit, 4 * unit + 4)) + tuple(range(24 + 4 * unit, 28 + 4 * unit)) for unit in range(6))
    assert second.members[("fc.weight", 1)] == flat
    assert len(second.members) == 3


def test_pinned_layers_and_their_reasons() -> None:
    listed = fec_fast.couplings(Residual(), torch.randn(2, 3, 2, 2), ignore=("grouped",))
    assert [one.name for one in listed.sets] == ["a"]
    assert [(one.layer, one.width, one.channels) for one in listed.pinned] == [
        ("grouped", 12, 12),
        ("fc", 5, 5),
        ("aux", 6, 6),
        ("unused", 7, 7),
    ]
    reasons = {one.layer: one.reason for one in listed.pinned}
    assert "ignored" in reasons["grouped"]
    assert "outputs of the model" in reasons["fc"] and "outputs of the model" in reasons["aux"]
    assert "do not reach" in reasons["unused"]


def test_a_layer_that_is_partly_pinned_and_an_operator_without_a_rule() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            widened = nn.functional.pad(self.a(x), (0, 0, 0, 0, 2, 2))
            return self.c(self.b(x) + widened).cumprod(1)

    listed = fec_fast.couplings(Padded(), torch.randn(1, 3, 4, 4))
    assert Pinned("b", 8, 4, listed.pinned[0].reason) == listed.pinned[0]
    assert listed.pinned[1].layer == "c" and listed.pinned[1].channels == 2
    assert any("cumprod" in note for note in listed.notes)
    text = str(listed)
    assert "pinned: b: 4 of 8 channels are kept" in text and "pinned: c: all 2 channels are kept" in text
    assert "note: " in text


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_prune_removes_along_these_couplings(name: str) -> None:
    torch.manual_seed(0)
    model, image = getattr(models, name)().eval(), torch.randn(1, 3, 32, 32)
    listed = fec_fast.couplings(model, image)
    plan = fec_fast.prune(model, image, criterion="l1", ratio=0.5, verify=False, recover=None).plan
    assert [one.name for one in listed.sets] == [record["name"] for record in plan.sets]
    gone: dict[tuple[str, int], set[int]] = {}
    for one, record in zip(listed.sets, plan.sets, strict=True):
        assert one.units == record["units"] and list(one.layers) == record["layers"]
        for key, units in one.members.items():
            gone.setdefault(key, set()).update(index for unit in record["removed"] for index in units[unit])
    assert len(gone) > len(listed.sets) > 5
    for (tensor, axis), indices in gone.items():
        assert set(plan.keep[tensor][str(axis)]) == set(range(plan.shapes[tensor][axis])) - indices
    assert sum(len(axes) for axes in plan.keep.values()) == len([key for key, indices in gone.items() if indices])
    assert {one.layer for one in listed.pinned if one.width == one.channels} == set(plan.pinned)


class Fixed(nn.Module):
    """A split and a reshape at numbers of the code, between layers that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 10, 1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).split(4, 1)
        return self.fc(self.c(self.b(left * right)).mean((2, 3)).view(-1, 10))


def test_channels_that_the_code_counts_are_not_listed() -> None:
    listed = fec_fast.couplings(Fixed(), torch.randn(2, 3, 2, 2))
    assert [one.name for one in listed.sets] == ["b"]
    reasons = {one.layer: one.reason for one in listed.pinned}
    assert set(reasons) == {"a", "c", "fc"}
    assert "fixed positions" in reasons["a"] and "aten.view" in reasons["c"]


def test_table() -> None:
    rows = str(fec_fast.couplings(Residual(), torch.randn(2, 3, 2, 2))).splitlines()
    assert rows[0].split() == ["set", "units", "axis", "per", "unit", "held", "by"]
    assert rows[2].split(maxsplit=4) == ["a", "4", "0", "2", "a, b, norm"]
    assert rows[3].split(maxsplit=2) == ["1", "2", "b, aux"]
    assert rows[4].split(maxsplit=2) == ["1", "1", "grouped"]
    assert rows[5].split(maxsplit=4) == ["grouped", "6", "0", "2", "grouped"]


def test_the_model_is_left_as_it_was() -> None:
    model = Residual().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image, state = torch.randn(2, 3, 2, 2), torch.random.get_rng_state()
    fec_fast.couplings(nn.DataParallel(model), image)
    assert model.training and model.a.training and not model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("resnet", torch.zeros(1)), fec_fast.ArgumentError, "model"),
        ((Residual(), torch.zeros(1, 4, 2, 2)), fec_fast.InputError, r"\[1, 4, 2, 2\]"),
    ],
)
def test_bad_input(arguments: tuple, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        fec_fast.couplings(*arguments)
    with pytest.raises(fec_fast.ArgumentError, match="sequence of names"):
        fec_fast.couplings(Residual(), torch.randn(1, 3, 2, 2), ignore="a")
    with pytest.raises(fec_fast.LayerError, match="no layer 'conv'"):
        fec_fast.couplings(Residual(), torch.randn(1, 3, 2, 2), ignore=("conv",))
