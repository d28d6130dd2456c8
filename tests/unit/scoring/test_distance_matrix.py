"""``channel_distances``: Euclidean distances between channels or filters."""

from __future__ import annotations

import pytest
import torch

import fec_fast
from fec_fast import ArgumentError, Formula, FormulaError

RMS = Formula("rms", axis="channels")


def test_distances_are_those_of_the_weights() -> None:
    w = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    inside = fec_fast.channel_distances(w, Formula(axis="channels"))
    between = fec_fast.channel_distances(w, Formula(axis="filters"))
    assert inside.shape == (4, 3, 3) and between.shape == (4, 4)
    assert float(inside[1, 0, 2]) == pytest.approx(float((w[1, 0] - w[1, 2]).double().norm()), rel=1e-6)
    assert float(between[0, 3]) == pytest.approx(float((w[0] - w[3]).double().norm()), rel=1e-6)
    assert float(between.diagonal().abs().max()) == 0
    assert torch.equal(fec_fast.channel_distances(w), fec_fast.channel_distances(w, RMS))
    some = slice(1, 3)
    assert torch.equal(fec_fast.channel_distances(w, RMS, filters=some), fec_fast.channel_distances(w)[some])
    assert torch.equal(fec_fast.channel_distances(w, Formula(axis="filters"), filters=some), between[some])
    for wrong in (slice(4, 9), 2):
        with pytest.raises(ArgumentError, match="filters="):
            fec_fast.channel_distances(w, filters=wrong)  # type: ignore[arg-type]


def test_both_axes_have_no_one_matrix() -> None:
    with pytest.raises(FormulaError, match="ask for axis='channels' or axis='filters'"):
        fec_fast.channel_distances(torch.ones(4, 3), Formula("rms", axis="both"))
