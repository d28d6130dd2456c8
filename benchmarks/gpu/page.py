"""Table of docs/gpu.md from a result file of ``python -m benchmarks.gpu``; the text around it is written by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import markdown_table


def table_of_throughput(result: dict[str, Any]) -> str:
    """Milliseconds by network and by what is computed.

    Args:
        result: The content of the result file.
    """
    networks = result["throughput"]
    sides = list(next(iter(networks.values())))
    return markdown_table(
        ["", *networks], [[side, *(f"{networks[name][side]:g}" for name in networks)] for side in sides]
    )
