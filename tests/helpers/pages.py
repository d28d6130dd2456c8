"""The documentation pages as tests see them: their blocks of code, and stand-ins for what a reader has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*.md")])
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<source>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: What stands behind the fence; empty for what a command prints.
        source: The lines.
        line: The number of the first of them in the page.
        reason: Why a test cannot run it, from the comment ``<!-- not run: REASON -->`` before it; ``None`` if it can.
    """

    language: str
    source: str
    line: int
    reason: str | None


def name_of(page: Path) -> str:
    """The path of a page from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("source")) + 1
        yield Block(match["language"], match["source"], line, match["reason"])


def commands(page: Path) -> Iterator[tuple[int, str]]:
    """The commands of the shell blocks of a page, with the numbers of their lines; continued lines are joined."""
    for block in blocks(page):
        if block.language != "sh":
            continue
        joined, start = "", block.line
        for number, row in enumerate(block.source.splitlines(), block.line):
            joined += row.rstrip("\\") if row.endswith("\\") else row
            if not row.endswith("\\"):
                if joined.strip():
                    yield start, joined.strip()
                joined, start = "", number + 1
