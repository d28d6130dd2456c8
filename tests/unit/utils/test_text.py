"""Text tables, character by character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.utils.text import change, counted, folded, lines_within, short_number, text_table

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


CELLS = st.text(st.characters(categories=("L", "Nd"), include_characters=".,-"), min_size=1, max_size=24)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=6), st.integers(30, 90))
def test_a_narrow_terminal_folds_a_table_and_loses_nothing(rows: list[tuple[str, ...]], width: int) -> None:
    header, align = ("layer", "kind", "size", "mean"), "llrr"
    whole = text_table(header, rows, align)
    with lines_within(width):
        narrow = text_table(header, rows, align)
    assert max(map(len, narrow.splitlines())) <= width
    for row in rows:
        assert all(cell in narrow for cell in row)
    if max(map(len, whole.splitlines())) <= width:
        assert narrow == whole


@given(st.lists(CELLS, min_size=1, max_size=30), st.integers(32, 90), st.integers(0, 6))
def test_long_lines_are_folded_at_spaces(words: list[str], width: int, indent: int) -> None:
    line = " " * indent + " ".join(words)
    assert folded(line) == line
    with lines_within(width):
        lines = folded(line).split("\n")
    assert max(map(len, lines)) <= width and " ".join(lines).split() == words
    assert all(part.startswith(" " * indent) for part in lines)
