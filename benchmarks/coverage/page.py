"""docs/coverage.md from benchmarks/results/coverage.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.common.pages import heading, page_of, paragraph, written_by
from benchmarks.common.results import measured_on, read_result
from benchmarks.common.tables import markdown_table
from benchmarks.coverage.packages_page import PACKAGES_RESULT, RENORMALISED, packages_part

ENOUGH = 0.6  # the share of prunable output channels below which a network is counted apart
UNEXPLAINED = 0.9  # the share below which the table gives the reasons
# Reasons as they are recorded, by a part of their text, in words for a reader who does not know ATen. Others are shown
# as recorded.
REASONS = {
    "takes statistics over channels": "a norm over channels (LayerNorm, GroupNorm) computes others without the channel",
    "outputs of the model": "the channel is an output of the model",
    "cuts its channels at fixed positions": "the model's code cuts the channels at fixed positions",
    "tied to one another": "divisions and shuffles tie all channels of the layer together",
    "splits channels over": "the channels are split into groups, heads, anchors or classes",
    "picks channels by their numbers": "the model's code selects channels by index",
    "relates channels to one another": "a softmax or a similar operator runs over the channels",
    "runs over all its channels": "a mean or maximum runs over the channels",
    "not a parameter of the model": "the weight of a layer is computed from others (weight standardisation)",
    "model's code wants its width": "the width is a constant in the model's code",
    "with each channel of another tensor": "a product of activations relates each channel to each of another tensor",
    "from its width": "the model's code computes a number from the width, such as a scale of attention",
    "as wide as its queries": "nn.MultiheadAttention is as wide as its input, which keeps its width",
    "bmm.default, which has no rule": "a product of activations with activations (attention)",
    "has no rule": "an operator has no pruning rule",
    "its width is fixed": "combined with a tensor of fixed width",
    "fixed width": "combined with a tensor of fixed width",
    "keeps its size": "the size of a group must not change",
    "reach it": "the example inputs do not reach the layer",
}


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    rows = result["networks"]
    families: dict[str, dict[str, dict[str, Any]]] = {}
    for name, row in rows.items():
        families.setdefault(row["family"], {})[name] = row
    largest = max(row["parameters"] for row in families["timm"].values() if "parameters" in row)
    missing = result["listed"] - len(rows)
    return page_of(
        "Networks that can be pruned",
        written_by("python -m benchmarks.coverage --page-only", "coverage.json"),
        paragraph(
            "`pip install '.[coverage]' && python -m benchmarks.coverage` measures the networks without a result."
        ),
        measured_on(result, rows.values()),
        paragraph(
            "timm's networks are a selection of its convolutional and hybrid families, at most",
            f"{largest / 1e6:.0f} million parameters each.",
            *([f"{missing} of the {result['listed']} listed networks have no result yet."] if missing else []),
        ),
        paragraph(
            "Every network, with random weights scaled so that its outputs depend on every layer, is pruned at ratio",
            "0.5, run forward and backward in evaluation and in training mode, compared with the masked original (in",
            "float64; relative difference at most 1e-9, where no commit is recorded 1e-5), saved, loaded into a new",
            "instance and compared bit for bit.",
            '"Prunable" is the share of the output channels of all convolutions that can be removed; below',
            f"{UNEXPLAINED:.0%} the table gives the two most frequent reasons, with the number of channels. The plan",
            "of a pruned network lists what is kept, and why: `result.plan.pinned` and `result.plan.notes`.",
            f'Where less than {ENOUGH:.0%} can go, the network is pruned again with `norms="renormalise"`, which',
            "lets channels go that layer norms, weight standardisation and the like take together.",
        ),
        markdown_table(
            (
                "family",
                "networks",
                "pass",
                f"of these, prunable {ENOUGH:.0%} or more",
                f"prunable less than {ENOUGH:.0%}",
                "nothing to prune",
                "fail",
                f"{ENOUGH:.0%} or more with either choice of norms",
                "outputs do not depend on the inputs",
            ),
            [_summary(family, list(members.values())) for family, members in families.items()],
        ),
        *(block for family, members in families.items() for block in _family(family, members)),
        *packages_part(read_result(PACKAGES_RESULT), REASONS),
    )


def explained(reason: str) -> str:
    """A recorded reason in the words of ``REASONS``; as recorded if none fits."""
    return next((words for part, words in REASONS.items() if part in reason), reason.replace("`", ""))


def _summary(family: str, rows: list[dict[str, Any]]) -> tuple[str | int, ...]:
    passed = [row for row in rows if "prunable" in row]
    unprunable = sum("nothing" in row for row in rows)
    wide = sum(row["prunable"] >= ENOUGH for row in passed)
    either = wide + sum(row.get(RENORMALISED, {}).get("prunable", 0) >= ENOUGH for row in rows)
    failed = len(rows) - len(passed) - unprunable
    insensitive = sum(row["sensitive"] is False for row in passed)
    return family, len(rows), len(passed), wide, len(passed) - wide, unprunable, failed, either, insensitive


def _family(family: str, members: dict[str, dict[str, Any]]) -> list[str]:
    header = ("network", "parameters", "after", "change", "prunable", "renormalised", "channels kept, by reason")
    return [
        heading(f"{family[0].upper()}{family[1:]}"),
        markdown_table(header, [_cells(name, row) for name, row in members.items()]),
    ]


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return name, "", "", "", "", "", f"**fails**: {row['error'].replace('|', '/')[:200]}"
    again = row.get(RENORMALISED)
    renormalised = "" if again is None else "**fails**" if "error" in again else f"{again.get('prunable', 0):.0%}"
    if "nothing" in row:
        return name, "", "", "", "0%", renormalised, row["nothing"].replace("|", "/")
    reasons: Counter[str] = Counter()
    for reason, count in row["kept for"].items():
        reasons[explained(reason)] += count
    kept = "; ".join(f"{words} ({count:,})" for words, count in reasons.most_common(2))
    return (
        name,
        f"{row['parameters'] / 1e6:,.1f} M",
        f"{row['after'] / 1e6:,.1f} M",
        f"{row['after'] / row['parameters'] - 1:+.0%}",
        f"{row['prunable']:.0%}",
        renormalised,
        kept if row["prunable"] < UNEXPLAINED else "",
    )
