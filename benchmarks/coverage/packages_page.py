"""The part "other packages" of ``docs/coverage.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.common.pages import heading, paragraph
from benchmarks.common.results import RESULTS, measured_on
from benchmarks.common.tables import markdown_table

PACKAGES_RESULT = RESULTS / "coverage_packages.json"
ENOUGH = 0.6  # the share of prunable channels below which a model is counted apart, and the reasons are given
RENORMALISED = 'norms="renormalise"'  # of a row: what was measured with it
OUTCOMES = ("pass", "nothing to prune", "refused", "wrong", "crash", "time limit", "cannot be built")


def packages_part(result: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    """The blocks of the part; none without results.

    Args:
        result: The content of the result file.
        reasons: Words for recorded reasons, by a part of their text.
    """
    rows = result.get("rows", [])
    if not rows:
        return []
    by_package: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_package.setdefault(row["package"], []).append(row)
    built = [row for row in rows if row["outcome"] != OUTCOMES[-1]]
    passed = [row for row in built if row["outcome"] == "pass"]
    wide, either = sum(map(is_wide, built)), sum(map(is_wide_with_either, built))
    header = (
        *("package", "models", f"pass, prunable {ENOUGH:.0%} or more", "pass, less", *OUTCOMES[1:]),
        f"{ENOUGH:.0%} or more with either choice of norms",
    )
    summaries = [_summary(name, members) for name, members in by_package.items()]
    total = _summary("all", rows)
    return [
        heading("Other packages"),
        paragraph(
            "`python -m benchmarks.coverage.packages_run SIDE --install` installs the packages to the folder SIDE,",
            "without what they depend on, and tries the models without a result. `benchmarks/coverage/registry` has",
            "the expression of every model and of its inputs; most are small configurations.",
        ),
        measured_on(result, rows),
        paragraph(
            "Every model, with random weights, is pruned at ratio 0.5 in a process of its own, which may take 60",
            'seconds of processor time. "Pass": the proof of `fec_fast.prune` has passed, the pruned model trains',
            'where the original does, and it is the same after saving and loading. "Wrong": one of these does not',
            'hold. "Crash": an exception that is not of the package. "Prunable" is the share of the output channels of',
            "the convolutions that the inputs reach and that can be removed, without those that make the model's",
            "outputs; of a model without such convolutions, that of its linear layers.",
            '"With linear layers" counts both. Where less than 60% can go, the model is pruned again with',
            '`norms="renormalise"`, which lets channels go that layer norms, weight norms and the like take together.',
        ),
        paragraph(
            f"{len(built):,} of {len(rows):,} models can be built,",
            f"of {len({row['package'] for row in built})} packages.",
            f"{len(passed):,} of them pass ({len(passed) / len(built):.1%}), {wide:,} ({wide / len(built):.1%}) with",
            f"{ENOUGH:.0%} or more of the channels prunable; {either:,} ({either / len(built):.1%}) with that or with",
            '`norms="renormalise"`.',
        ),
        markdown_table(header, [*summaries, total]),
        *(block for name, members in by_package.items() for block in _package(name, members, result, reasons)),
    ]


def is_wide(row: dict[str, Any]) -> bool:
    """Whether a model passes and many of its channels can go.

    Args:
        row: A row of the result file, or what it has of ``norms="renormalise"``.
    """
    return row["outcome"] == "pass" and _share(row) >= ENOUGH


def is_wide_with_either(row: dict[str, Any]) -> bool:
    """Whether it is :func:`is_wide` with one of the choices for norms."""
    return is_wide(row) or (RENORMALISED in row and is_wide(row[RENORMALISED]))


def _share(row: dict[str, Any]) -> float:
    """The share of prunable channels of the convolutions; that of all layers where there is no convolution."""
    share = row["layers"] if row["convolutions"] is None else row["convolutions"]
    return 0.0 if share is None else float(share)


def _summary(name: str, rows: Sequence[dict[str, Any]]) -> tuple[str | int, ...]:
    counts = Counter(row["outcome"] for row in rows)
    wide, either = sum(map(is_wide, rows)), sum(map(is_wide_with_either, rows))
    return name, len(rows), wide, counts["pass"] - wide, *(counts[outcome] for outcome in OUTCOMES[1:]), either


def _package(
    name: str, rows: Sequence[dict[str, Any]], result: dict[str, Any], reasons: dict[str, str]
) -> tuple[str, str, str]:
    about = result["packages"][name]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    licence = f" Licence: {about['licence']}." if about["licence"] else ""
    header = (
        *("model", "parameters", "change", "prunable", "with linear layers", "seconds"),
        *("prunable, renormalised", "outcome, or what is kept"),
    )
    return (
        heading(name, 3),
        paragraph(f"{about['domain']}. {versions}.{licence}"),
        markdown_table(header, [_cells(row, reasons) for row in rows]),
    )


def _cells(row: dict[str, Any], reasons: dict[str, str]) -> tuple[str, ...]:
    renormalised = row.get(RENORMALISED)
    again = ""
    if renormalised is not None:
        again = f"{_share(renormalised):.0%}" if renormalised["outcome"] == "pass" else renormalised["outcome"]
    if row["outcome"] != "pass":
        outcome = f"**{row['outcome']}**" if row["outcome"] in ("wrong", "crash") else row["outcome"]
        parameters = f"{row['parameters'] / 1e6:,.1f} M" if "parameters" in row else ""
        return row["model"], parameters, "", "", "", "", again, _plain(f"{outcome}: {row['reason'][:200]}")
    kept: Counter[str] = Counter()
    for reason, count in row["kept for"].items():
        kept[next((words for part, words in reasons.items() if part in reason), reason[:120])] += count
    why = "; ".join(f"{words} ({count:,})" for words, count in kept.most_common(2))
    convolutions, layers = (("" if share is None else f"{share:.0%}") for share in (row["convolutions"], row["layers"]))
    return (
        row["model"],
        f"{row['parameters'] / 1e6:,.1f} M",
        f"{row['after'] / row['parameters'] - 1:+.0%}",
        convolutions,
        layers,
        f"{row['seconds']:.1f}",
        again,
        _plain(why) if _share(row) < ENOUGH else "",
    )


def _plain(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "/").replace("`", "").replace("\n", " ")
