"""Tables of docs/yolo.md from the result files of ``benchmarks.yolo``; the text around them is written by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import markdown_table


def table_of_networks(result: dict[str, Any]) -> str:
    """One line per network: sizes, the share of channels that can go, and CPU seconds.

    Args:
        result: The content of yolo.json.
    """
    header = ("network", "parameters", "MACs", "can go", "plan and surgery", "proof")
    return markdown_table(
        header,
        [
            (
                row["network"],
                f"{row['parameters'][0] / 1e6:.2f} M to {row['parameters'][1] / 1e6:.2f} M",
                f"{row['macs'][0] / 1e9:.2f} G to {row['macs'][1] / 1e9:.2f} G",
                f"{row['prunable']:.1%}".replace("%", " %"),
                f"{row['seconds']:.1f} s",
                f"{row['proof_seconds']:.1f} s",
            )
            for row in result["rows"]
        ],
    )


def table_of_detection(result: dict[str, Any]) -> str:
    """One line per stage of a training on blood cells: sizes, average precision, latency.

    Args:
        result: The content of a result file of ``python -m benchmarks.yolo.bccd``.
    """
    return markdown_table(
        ("network", "MACs", "mAP50-95", "mAP50", "one image"),
        [
            (
                stage,
                f"{row['macs'] / 1e9:.2f} G",
                f"{row['map']:.3f}",
                f"{row['map50']:.3f}",
                f"{row['latency'] * 1e3:.0f} ms",
            )
            for stage, row in result["stages"].items()
        ],
    )
