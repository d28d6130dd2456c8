"""Which algorithm a weight gets: the one place that decides it."""

from __future__ import annotations

import pytest
import torch

from fec_fast import Formula
from fec_fast.scoring.backends.layout import Placement, algorithm_for, arranged, placements_of
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
    placements = [Placement(*placement) for placement in placements_of(weights)]
    arrangement = arranged(placements, [0, 0], [1, 1], ["sorted", "pairwise"])
    assert arrangement is not None and [row[2] for row in arrangement.rows] == [True, False]
    assert [row[0] for row in arrangement.rows] == [weight.data_ptr() for weight in weights]


def test_results_lie_one_after_another() -> None:
    weights = [torch.ones(2, 3), torch.ones(0, 3), torch.ones(4, 0), torch.ones(6, 5)]
    placements = [Placement(*placement) for placement in placements_of(weights)]
    arrangement = arranged(placements, [0, 0, 0, 1], [1, 1, 1, 2], ["sorted"] * 4)
    assert arrangement is not None and arrangement.sizes == [2, 0, 4, 10]
    assert arrangement.offsets == [0, 16, 16, 48] and arrangement.without_elements == [1, 2]


def test_taps_without_a_common_stride_are_not_arranged() -> None:
    cut = torch.ones(3, 4, 3, 5)[..., 1:4]
    assert arranged([Placement(*placements_of([cut])[0])], [0], [1], ["sorted"]) is None
