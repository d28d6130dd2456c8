"""docs/coverage.md from benchmarks/results/coverage.json."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from benchmarks.scoring.page import table

ENOUGH = 0.6  # the share of the convolutions' output channels that must be prunable, or the reason be structural
# Reasons that lie in what the network computes: no surgery could take such a channel away and keep the function.
STRUCTURAL = {
    "takes statistics over channels": "a norm over channels (LayerNorm, GroupNorm) computes others without the channel",
    "outputs of the model": "the channel is an output of the model",
    "cuts its channels at fixed positions": "the channels are cut into parts that the model's code tells apart",
    "splits channels over": "the channels are split into groups, heads, anchors or classes",
    "picks channels by their numbers": "the channels are picked by number",
    "relates channels to one another": "a softmax or the like runs over the channels",
    "runs over all its channels": "a mean or maximum runs over the channels",
    "not a parameter of the model": "the weight of a layer is computed from others (weight standardisation)",
    "model's code wants its width": "the width is a number in the model's code",
    "has no rule": "attention and other products of features with features",
    "its width is fixed": "it meets a tensor of fixed width",
    "fixed width": "it meets a tensor of fixed width",
    "keeps its size": "a group keeps its size",
    "reach it": "the example inputs do not reach it",
}


def in_words(reason: str) -> str:
    return next((words for key, words in STRUCTURAL.items() if key in reason), re.sub(r"`", "", reason))


def page(result: dict[str, Any]) -> str:
    rows = result["networks"]
    families = dict.fromkeys(row["family"] for row in rows.values())
    summary, parts = [], []
    for family in families:
        mine = {name: row for name, row in rows.items() if row["family"] == family}
        fine = [row for row in mine.values() if "prunable" in row]
        whole = sum("nothing" in row for row in mine.values())
        wide = sum(row["prunable"] >= ENOUGH for row in fine)
        insensitive = sum(row["sensitive"] is False for row in fine)
        failed = len(mine) - len(fine) - whole
        summary.append((family, len(mine), len(fine), wide, len(fine) - wide, whole, failed, insensitive))
        body = []
        for name, row in mine.items():
            if "error" in row:
                body.append((name, "", "", "", "", f"**fails**: {row['error'].replace('|', '/')[:200]}"))
                continue
            if "nothing" in row:
                body.append((name, "", "", "", "0%", row["nothing"].replace("|", "/")))
                continue
            reasons = Counter()
            for reason, count in row["kept for"].items():
                reasons[in_words(reason)] += count
            said = "; ".join(f"{words} ({count:,})" for words, count in reasons.most_common(2))
            change = row["after"] / row["parameters"] - 1
            body.append(
                (
                    name,
                    f"{row['parameters'] / 1e6:,.1f} M",
                    f"{row['after'] / 1e6:,.1f} M",
                    f"{change:+.0%}",
                    f"{row['prunable']:.0%}",
                    said if row["prunable"] < 0.9 else "",
                )
            )
        header = ("network", "parameters", "after", "change", "prunable", "channels that stay, and why")
        parts.append(f"## {family[0].upper()}{family[1:]}\n\n{table(header, body)}")
    machine = result["machine"]
    joined = "\n".join(parts)
    rest = result["listed"] - len(rows)
    left = (
        f"{rest} of the {result['listed']} listed were not examined yet; the command goes on with them." if rest else ""
    )
    return f"""# Which networks can be pruned

Written by `python -m benchmarks.coverage` (`pip install '.[coverage]'`) from
[benchmarks/results/coverage.json](../benchmarks/results/coverage.json); do not edit. {machine["processor"]},
{machine["cores"]} cores, torch {
        machine["torch"]
    }, no GPU. timm's networks are a spread over its convolutional and hybrid
families, at most 60 million parameters each. {left}

Every network, randomly initialised and scaled so that its outputs depend on all of it, is pruned at ratio 0.5, run
forward and backward in evaluation and in training mode, proven equal to the masked original (in float64, relative
difference at most 1e-5), saved, loaded into a fresh instance and found bit-equal. "Prunable" is the share of the output
channels of all convolutions that may go at all; below {ENOUGH:.0%}, the table says what keeps them. What stays whole is
never silent: `result.plan.pinned` and `result.plan.notes` name it.

{
        table(
            (
                "family",
                "networks",
                "pass",
                f"of these {ENOUGH:.0%} prunable or more",
                "less, for the reason given",
                "nothing to prune",
                "fail",
                "outputs that ignore the inputs",
            ),
            summary,
        )
    }
{joined}"""
