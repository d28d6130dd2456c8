"""``Sweep``: the front, the smallest network that is good enough, the table and the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fec_fast
from fec_fast import DenseNetwork, Sweep, SweepPoint
from helpers.sweeping import network, quick_sweep

PLAN = fec_fast.Plan("sha256:" + 64 * "a", "sha256:" + 64 * "b", {}, {}, {}, {}, [], "l1", None, "both")


def made_of(sizes: list[tuple[int, int]], dense: float = 1.0) -> Sweep:
    points = [
        SweepPoint(f"macs=0.{number}", "entropy", "l1", value / 100, None, 10 * macs, macs, None, PLAN)
        for number, (macs, value) in enumerate(sizes)
    ]
    return Sweep("accuracy", DenseNetwork(dense, 1000, 100), tuple(points))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_holds_what_no_other_beats(sizes: list[tuple[int, int]]) -> None:
    result = made_of(sizes)
    front = result.front()
    figures = [(point.macs, point.value) for point in result.points]

    def beaten(macs: int, value: float) -> bool:
        return any(a <= macs and b >= value and (a, b) != (macs, value) for a, b in figures)

    assert {(point.macs, point.value) for point in front} == {pair for pair in figures if not beaten(*pair)}
    assert [point.macs for point in front] == sorted({point.macs for point in front})


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), min_size=1, max_size=12), st.integers(0, 100))
def test_the_smallest_is_good_enough_and_none_below_it_is(sizes: list[tuple[int, int]], within: int) -> None:
    result = made_of(sizes)
    good = [macs for macs, value in sizes if value >= 100 - within]
    if good:
        point = result.smallest(within)
        assert point.macs == min(good) and round(100 * point.value) >= 100 - within
    else:
        with pytest.raises(fec_fast.BudgetError, match="no network of the sweep is within"):
            result.smallest(within)


def test_the_cost_is_chosen() -> None:
    points = [
        SweepPoint("macs=0.2", "entropy", "l1", 0.9, None, 10, 60, 3.0, PLAN),
        SweepPoint("macs=0.4", "entropy", "l1", 0.9, None, 50, 20, 2.0, PLAN),
        SweepPoint("macs=0.6", "entropy", "l1", 0.9, 0.95, 40, 40, 1.0, PLAN),
    ]
    result = Sweep("accuracy", DenseNetwork(0.9, 1000, 100, 5.0), tuple(points))
    assert [result.smallest(cost=cost).budget for cost in ("parameters", "macs", "latency_ms")] == [
        *("macs=0.2", "macs=0.4", "macs=0.6")
    ]
    with pytest.raises(fec_fast.ArgumentError, match="nearest: 'macs'"):
        result.smallest(cost="mac")
    with pytest.raises(fec_fast.ArgumentError, match="give it latency=True"):
        made_of([(1, 1)]).front("latency_ms")
    with pytest.raises(fec_fast.ArgumentError, match="within=-1"):
        result.smallest(within=-1)


def test_the_message_names_the_best() -> None:
    with pytest.raises(fec_fast.BudgetError, match=r"of 1.0000: the best \(macs=0.1, entropy, l1\) has 0.9700"):
        made_of([(5, 96), (7, 97)]).smallest(within=1.0)


def test_text_is_one_line_or_a_table() -> None:
    result = quick_sweep(network())
    assert repr(result).startswith("<Sweep: 6 networks, width ") and repr(result).endswith(", dense 20.0000>")
    assert "\n" not in repr(result)
    rows = str(result).splitlines()
    assert rows[2].split() == ["dense", "20.0000", *rows[2].split()[2:]]
    assert [row.startswith("*") for row in rows[3:9]] == [point in result.front() for point in result.points]
    assert max(map(len, rows)) < 100


def test_json_has_the_figures() -> None:
    result = quick_sweep(network())
    document = json.loads(result.to_json())
    assert document["dense"]["value"] == 20.0
    assert [entry["macs"] for entry in document["points"]] == [point.macs for point in result.points]
    assert [entry["front"] for entry in document["points"]] == [point in result.front() for point in result.points]
    assert "plan" not in document["points"][0]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_json_is_read_again(sizes: list[tuple[int, int]]) -> None:
    result = made_of(sizes)
    again = Sweep.from_json(result.to_json())
    assert [point.figures() for point in again.points] == [point.figures() for point in result.points]
    assert again.dense == result.dense and str(again) == str(result)
    with pytest.raises(fec_fast.ArgumentError, match="this sweep has no plans, .* run the sweep again"):
        again.make(again.points[0])


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"points": []}, {"dense": {"value": 1}}, {"metric": 3}, {"points": [{"macs": -1}]}]
)
def test_other_json_is_refused(change: dict[str, object]) -> None:
    document = json.loads(made_of([(1, 2)]).to_json())
    with pytest.raises(fec_fast.InputError, match="the JSON of a sweep"):
        Sweep.from_json(json.dumps(document | change))


def test_notebooks_show_a_row_per_network() -> None:
    html = made_of([(3, 4), (2, 1)])._repr_html_()
    assert html.count("<tr>") == 4 and "dense" in html


def test_the_picture_shows_every_point(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = quick_sweep(network())
    figure = result.plot(tmp_path / "sweep.svg", cost="parameters")
    assert (tmp_path / "sweep.svg").read_text().lstrip().startswith("<?xml")
    (axes,) = figure.axes
    drawn = {(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(point.parameters, point.value) for point in result.points} <= drawn
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["entropy, l1", "entropy, fec_l1"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fec_fast.MissingExtraError, match=r"pip install 'fec_fast\[report\]'"):
        made_of([(1, 1)]).plot()
