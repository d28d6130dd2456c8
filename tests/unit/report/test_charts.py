"""Charts: lanes of the graph never cross, drawings are complete and of one style."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.report.charts import (
    Curve,
    Link,
    coupling_graph,
    curve_chart,
    distribution,
    is_logarithmic,
    lanes_of,
    sensitivity_chart,
)

pytest.importorskip("matplotlib")

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: tuple(sorted(pair))), max_size=40)


@given(SPANS)
def test_spans_in_one_lane_do_not_touch(spans: list[tuple[int, int]]) -> None:
    spans = sorted(spans)
    lanes = lanes_of(spans)
    for one, (first, last) in enumerate(spans):
        for other in range(one):
            if lanes[one] == lanes[other]:
                assert spans[other][1] < first or last < spans[other][0]
    rows = range(31)
    most = max((sum(first <= row <= last for first, last in spans) for row in rows), default=0)
    assert len(set(lanes)) == most  # no fewer lanes can do


def test_a_graph_has_a_row_for_every_layer() -> None:
    links = [Link("a", ("a", "c"), ("b", "a.norm"), 0.5), Link("b", ("b",), (), 1.0)]
    drawn = coupling_graph(links, {"a": "4 of 8 kept", "b": "all kept", "c": "4 of 8 kept"}, "a graph")
    for text in (">a<", ">b<", ">c<", ">4 of 8 kept<", ">all kept<", 'aria-label="a graph"'):
        assert text in drawn
    assert "a.norm" not in drawn, "what has no row is left out"


@pytest.mark.parametrize(
    ("kept", "removed"),
    [
        (np.array([1.0]), np.array([])),
        (np.array([1.0, 1.0]), np.array([1.0])),
        (np.array([]), np.array([0.5, 0.7])),
        (np.arange(512.0) + 100, np.arange(100.0)),
        (np.array([3e300]), np.array([-3e300])),
    ],
)
def test_any_scores_are_drawn(kept: np.ndarray, removed: np.ndarray) -> None:
    drawn = distribution(kept, removed, "scores0", "scores")
    assert drawn.startswith("<svg") and drawn.endswith("</svg>")
    assert ("stroke-dasharray" in drawn) == bool(len(kept) and len(removed)), "the cut lies between removed and kept"


def test_scores_over_several_powers_of_ten_are_drawn_on_a_logarithmic_scale() -> None:
    removed, kept = np.geomspace(1e-6, 1e-3, 50), np.geomspace(2e-3, 1.0, 50)
    assert is_logarithmic(np.concatenate([kept, removed])) and not is_logarithmic(kept + 1)
    assert not is_logarithmic(np.array([0.0, 1.0])) and not is_logarithmic(np.array([-5.0, 1000.0]))
    drawn = distribution(kept, removed, "scores0", "scores")
    assert drawn.count("stroke-dasharray") == 1 and "$" not in drawn
    labels = [float(text) for text in re.findall(r">([\d.e-]+)</text>", drawn) if "." in text or "e" in text]
    assert 2 <= len(labels) <= 5


def test_names_of_curves_are_in_the_chart() -> None:
    curves = [Curve("fec_fast", [1, 2], [0.5, 0.9]), Curve("$l_1$ & <random>", [1, 2], [0.1, 0.2])]
    drawn = curve_chart(curves, "curves0", "parameters", "accuracy", "two curves")
    assert ">fec_fast<" in drawn and ">$l_1$ &amp; &lt;random&gt;<" in drawn


def test_the_sets_that_cost_the_most_are_named() -> None:
    curves = {f"set{number}": [(0.5, 1 - number / 10), (0.9, 0.9 - number / 10)] for number in range(6)}
    drawn = sensitivity_chart(curves, {"set5": 0.25, "set1": 0.9}, 1.0, "sensitivity")
    assert all(f">set{number}<" in drawn for number in (3, 4, 5))
    assert not any(f">set{number}<" in drawn for number in (0, 1, 2))
