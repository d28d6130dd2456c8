"""Tensors are found in containers and attributes of any class, each once, by name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fec_fast.utils.outputs import named_tensors_in, tensors_on_modules
from helpers.results import Boxes, Named, Pair, Slots

ONE, TWO = torch.ones(2), torch.zeros(3)


class Items(list):  # type: ignore[type-arg]
    pass


with_attribute = Named(first=ONE)
with_attribute.second = TWO
cyclic = SimpleNamespace(deltas=ONE)
cyclic.itself = [cyclic]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (ONE, ["output"]),
        ([ONE, (TWO,)], ["output[0]", "output[1][0]"]),
        ({"a": ONE, 2: [TWO]}, ["output['a']", "output[2][0]"]),
        (Pair(ONE, TWO), ["output.left", "output.right"]),
        (Boxes(ONE), ["output.deltas"]),
        (Slots(ONE), ["output.deltas"]),
        (with_attribute, ["output['first']", "output.second"]),
        (Items([ONE]), ["output[0]"]),
        (SimpleNamespace(a=[Boxes(ONE)]), ["output.a[0].deltas"]),
        (cyclic, ["output.deltas"]),
        (np.ones(3), ["output"]),
        ([1.5, True, "text", None], ["output[0]", "output[1]"]),
        ([ONE, ONE], ["output[0]"]),
        (nn.Linear(2, 2), []),
        (np.array(["text"]), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tensors_in_results(value: object, names: list[str]) -> None:
    assert [name for name, _ in named_tensors_in(value)] == names


def test_numbers_and_arrays_become_tensors() -> None:
    (array,) = (tensor for _, tensor in named_tensors_in(np.arange(3)))
    assert array.tolist() == [0, 1, 2]
    assert [float(tensor) for _, tensor in named_tensors_in((2, 0.5))] == [2.0, 0.5]


def test_tensors_that_were_left_on_modules() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model.number, model[0].features, model[1].kept = 3, ONE, {"a": [TWO]}
    model.trainer = SimpleNamespace(everything=ONE)
    assert [name for name, _ in tensors_on_modules(dict(model.named_modules()))] == ["0.features", "1.kept['a'][0]"]
