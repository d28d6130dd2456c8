"""HTML for notebooks: names cannot break out of their cell, long tables are cut with a line that says so."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.utils.html import html_panel, share_bar

TEXT = st.text(alphabet=st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), max_size=20)


class Reader(HTMLParser):
    """Collects the texts and the tags of a page, and checks that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(TEXT, TEXT, TEXT)
def test_text_is_never_read_as_tags(title: str, fact: str, cell: str) -> None:
    reader = Reader(html_panel(title, [fact], ("name", "kept"), [(cell, share_bar(0.5, cell))], "lr"))
    plain = Reader(html_panel("a", ["a"], ("name", "kept"), [("a", share_bar(0.5, "a"))], "lr"))
    assert reader.tags == plain.tags
    assert "".join(reader.texts) == title + fact + "name" + "kept" + cell + cell


@pytest.mark.parametrize(("share", "width"), [(-1.0, 0), (0.0, 0), (0.5, 50), (1.0, 100), (7.0, 100)])
def test_a_bar_stays_in_its_frame(share: float, width: int) -> None:
    assert f"width:{width}%" in share_bar(share, "some")


def test_more_rows_than_are_shown_are_counted() -> None:
    rows = [(str(number),) for number in range(1000)]
    page = html_panel("many", [], ("number",), rows, "r")
    assert page.count("<tr>") == 201 and "and 800 more rows" in page
    assert "more rows" not in html_panel("many", [], ("number",), rows[:200], "r")


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="a table of 2 columns"):
        html_panel("title", [], ("a", "b"), [("only one",)], "ll")
