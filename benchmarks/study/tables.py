"""Tables of the study by network, by formula, and by constant of the policy ``entropy``."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from benchmarks.common.tables import markdown_table
from benchmarks.study.comparisons import percent
from benchmarks.study.estimates import difference, estimate
from benchmarks.study.jobs import CHOSEN_ON, POLICY
from benchmarks.study.rows import BUDGETS, CRITERION, CURRENCIES, FORMULA, NAMES, POLICIES, SHARES, Rows


def table_of_criteria(rows: Rows, network: str, tuned: bool) -> str:
    """The criteria under the default policy by budget, each with its difference to the default on the same images."""
    lines = []
    for name in rows.criteria():
        cells = []
        for share in SHARES:
            values, base = (rows.get(network, c, POLICY, "params", share, tuned) for c in (name, CRITERION))
            if values is None:
                cells.append("")
            elif name == CRITERION or base is None:
                cells.append(f"**{estimate(values).text()}**")
            else:
                cells.append(f"{estimate(values).mean:.1f} ({difference(values, base).text('+')})")
        if any(cells):
            lines.append([name, *cells])
    return markdown_table([NAMES[network], *map(percent, SHARES)], lines)


def table_of_policies(rows: Rows, network: str, tuned: bool) -> str:
    """The policies by budget, each with its difference to ``uniform`` and what remains in the other currency."""
    lines = []
    for currency, share in BUDGETS:
        cells = [_policy_cell(rows, network, policy, currency, share, tuned) for policy in POLICIES]
        if any(cells):
            lines.append([f"{percent(share)} {CURRENCIES[currency]}", *cells])
    return markdown_table([NAMES[network], *POLICIES], lines)


def _policy_cell(rows: Rows, network: str, policy: str, currency: str, share: float, tuned: bool) -> str:
    values = rows.get(network, "fec", policy, currency, share, tuned)
    if values is None:
        return ""
    cell = estimate(values).text()
    base = rows.get(network, "fec", "uniform", currency, share, tuned)
    if base is not None and policy != "uniform":
        cell += f" ({difference(values, base).text('+')})"
    row = rows.first(network, "fec", policy, currency, share, tuned)
    remaining = f"{row['macs'] / 1e6:.3g} M" if currency == "params" else f"{row['parameters'] / 1e3:.4g} k"
    return f"{cell}, {remaining}"


def table_of_constants(rows: Rows) -> str:
    """Accuracy by the two constants of the policy ``entropy``."""
    variants = list(dict.fromkeys(key[2] for key in rows.rows if "tau" in key[2]))
    budgets = [(network, *budget) for network in CHOSEN_ON for budget in (("params", 0.7), ("macs", 0.5))]
    lines = []
    for variant in variants:
        values = [rows.get(network, "fec", variant, currency, share, False) for network, currency, share in budgets]
        estimates = [None if each is None else estimate(each) for each in values]
        cells = ["" if each is None else each.text() for each in estimates]
        mean = fmean(each.mean for each in estimates if each is not None)
        lines.append([variant.removeprefix("entropy, "), *cells, f"{mean:.1f}"])
    header = [f"{NAMES[network]}, {percent(share)} {CURRENCIES[currency]}" for network, currency, share in budgets]
    return markdown_table(["scale of tau, power of the price", *header, "mean"], lines)


def table_of_formulas(rows: Rows) -> str:
    """Accuracy by formula: compression, axis and entropy; columns are the sides and the scale of tau."""
    accuracy: dict[str, dict[str, float]] = defaultdict(dict)
    columns: dict[str, None] = {}  # a set that keeps the order
    for key in rows.rows:
        if FORMULA in key[1]:
            values = rows.get(*key)
            assert values is not None
            entropy, axis, compress, *tau, sides = key[1].split(", ")
            column = f"{sides}, tau scale {'0.5' if tau and '0.5 x' in tau[0] else '1'}"
            columns[column] = None
            name = ", ".join([compress.split("=")[1], axis.split("=")[1], entropy.removesuffix(" entropy")])
            accuracy[name][column] = estimate(values).mean
    ranked = sorted(accuracy.items(), key=lambda item: -max(item[1].values()))
    lines = [[name, *(f"{cells[c]:.1f}" if c in cells else "" for c in columns)] for name, cells in ranked]
    return markdown_table(["compress, axis, entropy", *columns], lines)


def table_of_recalibration(rows: Rows) -> str:
    """Accuracy before and after the re-estimation of batch norm, by network and share of parameters removed."""
    pairs: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for (network, _, _, currency, share, _), of_key in rows.rows.items():
        if currency == "params":
            pairs[network, share] += [(row["at_once"], row["recalibrated"]) for row in of_key if "at_once" in row]
    lines = []
    for (network, share), values in sorted(pairs.items()):
        if values:
            before, after = (fmean(column) for column in zip(*values, strict=True))
            lines.append([NAMES[network], percent(share), f"{before:.1f}", f"{after:.1f}", str(len(values))])
    return markdown_table(["network", "parameters", "before", "after", "rows"], lines)
