"""Backward elimination: the errors and the order against least squares in float64, written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fec_fast.recovery import elimination
from fec_fast.recovery.elimination import AblatedSystem, LinearSystem, eliminate

System = tuple[Tensor, Tensor, Tensor]  # covariance, weight, columns by unit


def system(columns: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4 * columns, columns, dtype=torch.float64, generator=generator)
    mixed = rows @ torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    return mixed.T @ mixed / len(rows), torch.randn(columns, outputs, dtype=torch.float64, generator=generator)


def least_squares_error(covariance: Tensor, weight: Tensor, removed: list[int]) -> float:
    """The least squared error of ``X W`` from the other columns: the Schur complement of the removed ones."""
    kept = [column for column in range(len(covariance)) if column not in removed]
    cross = covariance[removed][:, kept]
    explained = cross @ torch.linalg.solve(covariance[kept][:, kept], cross.T) if kept else 0.0
    left = weight[removed]
    return float((left * ((covariance[removed][:, removed] - explained) @ left)).sum())


def total_error(systems: list[System], removed: list[int]) -> float:
    return sum(
        least_squares_error(covariance, weight, [int(c) for unit in removed for c in columns[unit] if c >= 0])
        for covariance, weight, columns in systems
    )


def solved(systems: list[System], units: int, order: list[int] | None = None) -> Tensor:
    parts = [LinearSystem(torch.linalg.inv(s), w @ w.T, list(range(units)), columns) for s, w, columns in systems]
    return eliminate(parts, units, order)


@settings(max_examples=25)
@given(
    units=st.integers(1, 7),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    outputs=st.integers(1, 30),
    extra=st.integers(0, 3),
    panel=st.sampled_from([1, 5, 96]),
    seed=st.integers(0, 99),
)
def test_every_step_is_the_cheapest_and_its_error_that_of_least_squares(
    units, widths, outputs, extra, panel, seed
) -> None:
    systems: list[System] = []
    for number, width in enumerate(widths):
        size = units * width + extra  # extra columns belong to no unit and stay
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        systems.append((*system(size, outputs, seed + number), shuffled[: units * width].view(units, width)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "_PANEL", panel)
        errors = solved(systems, units)
    removed: list[int] = []
    for unit in errors.argsort().tolist():
        candidates = {other: total_error(systems, [*removed, other]) for other in range(units) if other not in removed}
        removed.append(unit)
        assert float(errors[unit]) == pytest.approx(candidates[unit], rel=1e-6)
        assert candidates[unit] <= min(candidates.values()) * (1 + 1e-9)
    if not extra:  # nothing is left: the whole output is lost
        whole = sum(float((weight * (covariance @ weight)).sum()) for covariance, weight, _ in systems)
        assert float(errors.max()) == pytest.approx(whole, rel=1e-6)


def test_a_given_order_is_kept_and_its_errors_are_those_of_least_squares() -> None:
    covariance, weight = system(8, 3, 0)
    systems: list[System] = [(covariance, weight, torch.arange(8).view(4, 2))]
    for order in itertools.permutations(range(4)):
        errors = solved(systems, 4, list(order))
        assert errors.argsort().tolist() == list(order)
        for step in range(4):
            expected = total_error(systems, list(order[: step + 1]))
            assert float(errors[order[step]]) == pytest.approx(expected, rel=1e-9)


def test_a_copy_costs_nothing_and_afterwards_its_twin_costs_all() -> None:
    rows = torch.randn(64, 3, dtype=torch.float64)
    rows = torch.cat([rows, rows[:, 1:2]], 1)  # the last column is the second again
    covariance = rows.T @ rows / 64 + 1e-12 * torch.eye(4, dtype=torch.float64)
    errors = solved([(covariance, torch.ones(4, 1, dtype=torch.float64), torch.arange(4).view(4, 1))], 4)
    first, *others = errors.argsort().tolist()
    assert first in (1, 3) and float(errors[first]) < 1e-9
    assert all(float(errors[unit]) > 1e-2 for unit in others)


def test_of_many_pairs_of_twins_one_each_is_free() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 160, dtype=torch.float64, generator=generator)
    rows = torch.cat([rows, rows + 1e-4 * torch.randn(2000, 160, dtype=torch.float64, generator=generator)], 1)
    weight = torch.randn(320, 20, dtype=torch.float64, generator=generator)
    # Several are left out at a time: were they taken to be independent, both twins of a pair would go.
    errors = solved([(rows.T @ rows / 2000, weight, torch.arange(320).view(320, 1))], 320)
    order = errors.argsort()
    assert {unit % 160 for unit in order[:160].tolist()} == set(range(160))
    assert float(errors[order[159]]) < 1e-5 * float(errors[order[160]])


@pytest.mark.parametrize("width", [1, 3])
def test_several_at_a_time_cost_hardly_more_than_one_by_one(width: int) -> None:
    units = 210
    covariance, weight = system(units * width, 40, 0)
    whole: System = (covariance, weight, torch.arange(units * width).view(units, width))
    together = solved([whole], units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "_AT_ONCE", units)
        single = solved([whole], units)
    assert not torch.equal(together.argsort(), single.argsort())
    assert bool((together.sort().values <= single.sort().values * 1.05 + 1e-9 * single.max()).all())
    order = together.argsort().tolist()
    for removed in (100, 209):  # where every removal was of one unit, or of several that were left out together
        expected = least_squares_error(
            covariance, weight, [u * width + c for u in order[:removed] for c in range(width)]
        )
        assert float(together[order[removed - 1]]) == pytest.approx(expected, rel=0.02)


def test_units_with_fewer_columns_or_none() -> None:
    covariance, weight = system(5, 2, 1)
    ragged = torch.tensor([[0, 1], [2, -1], [3, 4]])  # the second unit has one column
    errors = eliminate([LinearSystem(torch.linalg.inv(covariance), weight @ weight.T, [0, 2, 3], ragged)], 4)
    assert errors.argsort().tolist()[0] == 1  # no system reads unit 1
    columns = {0: [0, 1], 2: [2], 3: [3, 4]}
    removed: list[int] = []
    for unit in errors.argsort().tolist()[1:]:
        removed += columns[unit]
        assert float(errors[unit]) == pytest.approx(least_squares_error(covariance, weight, removed), rel=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_a_system_whose_units_are_all_left_out_before_the_others(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "_PANEL", 1)
    (covariance, weight), (few, weight_of_few) = system(8 * width, 5, 0), system(3 * width, 5, 1)
    columns = torch.arange(8 * width).view(8, width)
    parts = [
        LinearSystem(torch.linalg.inv(covariance), weight @ weight.T, list(range(8)), columns),
        LinearSystem(torch.linalg.inv(few), weight_of_few @ weight_of_few.T, [1, 4, 6], columns[:3]),
    ]
    order = [4, 1, 6, 0, 7, 2, 5, 3]
    errors = eliminate(parts, 8, order)
    for number in range(1, 9):
        gone = [column for unit in order[:number] for column in columns[unit].tolist()]
        gone_of_few = [column for unit in order[: min(number, 3)] for column in columns[[1, 4, 6].index(unit)].tolist()]
        expected = least_squares_error(covariance, weight, gone)
        expected += least_squares_error(few, weight_of_few, gone_of_few)
        assert float(errors[order[number - 1]]) == pytest.approx(expected, rel=1e-6)


def test_a_system_with_few_of_many_units() -> None:
    """More of its units are left out at a time than it alone would allow."""
    units, here = 2000, list(range(1100, 1200))
    covariance, weight = torch.eye(100, dtype=torch.float64), torch.full((100, 4), 2.0, dtype=torch.float64)
    few = LinearSystem(covariance, weight @ weight.T, here, torch.arange(100)[:, None])
    order = [*range(1100), *here, *range(1200, units)]
    errors = eliminate([few], units, order)
    assert torch.allclose(errors[here], 16.0 * torch.arange(1, 101, dtype=torch.float64))


ABLATED = {
    "units": st.integers(1, 7),
    "widths": st.lists(st.integers(1, 4), min_size=1, max_size=3),
    "outputs": st.integers(1, 30),
    "missing": st.booleans(),
    "seed": st.integers(0, 99),
}


@settings(max_examples=25)
@given(**ABLATED)
def test_every_step_of_an_ablation_is_the_cheapest_and_its_error_the_change(
    units, widths, outputs, missing, seed
) -> None:
    systems = several_systems(units, widths, outputs, missing, seed)
    parts = [AblatedSystem(s, w @ w.T, list(range(units)), columns) for s, w, columns in systems]
    total = eliminate(parts, units)
    order, removed, highest = total.argsort().tolist(), [], 0.0
    for unit in order:
        cheapest = min(change(systems, [*removed, other]) for other in range(units) if other not in removed)
        removed.append(unit)
        assert change(systems, removed) == pytest.approx(cheapest, rel=1e-9)
        highest = max(highest, change(systems, removed))
        assert float(total[unit]) == pytest.approx(highest, rel=1e-9)


@settings(max_examples=25)
@given(**ABLATED)
def test_what_others_make_up_for_counts_by_the_odds_of_the_error_so_far(units, widths, outputs, missing, seed) -> None:
    systems = several_systems(units, widths, outputs, missing, seed)
    parts = [AblatedSystem(s, w @ w.T, list(range(units)), columns) for s, w, columns in systems]
    fitted = [LinearSystem(torch.linalg.inv(s), w @ w.T, list(range(units)), columns) for s, w, columns in systems]
    total = eliminate(parts, units, made_up_for=fitted)
    whole, removed, highest = change(systems, list(range(units))), [], 0.0
    for unit in total.argsort().tolist():
        share = min(max(change(systems, removed) / whole, 0), 0.999)

        def cost(other: int, share: float = share) -> float:
            refitted = total_error(systems, [*removed, other]) - total_error(systems, removed)
            return change(systems, [*removed, other]) + 30 * share / (1 - share) * refitted

        cheapest = min(map(cost, set(range(units)).difference(removed)))
        assert cost(unit) == pytest.approx(cheapest, rel=1e-6)
        removed.append(unit)
        highest = max(highest, change(systems, removed))
        assert float(total[unit]) == pytest.approx(highest, rel=1e-9)  # what is made up for is no part of the error


def several_systems(units: int, widths: list[int], outputs: int, missing: bool, seed: int) -> list[System]:
    systems: list[System] = []
    for number, width in enumerate(widths):
        covariance, weight = system(units * width, outputs, seed + number)
        columns = torch.randperm(units * width, generator=torch.Generator().manual_seed(seed)).view(units, width)
        if missing and width > 1:
            columns[0, -1] = -1
        systems.append((covariance, weight, columns))
    return systems


def change(systems: list[System], removed: list[int]) -> float:
    """The squared error of ``X W`` without the removed columns, when nothing makes up for them."""
    total = 0.0
    for covariance, weight, columns in systems:
        gone = [int(c) for unit in removed for c in columns[unit] if c >= 0]
        total += float((weight[gone] * (covariance[gone][:, gone] @ weight[gone])).sum())
    return total


def test_many_units_are_ablated_at_once_with_the_same_errors() -> None:
    covariance, weight = system(300, 40, 0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).tolist()
    total = eliminate(
        [AblatedSystem(covariance, weight @ weight.T, list(range(300)), torch.arange(300)[:, None])], 300, order
    )
    ranked = total[order]
    assert bool((ranked.diff() > 0).all())
    assert float(total.max()) >= float((weight * (covariance @ weight)).sum()) * (1 - 1e-9)
    for count in (250, 275, 299):  # one at a time by then: the running maximum is exact from the last step on
        gone = order[:count]
        exact = float((weight[gone] * (covariance[gone][:, gone] @ weight[gone])).sum())
        assert float(ranked[count - 1]) >= exact * (1 - 1e-9)
