"""Rows of a result file: measured one by one, written at once, and not measured again by the next run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.results import read_result, write_result


class Row(NamedTuple):
    """One measurement.

    Attributes:
        section: What it belongs to, such as the name of a network.
        name: Its name there.
        measure: Measures it; the result is written as JSON. ``None`` if there was not enough time.
    """

    section: str
    name: str
    measure: Callable[[], Any]


def measure_rows(path: Path, part: str, rows: Iterable[Row], seconds: float) -> list[str]:
    """Measures the rows of a part that the result file has not yet, and writes the file after each of them.

    Args:
        path: The result file.
        part: The key of the part in it: a dictionary of sections.
        rows: All rows of the part.
        seconds: No row is begun after so long.

    Returns:
        The names of the rows for which no time was left.
    """
    end, left_out = time.monotonic() + seconds, []
    for row in rows:
        result = read_result(path)
        section = result.setdefault(part, {}).setdefault(row.section, {})
        if row.name in section:
            continue
        value = row.measure() if time.monotonic() < end else None
        if value is None:
            left_out.append(f"{row.section}: {row.name}")
            continue
        section[row.name] = value
        write_result(path, result)
        print(f"  {row.section}: {row.name}: {section[row.name]}", file=sys.stderr, flush=True)
    return left_out
