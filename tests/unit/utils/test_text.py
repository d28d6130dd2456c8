"""Text tables, character by character."""

from __future__ import annotations

import pytest

from fec_fast.utils.text import text_table

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
