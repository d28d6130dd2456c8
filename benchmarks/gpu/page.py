"""Table of docs/gpu.md from a result file of ``python -m benchmarks.gpu``; the text around it is written by hand."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.common.tables import markdown_table


def table_of_throughput(result: dict[str, Any]) -> str:
    """Milliseconds by network and by what is computed.

    Args:
        result: The content of the result file.
    """
    networks = result["throughput"]
    sides = dict.fromkeys(itertools.chain.from_iterable(networks.values()))  # a run that was cut off has fewer of some
    rows = [[side, *(f"{each[side]:g}" if side in each else "" for each in networks.values())] for side in sides]
    return markdown_table(["", *networks], rows)
