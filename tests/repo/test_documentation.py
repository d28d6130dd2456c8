"""The pages: links lead somewhere, tables are whole, the README is short. Their blocks: test_page_blocks.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.pages import PAGES, ROOT


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Relative links name a file of the repository and, behind ``#``, a heading of the page that they name."""
    for target, _, anchor in re.findall(
        r"\]\((?!https?://)([^)#\s]*)(#([^)\s]+))?\)", page.read_text(encoding="utf-8")
    ):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_rows_of_a_table_have_the_cells_of_its_header(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"^\|.*\n\|[-| :]+\|\n(?:\|.*\n?)+", text, re.MULTILINE):
        header, *rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert set(rows) == {header}, table[:200]
