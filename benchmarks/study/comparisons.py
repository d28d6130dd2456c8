"""Comparisons of the study: the default criterion and policy with the others, as estimates, tables and sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.common.tables import markdown_table
from benchmarks.study.estimates import Estimate, difference, pooled
from benchmarks.study.jobs import POLICY
from benchmarks.study.rows import BUDGETS, CLASSICAL, CRITERION, CURRENCIES, FILTERS_ONLY, POLICIES, SHARES, Rows

BEST = "the best classical criterion"
BEST_EACH = "the best one of each network"


def percent(share: float) -> str:
    """A share removed, such as "-90 %"."""
    return f"-{100 * share:.0f} %"


def criterion_differences(
    rows: Rows, networks: Sequence[str], rivals: Sequence[str], share: float, tuned: bool
) -> dict[str, dict[str, Estimate]]:
    """The default criterion minus each rival, by rival and network; without what was not measured."""
    differences: dict[str, dict[str, Estimate]] = {name: {} for name in rivals}
    for network, name in itertools.product(networks, rivals):
        ours, theirs = (rows.get(network, c, POLICY, "params", share, tuned) for c in (CRITERION, name))
        if ours and theirs and ours.keys() & theirs.keys():
            differences[name][network] = difference(ours, theirs)
    return {name: by_network for name, by_network in differences.items() if by_network}


def over_networks(
    rows: Rows, networks: Sequence[str], rivals: Sequence[str], share: float, tuned: bool
) -> dict[str, Estimate]:
    """The default criterion minus each rival, the mean over the networks, of the rivals that most networks have."""
    differences = criterion_differences(rows, networks, rivals, share, tuned)
    most = max((len(by_network) for by_network in differences.values()), default=0)
    return {name: pooled(each.values()) for name, each in differences.items() if len(each) == most}


def against_best(rows: Rows, networks: Sequence[str], share: float, tuned: bool) -> tuple[str, Estimate] | None:
    """The classical criterion with the highest mean over the networks, and the default criterion minus it."""
    means = over_networks(rows, networks, CLASSICAL, share, tuned)
    return min(means.items(), key=lambda item: item[1].mean) if means else None


def policy_difference(
    rows: Rows, networks: Sequence[str], rival: str, budget: tuple[str, float], tuned: bool
) -> Estimate | None:
    """The default policy minus another, the mean over the networks that have both."""
    differences = []
    for network in networks:
        ours, theirs = (rows.get(network, "fec", policy, *budget, tuned) for policy in (POLICY, rival))
        if rival != POLICY and ours and theirs and ours.keys() & theirs.keys():
            differences.append(difference(ours, theirs))
    return pooled(differences) if differences else None


def table_of_criteria(rows: Rows, networks: Sequence[str], tuned: bool) -> str:
    """The default criterion minus the classical ones, by budget, the mean over the networks."""
    lines = [
        [BEST, *(_best(rows, networks, share, tuned) for share in SHARES)],
        [BEST_EACH, *(_best_of_each(rows, networks, share, tuned) for share in SHARES)],
    ]
    for name in FILTERS_ONLY:
        means = [over_networks(rows, networks, (name,), share, tuned) for share in SHARES]
        lines.append([f"{name}, filters only", *(mean[name].text("+") if mean else "" for mean in means)])
    header = [f"`{CRITERION}` minus", *map(percent, SHARES)]
    return markdown_table(header, [line for line in lines if any(line[1:])])


def _best(rows: Rows, networks: Sequence[str], share: float, tuned: bool) -> str:
    best = against_best(rows, networks, share, tuned)
    return f"{best[1].text('+', len(CLASSICAL))} ({best[0]})" if best else ""


def _best_of_each(rows: Rows, networks: Sequence[str], share: float, tuned: bool) -> str:
    differences = criterion_differences(rows, networks, CLASSICAL, share, tuned)
    by_network = [[each[network] for each in differences.values() if network in each] for network in networks]
    best = [min(rivals, key=lambda estimate: estimate.mean) for rivals in by_network if rivals]
    return pooled(best).text("+", len(CLASSICAL)) if best else ""


def table_of_policies(rows: Rows, networks: Sequence[str], tuned: bool) -> str:
    """The default policy minus the others, by budget, the mean over the networks that have both."""
    lines = []
    for rival in POLICIES:
        differences = [policy_difference(rows, networks, rival, budget, tuned) for budget in BUDGETS]
        lines.append([rival, *("" if each is None else each.text("+") for each in differences)])
    header = [f"`{POLICY}` minus", *(f"{percent(share)} {CURRENCIES[currency]}" for currency, share in BUDGETS)]
    return markdown_table(header, [line for line in lines if any(line[1:])])


def criterion_findings(rows: Rows, networks: Sequence[str], tuned: bool) -> list[str]:
    """Sentences on where the default criterion is ahead of, level with or behind others, computed from the rows."""
    best = {percent(share): against_best(rows, networks, share, tuned) for share in SHARES}
    sentences = [f"{BEST}: {_by_verdict({b: each[1].verdict(len(CLASSICAL)) for b, each in best.items() if each})}"]
    for name in (*FILTERS_ONLY, "fec"):
        means = {percent(share): over_networks(rows, networks, (name,), share, tuned) for share in SHARES}
        verdicts = {budget: mean[name].verdict() for budget, mean in means.items() if mean}
        if verdicts:
            title = "`fec`, the entropy alone" if name == "fec" else f"`{name}` on filters only"
            sentences.append(f"{title}: {_by_verdict(verdicts)}")
    return sentences


def policy_findings(rows: Rows, networks: Sequence[str], tuned: bool) -> list[str]:
    """Sentences on where the default policy is ahead of, level with or behind others, computed from the rows."""
    sentences = []
    for rival in POLICIES:
        verdicts = {}
        for currency, share in BUDGETS:
            estimate = policy_difference(rows, networks, rival, (currency, share), tuned)
            if estimate is not None:
                verdicts[f"{percent(share)} {CURRENCIES[currency]}"] = estimate.verdict()
        if verdicts:
            sentences.append(f"`{rival}`: {_by_verdict(verdicts)}")
    return sentences


def better_criteria(rows: Rows, networks: Sequence[str], tuned: bool) -> list[str]:
    """The criteria that are ahead of the default one beyond the interval of the pair, by budget."""
    sentences = []
    rivals = [name for name in rows.criteria() if name != CRITERION]
    for share in SHARES:
        means = over_networks(rows, networks, rivals, share, tuned)
        better = [f"{name} ({-mean.mean:+.1f})" for name, mean in means.items() if mean.verdict() == "behind"]
        if better:
            sentences.append(f"{percent(share)}: {'; '.join(better)}")
    return sentences


def _by_verdict(verdicts: dict[str, str]) -> str:
    """Budgets grouped by verdict, such as "level at -50 and -70 %, ahead at -90 %"."""
    groups = []
    for verdict in ("ahead", "level", "behind"):
        budgets = [budget for budget, each in verdicts.items() if each == verdict]
        if budgets:
            groups.append(f"{verdict} at {'every budget' if len(budgets) == len(verdicts) else ', '.join(budgets)}")
    return "; ".join(groups)
