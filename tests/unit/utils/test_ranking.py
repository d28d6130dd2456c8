"""Ties of numbers that were computed with rounding."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.utils.ranking import TIE, merge_ties

finite = st.floats(-1e300, 1e300)


def test_runs_of_near_numbers_are_ties() -> None:
    found = merge_ties(np.array([2.0, 1 + 3e-10, 1.0, 1 + 1e-9, 5e-7, 5.0000000001e-7, 0.0, 3e-320]))
    assert found.tolist() == [2.0, 1.0, 1.0, 1.0, 5e-7, 5e-7, 0.0, 3e-320]


def test_absolute_ties_and_zero() -> None:
    found = merge_ties(np.array([1e-9, 3e-17, 1.0, 1 + 9e-10, 1e-8, math.nan, math.inf, 0.0]), absolute=True)
    assert found[:5].tolist() == [0.0, 0.0, 1.0, 1.0, 1e-8]
    assert math.isnan(found[5]) and found[6] == math.inf and found[7] == 0
    assert merge_ties(np.zeros(0)).tolist() == []


@given(st.lists(finite, max_size=30))
def test_the_order_is_kept_and_does_not_matter(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float64)
    merged = merge_ties(given_values)
    order = np.argsort(given_values, kind="stable")
    assert (np.diff(merged[order]) >= 0).all()
    assert (np.abs(merged - given_values) <= len(values) * TIE * np.abs(given_values)).all()
    shuffled = np.random.default_rng(0).permutation(len(values))
    assert np.array_equal(merge_ties(given_values[shuffled]), merged[shuffled])
    assert np.array_equal(merge_ties(merged), merged)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_rounding_does_not_change_the_ranking(ranks: list[int], seed: int) -> None:
    """Numbers that are equal but for rounding are ranked by their positions."""
    exact = np.array(ranks, dtype=np.float64)
    noisy = exact * (1 + 1e-13 * np.random.default_rng(seed).standard_normal(len(exact)))
    assert np.array_equal(np.argsort(merge_ties(noisy), kind="stable"), np.argsort(exact, kind="stable"))
    nats = exact + 1e-13 * np.random.default_rng(seed).random(len(exact))
    ranked = np.argsort(merge_ties(nats, absolute=True), kind="stable")
    assert np.array_equal(ranked, np.argsort(exact, kind="stable"))
    assert ((merge_ties(nats, absolute=True) == 0) == (exact == 0)).all()
