"""Text tables, character by character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.utils.text import change, counted, short_number, text_table

HEADER, ROWS = ("layer", "weights", "note"), [("conv1", "9", ""), ("a", "1,000", "kept whole"), ("total", "1,009", "")]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(HEADER, ROWS, "lrl").splitlines() == [
        "layer  weights  note",
        "--------------------------",
        "conv1        9",
        "a        1,000  kept whole",
        "total    1,009",
    ]


def test_totals_and_no_rule() -> None:
    assert text_table(HEADER[:2], [row[:2] for row in ROWS], "lr", totals=True).splitlines()[-2:] == [
        "--------------",
        "total    1,009",
    ]
    assert text_table(HEADER, ROWS, "lrl", rule=False).splitlines()[1] == "conv1        9"


def test_without_rows_the_header_is_left() -> None:
    assert text_table(("a", "bc"), [], "lr") == "a  bc\n-----"


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        text_table(("a", "b"), [("1",)], "lr")


@given(st.integers(0, 10**15))
def test_a_short_number_is_near_the_number(number: int) -> None:
    text, _, letter = short_number(number).partition(" ")
    assert len(text) <= 5
    assert abs(float(text) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[letter] - number) <= 0.006 * number


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (25_557_032, "25.6 M"),
        (4_089_184_256, "4.09 G"),
        (336_000_000, "336 M"),
    ],
)
def test_short_numbers(number: int, text: str) -> None:
    assert short_number(number) == text


def test_changes_and_counts() -> None:
    assert (change(200, 150), change(3, 3), change(0, 5)) == ("-25.0 %", "=", "new")
    assert (counted(1, "layer"), counted(0, "layer"), counted(1200, "layer")) == ("1 layer", "0 layers", "1,200 layers")
