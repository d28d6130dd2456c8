"""Draws the pictures of README.md and docs/how-it-works.md.

    python -m benchmarks.pictures     writes docs/result.svg, docs/coupling.svg, docs/cut.svg, docs/compensation.svg

The first shows benchmarks/results/recovery.json. Equal results give equal files.
"""

from __future__ import annotations

import argparse

from benchmarks.common.pages import write_page
from benchmarks.common.results import RESULTS, read_result
from benchmarks.pictures.mechanism import PICTURES
from benchmarks.pictures.result import result


def drawn() -> dict[str, str]:
    """The pictures, by the names of their files in ``docs/``."""
    pictures = {name: draw() for name, draw in PICTURES.items()}
    return {"result.svg": result(read_result(RESULTS / "recovery.json")), **pictures}


def main() -> None:
    """Writes the files."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, content in drawn().items():
        write_page(name, content)
