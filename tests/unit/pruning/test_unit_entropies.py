"""Entropies of units against the float64 reference: whichever filters a unit holds, they are one point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import Formula
from fec_fast.graph.labels import FIXED
from fec_fast.pruning.layer_sides import UnitsOfSide
from fec_fast.pruning.unit_entropies import MOST_COMPARED, PART, WeightSide, entropies
from fec_fast.scoring import reference
from fec_fast.scoring.backends.registry import resolve

FORMULAS = [
    Formula(),
    Formula("rms"),
    Formula(entropy="softmax"),
    Formula("rms", axis="channels"),
    Formula("rms", axis="both", tau=0.7),
]


def side(weight: Tensor, axis: int, groups: int, labels: list[int]) -> WeightSide:
    return WeightSide(weight, axis, groups, UnitsOfSide.of(np.array(labels)), "layer")


def by_definition(one: WeightSide, labels: list[int], formula: Formula) -> dict[int, float]:
    """The entropy of each unit that has one, unit by unit, in float64."""
    filters = reference.filters_of(one.weight, axis=one.axis, groups=one.groups)
    own = [label if label > FIXED else -1 - position for position, label in enumerate(labels)]
    members = {unit: [position for position, label in enumerate(own) if label == unit] for unit in own}
    found: dict[int, float] = {}
    for part in formula.parts():
        if part.axis == "channels":
            if filters.shape[1] > 1:
                values = reference.entropy(filters, part)
                for unit, positions in members.items():
                    found[unit] = found.get(unit, 0.0) + float(values[positions].mean())
            continue
        for count in {len(positions) for positions in members.values()}:
            alike = [unit for unit, positions in members.items() if len(positions) == count]
            if len(alike) > 1:  # [units, channels, filters of a unit, taps]
                points = torch.stack([filters[members[unit]].transpose(0, 1) for unit in alike])
                for unit, value in zip(alike, reference.entropy(points.flatten(2), part).tolist(), strict=True):
                    found[unit] = found.get(unit, 0.0) + value
    return found


@st.composite
def layouts(draw) -> tuple[int, int, int, list[int]]:
    """Filters, axis, groups and the label of every filter: each a unit, places side by side, groups, or anything."""
    axis, groups = draw(st.sampled_from([(0, 1), (1, 1), (1, 2)]))
    units, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    arrangement = draw(st.sampled_from(["places", "positions", "mixed"]))
    names = draw(st.permutations(range(1, units + 1)))
    if arrangement == "places":
        labels = [name for name in names for _ in range(count)]
    elif arrangement == "positions":
        labels = list(names) * count
    else:
        labels = draw(st.lists(st.integers(FIXED, units), min_size=1, max_size=12))
    if groups > 1 and len(labels) % groups:
        labels += [FIXED]
    return len(labels), axis, groups, labels


@settings(max_examples=150)
@given(
    layout=layouts(), formula=st.sampled_from(FORMULAS), taps=st.sampled_from([(), (1, 1), (2, 3)]), seed=st.integers()
)
def test_units_are_compared_by_all_their_weights(layout, formula, taps, seed) -> None:
    number, axis, groups, labels = layout
    shape = (number, 4) if axis == 0 else (4 * groups, number // groups)
    weight = torch.randn((*shape, *taps), generator=torch.Generator().manual_seed(seed % 2**32))
    one = side(weight, axis, groups, labels)
    (found,) = entropies([one], formula, resolve("cpu"))
    known = {
        unit: value for unit, value in zip(one.units.units.tolist(), found.tolist(), strict=True) if value == value
    }
    expected = by_definition(one, labels, formula)
    assert known.keys() == expected.keys()
    tolerance = len(formula.parts()) * reference.tolerance(torch.float32, number)
    for unit, value in expected.items():
        assert known[unit] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
def test_many_units_are_compared_in_parts(axis: int) -> None:
    torch.manual_seed(0)
    filters = torch.randn(600, 40) * torch.linspace(0.5, 1.5, 600)[:, None]
    one = side(filters if axis == 0 else filters.T.contiguous(), axis, 1, list(range(1, 601)))
    exact, estimated = (entropies([one], Formula(), resolve("cpu"), most_compared=most)[0] for most in (600, 599))
    assert exact == pytest.approx(reference.entropy(filters, Formula()).numpy(), abs=1e-4)
    assert not np.array_equal(exact, estimated)
    assert float(np.corrcoef(exact, estimated)[0, 1]) > 0.99
    assert abs(float((exact - estimated).mean())) < 0.1 * float(exact.std())
    for entropy in ("softmax", "distance"):  # nothing is estimated
        formula = Formula(entropy=entropy)
        (found,) = entropies([one], formula, resolve("cpu"), most_compared=10)
        assert found == pytest.approx(reference.entropy(filters, formula).numpy(), abs=1e-4)


def test_equal_units_have_no_entropy_in_parts_either() -> None:
    one = side(torch.ones(30, 5), 0, 1, list(range(1, 31)))
    (found,) = entropies([one], Formula(), resolve("cpu"), most_compared=10, part=10)
    assert found.tolist() == [0.0] * 30


@settings(max_examples=60)
@given(
    compress=st.sampled_from(["rms", "absmean", "mean"]),
    axis=st.sampled_from(["filters", "channels"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 10**6),
)
def test_points_that_differ_by_rounding_alone_have_no_entropy(compress, axis, dtype, scale, seed) -> None:
    """Taps in another order have the same mean, but for the last digit: tau would be that digit."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.randn(1, 1, 9, generator=generator, dtype=torch.float64).expand(6, 5, 9)
    order = torch.rand(6, 5, 9, generator=generator).argsort(-1)
    weight = (scale * taps.gather(-1, order)).reshape(6, 5, 3, 3).to(dtype)
    side = WeightSide(weight, 0, 1, UnitsOfSide.of(np.arange(6)), "conv")
    formula = Formula(compress=compress, entropy="softmax", axis=axis)
    assert entropies([side], formula, resolve("cpu"))[0].tolist() == [0.0] * 6
    weight[5, 4] *= 1 + 1e-6  # a difference of weights is one
    assert max(entropies([side], formula, resolve("cpu"))[0]) > 0.1


def test_a_layer_of_ordinary_width_has_the_scores_of_score_model() -> None:
    torch.manual_seed(0)
    assert PART < MOST_COMPARED
    model = nn.Sequential(nn.Conv2d(3, MOST_COMPARED, 1), nn.ReLU(), nn.Conv2d(MOST_COMPARED, 4, 1)).eval()
    plan = fec_fast.prune(
        model, torch.randn(1, 3, 2, 2), criterion="fec", sides="producer", verify=False, recover=None
    ).plan
    scores = fec_fast.score_model(model.double())["0"]  # prune computes in float64
    assert plan.sets[0]["scores"] == pytest.approx((scores / scores.mean()).tolist(), rel=1e-9)


def test_the_places_of_a_channel_behind_a_flatten_are_one_unit() -> None:
    """A channel is redundant if all its places are read alike, wherever the single places lie."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).eval()
    plan = fec_fast.prune(model, torch.randn(1, 3, 2, 2), criterion="fec", recover=None).plan
    filters = reference.entropy(model[0].weight, Formula())
    slices = reference.entropy(model[3].weight.reshape(5, 6, 4).transpose(0, 1), Formula())
    expected = filters / filters.mean() * slices / slices.mean()
    assert plan.sets[0]["scores"] == pytest.approx(expected.tolist(), rel=1e-4)
