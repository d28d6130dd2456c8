"""Results of commands as text, the totals first, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..pruning.allocation.measured import Sensitivity
from ..pruning.explanation import FilterExplanation
from ..pruning.pruner import PruneResult
from ..scoring.model_scores import ModelScores
from ..training.history import FinetuneResult
from ..utils.text import counted

_ENDS = 3  # sets that are listed at both ends


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
        keep = "keeps" if len(result.plan.pinned) == 1 else "keep"
        lines.append(f"{counted(len(result.plan.pinned), 'layer')} {keep} all filters; --layers says which and why")
    return "\n".join(lines)


def scores_headline(scores: ModelScores) -> str:
    """The scores of a network in a few lines: how many, from where to where, and the layers at both ends.

    Args:
        scores: The scores.

    Returns:
        Text; ``--layers`` prints the rest.
    """
    lines = [f"{counted(len(scores), 'layer')}, {counted(sum(map(len, scores.values())), 'filter')}"]
    if scores:
        means = {name: float(values.mean()) for name, values in scores.items()}
        ends = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        spread = [float(bound) for values in scores.values() for bound in (values.min(), values.max())]
        lines.append(f"entropies from {min(spread):.4f} to {max(spread):.4f} nats")
        lines.append(f"lowest mean: {ends[0]}, {means[ends[0]]:.4f}")
        lines.append(f"highest mean: {ends[1]}, {means[ends[1]]:.4f}")
    lines.append(f"{scores.formula}; backend {scores.backend}")
    if scores.unscored:
        lines.append(f"{counted(len(scores.unscored), 'layer')} without a score")
    return "\n".join([*lines, "--layers prints every layer"])


def sensitivity_headline(measured: Sensitivity) -> str:
    """What the sets cost in a few lines: those that cost the most and the least when most of them is removed.

    Args:
        measured: The values.

    Returns:
        Text; ``--layers`` prints the rest.
    """
    rows = []
    for name, values in measured.values.items():
        removed = max(values)
        rows.append((values[removed], name, removed / measured.units[name]))
    rows.sort()
    lines = [f"nothing removed: {measured.whole:.4g}; {counted(len(rows), 'coupled set')} measured alone"]
    if len(rows) <= 2 * _ENDS:
        lines += [f"{name}: {value:.4g} with {share:.0%} removed" for value, name, share in rows]
    else:
        for words, some in (("most", rows[:_ENDS]), ("least", rows[: -_ENDS - 1 : -1])):
            lines.append(f"costs the {words}:")
            lines += [f"  {name}: {value:.4g} with {share:.0%} removed" for value, name, share in some]
    return "\n".join([*lines, "--layers prints every value"])


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
