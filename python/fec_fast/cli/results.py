"""Results of commands as text, the totals first, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..pruning.explanation import FilterExplanation
from ..pruning.pruner import PruneResult
from ..training.history import FinetuneResult


def headline(result: PruneResult) -> str:
    """A pruned network in a few lines: totals, proof, recovery and notes.

    Args:
        result: The result of pruning.

    Returns:
        Text; ``--layers`` prints the rest.
    """
    before, after = result.before, result.after
    lines = [
        f"parameters: {before.parameters:,} -> {after.parameters:,} ({_change(before.parameters, after.parameters)})",
        f"MACs: {before.macs:,} -> {after.macs:,} ({_change(before.macs, after.macs)})",
    ]
    if result.proof is not None:
        lines.append(str(result.proof).splitlines()[0])
    lines += [f"note: {note}" for note in result.plan.notes]
    if result.plan.pinned:
        lines.append(f"{len(result.plan.pinned)} layer(s) keep all filters; --layers says which and why")
    return "\n".join(lines)


def result_json(result: PruneResult, folder: Path) -> str:
    """A pruned network as JSON.

    Args:
        result: The result of pruning.
        folder: Where its checkpoint is.

    Returns:
        Text of several lines.
    """
    document = {
        "format": "fec_fast.prune",
        "version": 1,
        "checkpoint": str(folder),
        "before": asdict(result.before),
        "after": asdict(result.after),
        "difference": result.difference,
        "recovery": None if result.recovery is None else result.recovery.note,
        "pinned": result.plan.pinned,
        "notes": result.plan.notes,
    }
    return json.dumps(document, indent=1) + "\n"


def explanation_json(layer: str, filters: Sequence[FilterExplanation]) -> str:
    """Why filters were removed or kept, as JSON.

    Args:
        layer: The name of the layer.
        filters: The filters.

    Returns:
        Text of several lines.
    """
    document = {
        "format": "fec_fast.explanation",
        "version": 1,
        "layer": layer,
        "filters": [asdict(entry) for entry in filters],
    }
    return json.dumps(document, indent=1, default=str) + "\n"


def training_json(metric: str, before: float, after: float, result: FinetuneResult) -> str:
    """A training as JSON.

    Args:
        metric: The name of the metric.
        before: Its value on the held-out data before.
        after: The same after.
        result: The result of the training.

    Returns:
        Text of several lines.
    """
    document = {
        "format": "fec_fast.finetune",
        "version": 1,
        "metric": metric,
        "before": before,
        "after": after,
        "stopped": result.stopped,
        "best_epoch": result.best_epoch,
        "epochs": [asdict(epoch) for epoch in result.history],
    }
    return json.dumps(document, indent=1) + "\n"


def _change(old: int, new: int) -> str:
    return f"{100 * (new - old) / old:+.1f} %" if old else "="
