"""Walks of a model: they find what torch's own find, in the same order."""

from __future__ import annotations

import torch
from torch import nn

from fec_fast.utils.modules import in_evaluation, modules_of, named_tensors


def net() -> nn.Module:
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = nn.Sequential(nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared[0], nn.Linear(2, 2)])}), shared)
    model.add_module("none", None)
    model[0]["b"][1].bias = model[0]["b"][1].weight
    model.register_buffer("also", torch.zeros(1))
    model.register_parameter("own", nn.Parameter(torch.zeros(2)))
    return model


def test_modules() -> None:
    model = net()
    assert list(modules_of(model).items()) == list(model.named_modules())
    assert list(modules_of(model, every_name=True).items()) == list(model.named_modules(remove_duplicate=False))


def test_tensors() -> None:
    model = net()
    expected = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    found = list(named_tensors(model).items())
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(one is other for (_, one), (_, other) in zip(found, expected, strict=True))


def test_evaluation_mode_of_a_model_whose_train_returns_nothing() -> None:
    class Silent(nn.Sequential):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    model = Silent(nn.Dropout())
    assert in_evaluation(model) is model and not model[0].training
