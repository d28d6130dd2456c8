"""Which algorithm a weight gets: the one place that decides it."""

from __future__ import annotations

import pytest
import torch

from fec_fast import Formula
from fec_fast.scoring.backends.layout import algorithm_for, rows_of
from fec_fast.utils.errors import FormulaError

ONE_TAP, NINE_TAPS = (5, 7), (5, 7, 3, 3)


@pytest.mark.parametrize(
    ("formula", "shape", "sortable"),
    [
        (Formula("rms", axis="channels"), NINE_TAPS, True),
        (Formula("absmean", "softmax", "channels"), NINE_TAPS, True),
        (Formula("mean", "distance", "channels"), NINE_TAPS, True),
        (Formula("none", axis="channels"), NINE_TAPS, False),  # points of nine coordinates
        (Formula("none", axis="channels"), ONE_TAP, True),
        (Formula("none", axis="channels"), (5, 7, 1, 1), True),
        (Formula("rms", axis="filters"), ONE_TAP, False),
        (Formula("rms", axis="both"), ONE_TAP, False),
    ],
)
def test_sorted_where_there_is_one_number_per_channel(formula: Formula, shape: tuple[int, ...], sortable: bool) -> None:
    weight = torch.ones(shape)
    assert algorithm_for("auto", formula, weight, 0, 1) == ("sorted" if sortable else "pairwise")
    assert algorithm_for("pairwise", formula, weight, 0, 1) == "pairwise"
    if sortable:
        assert algorithm_for("sorted", formula, weight, 0, 1) == "sorted"
    else:
        with pytest.raises(FormulaError, match=r"needs the channel axis, one number per channel, not .* weight 3 of"):
            algorithm_for("sorted", formula, weight, 0, 1, index=3)


def test_a_backend_without_the_distance_entropy() -> None:
    weight, formula = torch.ones(5, 7), Formula("rms", "distance", "channels")
    assert algorithm_for("auto", formula, weight, 0, 1, distance=False) == "pairwise"
    assert algorithm_for("auto", Formula("rms", axis="channels"), weight, 0, 1, distance=False) == "sorted"
    with pytest.raises(FormulaError, match="an entropy other than distance"):
        algorithm_for("sorted", formula, weight, 0, 1, distance=False)


def test_a_backend_that_sorts_short_filters_only() -> None:
    formula, weight = Formula("rms", axis="channels"), torch.ones(8, 6)
    assert algorithm_for("auto", formula, weight, 0, 1, most_channels=6) == "sorted"
    assert algorithm_for("auto", formula, weight, 0, 1, most_channels=5) == "pairwise"
    # Filters on the second axis: each has the first axis's share of its group as channels.
    assert algorithm_for("auto", formula, weight, 1, 2, most_channels=4) == "sorted"
    assert algorithm_for("auto", formula, weight, 1, 2, most_channels=3) == "pairwise"
    with pytest.raises(FormulaError, match="at most 5 channels"):
        algorithm_for("sorted", formula, weight, 0, 1, most_channels=5)


def test_the_kernels_are_told_per_weight() -> None:
    weights = [torch.ones(2, 3), torch.ones(2, 3)]
    rows, _, _ = rows_of(weights, [0, 0], [1, 1], ["sorted", "pairwise"])
    assert [row[2] for row in rows] == [True, False]
