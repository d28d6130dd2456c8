"""Copies that are made with the new shapes: equal to a deep copy after `apply_plan`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fec_fast
from fec_fast.plan.surgery import pruned_copy
from fec_fast.utils.model_index import ModelIndex
from fec_fast.utils.modules import named_tensors
from fec_fast.vision import networks
from helpers.divided import divided_network


class Marked(nn.Parameter):
    """A subclass of parameters."""


class WithItsOwnCopy(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Conv2d:
        other = WithItsOwnCopy(self.in_channels, self.out_channels, 1)
        memo[id(self)] = other
        other.weight, other.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
        other.copied = True
        return other


class Odd(nn.Module):
    """Shared weights, modules that refer to one another, a list and a dictionary that two share, an LSTM, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.own = WithItsOwnCopy(8, 8, 1)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.marked = nn.Conv2d(8, 8, 1)
        self.marked.weight = Marked(self.marked.weight.detach())
        self.normed = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.register_buffer("scale", torch.rand(1, 8, 1, 1))
        self.register_buffer("none", None)
        self.head = nn.Conv2d(8, 2, 1)
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.shared: list[int] = []
        self.first = {"shared": self.shared, "stem": self.stem}
        self.stem.friends = (self.head, self.first)
        self.stem.weight.requires_grad_(False)
        self.stem.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.stem(x).relu()).relu() * self.scale
        x = self.marked(self.two(self.one(x)).relu()).relu()
        x = self.head(self.normed(x).relu()).mean((2, 3))
        return self.lstm(x[:, None])[0]


def held_sizes() -> nn.Module:
    return divided_network("MixNet")


@pytest.mark.parametrize(
    "factory", [Odd, held_sizes, networks.resnet20_cifar, lambda: networks.resnet20_cifar().bfloat16()]
)
def test_it_equals_a_deep_copy_after_surgery(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = factory().train()
    image = torch.randn(2, 3, 32, 32, dtype=next(model.parameters()).dtype)
    plan = fec_fast.prune(model, image, ratio=0.5, criterion="l1", verify=False, recover=None).plan
    before = {name: (tensor, tensor.clone()) for name, tensor in named_tensors(model).items()}
    found, expected = pruned_copy(ModelIndex.of(model), plan), copy.deepcopy(model)
    fec_fast.apply_plan(expected, plan)
    ours, theirs = named_tensors(found), named_tensors(expected)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        other = theirs[name]
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype, name
        assert type(tensor) is type(other) and tensor.requires_grad == other.requires_grad, name
        assert tensor.data_ptr() != before[name][0].data_ptr(), name
    assert [id(ours[a]) == id(ours[b]) for a in ours for b in ours] == [
        id(theirs[a]) == id(theirs[b]) for a in ours for b in ours
    ]
    for (name, one), (_, other) in zip(found.named_modules(), expected.named_modules(), strict=True):
        assert type(one) is type(other) and one.training == other.training, name
        assert str(one) == str(other) and vars(one).keys() == vars(other).keys(), name
        assert getattr(one, "splits", None) == getattr(other, "splits", None), name
        assert len(one._forward_hooks) == len(other._forward_hooks), name
    for name, (tensor, values) in before.items():
        assert named_tensors(model)[name] is tensor and torch.equal(tensor, values), name


def test_copies_share_what_the_originals_share() -> None:
    model = Odd().eval()
    plan = fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratio=0.5, criterion="l1", verify=False, recover=None).plan
    found = pruned_copy(ModelIndex.of(model), plan)
    head, first = found.stem.friends
    assert head is found.head is not model.head
    assert first is found.first and first["stem"] is found.stem and first["shared"] is found.shared
    assert found.shared is not model.shared
    assert found.own.copied and not hasattr(model.own, "copied")
    found(torch.randn(1, 3, 8, 8)).sum().backward()
