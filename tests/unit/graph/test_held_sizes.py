"""Which attributes of a module may hold the numbers of a cut, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fec_fast.graph.cuts import PartsCut, ShapeCut
from fec_fast.graph.held_sizes import held_numbers, sizes_held_for
from fec_fast.graph.labels import LabelMap

LABELS = np.arange(1, 11)
SOURCE = LabelMap((2, 10, 4, 4), 1, LABELS)


def parts(*borders: int) -> PartsCut:
    bounds = tuple(zip(borders, borders[1:], strict=False))
    return PartsCut(0, "layer", torch.ops.aten.split_with_sizes.default, SOURCE, bounds)


def shape() -> ShapeCut:
    """40 features as 10 maps of 2 times 2."""
    source = LabelMap((2, 40), 1, np.repeat(LABELS, 4))
    return ShapeCut(0, "layer", torch.ops.aten.view.default, source, LabelMap((2, 10, 2, 2), 1, LABELS), 1, 4)


def module(**attributes: object) -> nn.Module:
    result = nn.Identity()
    for name, value in attributes.items():
        setattr(result, name, value)
    return result


def half(labels: np.ndarray) -> int:
    """Removes labels 1, 2 and 10."""
    return len(labels) - int(np.isin(labels, (1, 2, 10)).sum())


@pytest.mark.parametrize(
    ("cut", "value", "after"),
    [
        (parts(0, 4, 10), 4, 2),
        (parts(0, 4, 10), 6, 5),
        (parts(0, 4, 10), 10, 7),
        (parts(0, 4, 10), [4, 6], [2, 5]),
        (parts(0, 4, 10), (6, 4, 3), [5, 2, 3]),  # not in the order of the parts: number by number
        (parts(0, 2, 6, 8, 10), (2, 4, 2, 2), [0, 4, 2, 1]),  # in their order: each its own
        (parts(4, 10), 4, 2),  # where a slice begins
        (shape(), 10, 7),
        (shape(), 40, 28),
        (shape(), (10, 2, 2), [7, 2, 2]),
    ],
)
def test_an_attribute_becomes_what_is_kept(cut: PartsCut | ShapeCut, value: object, after: object) -> None:
    (size,) = sizes_held_for(cut, module(held=value, other=3))
    assert (size.module, size.attribute) == ("layer", "held")
    assert size.after(half) == after
    assert size.after(len) == size.before == (list(value) if isinstance(value, tuple | list) else value)


@pytest.mark.parametrize("value", [3, True, 4.0, "4", [], [4, 4.0], {4}, {"size": 4}, None, [[4, 6]]])
def test_other_values_are_none_of_its_numbers(value: object) -> None:
    assert not sizes_held_for(parts(0, 4, 10), module(held=value))


def test_the_attributes_of_layers_belong_to_their_weights() -> None:
    layers = (nn.Conv2d(4, 10, 1), nn.Linear(4, 10), nn.BatchNorm2d(10))
    assert not any(held_numbers(layer) or sizes_held_for(parts(0, 4, 10), layer) for layer in layers)


def test_cuts_tell_of_different_numbers_of_one_list() -> None:
    held = module(sizes=[4, 3, 3])
    (first,) = sizes_held_for(parts(0, 4), held)
    (second,) = sizes_held_for(parts(4, 7), held)
    assert first.after(half) == [2, 3, 3] and first.with_others(second).after(half) == [2, 3, 3]
    assert [labels is None for labels in first.with_others(second).counted] == [False, False, False]
