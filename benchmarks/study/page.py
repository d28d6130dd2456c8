"""Writes docs/study.md and its figure from the rows of ``study.py``.

python -m benchmarks.study.page
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.estimates import Estimate, Rights, difference, estimate, pooled, rights

ROOT = Path(__file__).parent.parent.parent
NAMES = {
    "resnet56": "ResNet-56",
    "vgg16": "VGG-16-BN",
    "resnet20": "ResNet-20",
    "resnet-digits": "ResNet on digits",
    "vgg-digits": "VGG on digits",
}
CHOSEN_ON = ("resnet56", "vgg16")
POLICIES = ("uniform", "entropy", "global", "sensitivity")
POLICY = "entropy"
DEFAULT = "fec_l1"
SHARES = (0.5, 0.7, 0.9, 0.94)
BUDGETS = (*(("params", share) for share in SHARES), ("macs", 0.5), ("macs", 0.7))
BOTH = ("l1, both sides", "l2, both sides", "fpgm, both sides")
ONE_SIDED = ("l1", "l2", "fpgm")
CLASSICAL = (*BOTH, *ONE_SIDED, "bn_scale")
FORMULA = " entropy, axis="  # stands in the name of a criterion that is a formula written out
STAGES = {False: "One shot, batch norm re-estimated", True: "Fine-tuned"}

# Judgements on the tables below: whoever makes new rows judges anew.
CHOSEN = """## What was chosen, and why

**The criterion: `fec_l1`, the entropies of `Formula()` times the L1 norm, on both sides.** Over all networks it is
level with the best classical criterion at every budget, fine-tuned and in one shot: every interval holds zero. It is
level with L1, L2 and FPGM on filters at -50 % and ahead of them from -70 % on, mostly beyond the interval. The entropy
alone, `fec`, is as good fine-tuned, but in one shot behind L2 on both sides at -50 and -94 %. What speaks against
`fec_l1`: L1 on both sides is ahead on the two networks chosen on at -90 % fine-tuned, and on the networks that nothing
was chosen on at -94 % in one shot, where none is usable. No criterion wins everywhere: on VGG-16 the literal reading is
far ahead in one shot at -90 %, and far behind on ResNet-56.

It was chosen from [others that were tried](trials.md), on other images, but ResNet-20 was among the networks: only the
digits are new to it. There it is level fine-tuned, and in one shot behind the best classical one at -70 and -94 %. The
entropies of both axes added, `fec, both axes` below, are offered as `Formula("rms", axis="both")`.

**The policy: `entropy`.** It is ahead of `uniform` at every budget beyond the interval, fine-tuned or not, level with
`global` or ahead in parameters and ahead in MACs, and asks for no data. `sensitivity` was measured in one shot only.
Policies were compared with the criterion `fec`; but for `global` they do not look at the criterion.

""".splitlines()


class Rows:
    """What was measured, by what was pruned how."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.rows: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in document["rows"]:
            network, criterion, policy, kind, share, _, tuned = row["key"]
            self.rows[network, criterion, policy, kind, share, tuned].append(row)
        self.images = {name: dense["images"] for name, dense in document["dense"].items()}
        self.dense = document["dense"]

    def get(self, *key: Any) -> Rights | None:
        """What the seeds classify rightly; ``None`` if nothing was measured."""
        found = self.rows.get(key)
        if not found:
            return None
        images = len(found[0]["right"]) * 4 if "tau" in key[2] else self.images[key[0]]
        return {row["key"][5]: rights(row["right"], images) for row in found}

    def first(self, *key: Any) -> dict[str, Any]:
        """One of the rows."""
        return self.rows[key][0]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, if it has rows."""
    if not rows:
        return []
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def criteria(rows: Rows, network: str, tuned: bool) -> list[str]:
    """Criteria under one policy by budget, each with its difference to the default on the same images."""
    names = list(dict.fromkeys(key[1] for key in rows.rows if FORMULA not in key[1]))
    lines = []
    for name in names:
        cells = []
        for share in SHARES:
            here = rows.get(network, name, POLICY, "params", share, tuned)
            base = rows.get(network, DEFAULT, POLICY, "params", share, tuned)
            if here is None:
                cells.append("")
            elif name == DEFAULT or base is None:
                cells.append(f"**{estimate(here).words()}**")
            else:
                cells.append(f"{estimate(here).mean:.1f} ({difference(here, base).words('+')})")
        if any(cells):
            lines.append([name, *cells])
    return table([NAMES[network], *(f"-{100 * share:.0f} %" for share in SHARES)], lines)


def against(
    rows: Rows, networks: tuple[str, ...], rivals: tuple[str, ...], share: float, tuned: bool
) -> dict[str, dict[str, Estimate]]:
    """The default minus each rival, by rival and network."""
    found: dict[str, dict[str, Estimate]] = {name: {} for name in rivals}
    for network, name in itertools.product(networks, rivals):
        ours, theirs = (rows.get(network, one, POLICY, "params", share, tuned) for one in (DEFAULT, name))
        if ours and theirs and ours.keys() & theirs.keys():
            found[name][network] = difference(ours, theirs)
    return {name: of_network for name, of_network in found.items() if of_network}


def verdict(rows: Rows, networks: tuple[str, ...], tuned: bool) -> list[str]:
    """The default against the classical criteria, by budget, the mean over the networks that have any of them."""
    lines = []
    for title, rivals in (
        ("the best classical one", CLASSICAL),
        ("the best of each network", CLASSICAL),
        *((f"{name}, filters only", (name,)) for name in ONE_SIDED),
    ):
        cells = [title]
        for share in SHARES:
            found = against(rows, networks, rivals, share, tuned)
            most = max((len(one) for one in found.values()), default=0)
            whole = {name: pooled(one.values()) for name, one in found.items() if len(one) == most}
            if not whole:
                cells.append("")
            elif title == "the best of each network":
                each = [[one[network] for one in found.values() if network in one] for network in networks]
                best = [min(one, key=lambda estimated: estimated.mean) for one in each if one]
                cells.append(pooled(best).words("+", len(rivals)))
            else:
                name = min(whole, key=lambda rival: whole[rival].mean)
                cell = whole[name].words("+", len(rivals))
                cells.append(f"{cell} ({name})" if len(rivals) > 1 else cell)
        if any(cells[1:]):
            lines.append(cells)
    return table([f"`{DEFAULT}` minus", *(f"-{100 * share:.0f} %" for share in SHARES)], lines)


def spreads(rows: Rows, networks: tuple[str, ...], tuned: bool) -> list[str]:
    """The default policy against the others, by budget, the mean over the networks that have both."""
    lines = []
    for rival in POLICIES:
        cells = []
        for kind, share in BUDGETS:
            found = []
            for network in networks:
                ours, theirs = (rows.get(network, "fec", one, kind, share, tuned) for one in (POLICY, rival))
                if rival != POLICY and ours and theirs and ours.keys() & theirs.keys():
                    found.append(difference(ours, theirs))
            cells.append(pooled(found).words("+") if found else "")
        if any(cells):
            lines.append([rival, *cells])
    names = {"params": "parameters", "macs": "MACs"}
    return table([f"`{POLICY}` minus", *(f"-{100 * share:.0f} % {names[kind]}" for kind, share in BUDGETS)], lines)


def policies(rows: Rows, network: str, tuned: bool) -> list[str]:
    """A table a network: policies by budget, with the difference to uniform, and what is left of the other currency."""
    lines = []
    for kind, share in BUDGETS:
        cells, base = [], rows.get(network, "fec", "uniform", kind, share, tuned)
        for policy in POLICIES:
            key = (network, "fec", policy, kind, share, tuned)
            here = rows.get(*key)
            if here is None:
                cells.append("")
                continue
            cell = estimate(here).words()
            if base is not None and policy != "uniform":
                cell += f" ({difference(here, base).words('+')})"
            row = rows.first(*key)
            left = f"{row['macs'] / 1e6:.3g} M" if kind == "params" else f"{row['parameters'] / 1e3:.4g} k"
            cells.append(f"{cell}, {left}")
        if any(cells):
            lines.append([f"{100 * share:.0f} % of {'parameters' if kind == 'params' else 'MACs'}", *cells])
    return table([NAMES[network], *POLICIES], lines)


def ablation(rows: Rows) -> list[str]:
    """The constants of the policy ``entropy``."""
    variants = list(dict.fromkeys(key[2] for key in rows.rows if "tau" in key[2]))
    budgets = [(network, *budget) for network in CHOSEN_ON for budget in (("params", 0.7), ("macs", 0.5))]
    lines = []
    for variant in variants:
        found = [rows.get(network, "fec", variant, kind, share, False) for network, kind, share in budgets]
        known = [None if one is None else estimate(one) for one in found]
        cells = ["" if one is None else one.words() for one in known]
        mean = fmean(one.mean for one in known if one is not None)
        lines.append([variant.removeprefix("entropy, "), *cells, f"{mean:.1f}"])
    head = [f"{NAMES[network]}, -{100 * share:.0f} % {kind}" for network, kind, share in budgets]
    return table(["tau scale, power of the price", *head, "mean"], lines)


def formulas(rows: Rows) -> list[str]:
    """Every formula of the family: entropies, compression and axis by scale of tau and sides."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    columns: dict[str, None] = {}
    for key in rows.rows:
        if FORMULA in key[1]:
            values = rows.get(*key)
            assert values is not None
            entropy, axis, compress, *tau, sides = key[1].split(", ")
            column = f"{sides}, tau scale {'0.5' if tau and '0.5 x' in tau[0] else '1'}"
            columns[column] = None
            name = ", ".join([compress.split("=")[1], axis.split("=")[1], entropy.removesuffix(" entropy")])
            found[name][column] = estimate(values).mean
    ranked = sorted(found.items(), key=lambda item: -max(item[1].values()))
    lines = [[name, *(f"{cells[c]:.1f}" if c in cells else "" for c in columns)] for name, cells in ranked]
    return table(["compress, axis, entropy", *columns], lines)


def at_once(rows: Rows) -> list[str]:
    """What re-estimating batch norm is worth, by network and budget."""
    sums: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for (network, _, _, kind, share, _), found in rows.rows.items():
        if kind == "params":
            sums[network, share] += [(row["at_once"], row["recalibrated"]) for row in found if "at_once" in row]
    lines = []
    for (network, share), pairs in sorted(sums.items()):
        if pairs:
            means = [fmean(values) for values in zip(*pairs, strict=True)]
            lines.append(
                [NAMES[network], f"{100 * share:.0f} %", f"{means[0]:.1f}", f"{means[1]:.1f}", str(len(pairs))]
            )
    return table(["network", "removed", "at once", "re-estimated", "rows"], lines)


def together(rows: Rows, tuned: bool) -> list[str]:
    """The verdicts over all networks."""
    names = tuple(NAMES)
    return [f"**{STAGES[tuned]}.**", "", *verdict(rows, names, tuned), *spreads(rows, names, tuned)]


def part(rows: Rows, networks: tuple[str, ...]) -> list[str]:
    """Verdicts, criteria and policies of some networks."""
    lines: list[str] = []
    for tuned, title in STAGES.items():
        body = [line for network in networks for line in criteria(rows, network, tuned)]
        if body:
            lines += [f"**{title}.**", "", *verdict(rows, networks, tuned), *body]
        body = [line for network in networks for line in policies(rows, network, tuned)]
        if body:
            lines += [
                f"**{title}, by policy,** the criterion `fec`; what is left of the other currency stands behind.",
                "",
            ]
            lines += body
    return lines


def seeds(document: dict[str, Any], networks: tuple[str, ...]) -> str:
    """How many seeds each network has, the least and the most of all its combinations."""
    counts: dict[str, dict[str, set[int]]] = {name: defaultdict(set) for name in networks}
    for row in document["rows"]:
        network, *key = row["key"]
        if network in counts and "tau" not in key[1] and FORMULA not in key[0] and key[1] != "sensitivity":
            counts[network][json.dumps([*key[:4], key[5]])].add(key[4])
    words = []
    for name, found in counts.items():
        numbers = [len(one) for one in found.values()]
        if numbers:
            span = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
            words.append(f"{NAMES[name]} {span}")
    return ", ".join(words)


def devices(document: dict[str, Any]) -> str:
    """On what the rows were made."""
    counts = Counter(row["device"] for row in document["rows"])
    return "; ".join(f"{count:,} on {device}" for device, count in counts.most_common())


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    settings, where, rows = document["settings"], document["machine"], Rows(document)
    dense = "; ".join(
        f"{NAMES[name]} {row['accuracy']:.1f}"
        + (f" (as it came {row['as_it_came']:.1f})" if row["as_it_came"] is not None else "")
        for name, row in document["dense"].items()
    )
    tuned = sum(row["key"][6] for row in document["rows"])
    others = tuple(name for name in NAMES if name not in CHOSEN_ON)
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    lines = [
        "# The study: what to remove where",
        "",
        "Written by `python -m benchmarks.study.page` from",
        "[benchmarks/results/study.json](../benchmarks/results/study.json), which holds every row that was measured by",
        "",
        "```sh",
        f"python -m benchmarks.study --data FOLDER {flags}",
        "```",
        "",
        f"CIFAR-10 as JPEG, accuracy in % on {settings['test_images']:,} test images that nothing was chosen on, and",
        "scikit-learn's digits (450). The dense networks were trained on the images first (VGG-16-BN came trained on",
        "them); their weights lie, in float16, in",
        "[benchmarks/results/dense](../benchmarks/results/dense); their accuracy, in %:",
        f"{dense}.",
        f"Batch norm is re-estimated on {settings['calibration_images']:,} training images, drawn anew for each seed;",
        f"fine-tuning is {settings['steps']} steps of 128 images (64 digits), so a beginning and not the end. All in",
        "bfloat16 but the re-estimation. Intervals are 95 %, over the test images and, where there are several, the",
        "seeds (Student's t: three seeds tell little of how they scatter); in brackets the difference on the same",
        "images and seeds. The best classical criterion of a budget is picked after the fact, one for all networks or",
        "one for each, and the interval widened by the number picked from (Bonferroni). Intervals do not hold what",
        "other networks would add.",
        "",
        f"{len(document['rows']):,} rows, {tuned:,} of them fine-tuned.",
        f"Seeds: {seeds(document, (*CHOSEN_ON, *others))}.",
        "What the tables lack was not run: the command goes on where it stopped.",
        "",
        f"Rows by what they were made on: {devices(document)}. The CPU is an {where['processor']},",
        f"{where['threads']} thread(s).",
        "",
        "![Accuracy by budget](study.svg)",
        "",
        *CHOSEN,
        "## All networks together",
        "",
        "The mean over the networks: criteria under the policy `entropy`, policies with the criterion `fec`.",
        "",
        *together(rows, True),
        *together(rows, False),
        "## The networks that formulas and policies were chosen on",
        "",
        "Criteria are compared under the policy `entropy`.",
        "",
        *part(rows, CHOSEN_ON),
    ]
    if any(key[0] in others for key in rows.rows):
        lines += ["## Networks and images that nothing was chosen on", "", *part(rows, others)]
    if any("tau" in key[2] for key in rows.rows):
        lines += [
            "## The constants of `entropy`",
            "",
            "One shot, re-estimated, on 2,000 other test images, which may be chosen on:",
            "",
            *ablation(rows),
        ]
    if any(FORMULA in key[1] for key in rows.rows):
        lines += [
            "## Every formula of the family",
            "",
            "ResNet-56, -50 % of parameters, one shot, re-estimated:",
            "",
            *formulas(rows),
        ]
    lines += ["## What the re-estimation is worth", "", "The criterion `fec` under all policies:", "", *at_once(rows)]
    return "\n".join(lines).rstrip() + "\n"


def figure(document: dict[str, Any], file: Path) -> None:
    """Accuracy by budget, a panel a network and a line a policy, for the criterion ``fec``."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fec_fast"
    from matplotlib import pyplot

    rows = Rows(document)
    _, panels = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for panel, network in zip(panels, CHOSEN_ON, strict=True):
        for number, policy in enumerate(POLICIES[:3]):
            for tuned, line in ((False, ":"), (True, "-")):
                found = [(share, rows.get(network, "fec", policy, "params", share, tuned)) for share in SHARES]
                known = [(100 * share, estimate(values)) for share, values in found if values is not None]
                if known:
                    x, y, half = zip(*((share, one.mean, one.half()) for share, one in known), strict=True)
                    label = f"{policy}, fine-tuned" if tuned else policy
                    panel.errorbar(x, y, half, marker="o", capsize=3, label=label, linestyle=line, color=f"C{number}")
        if network in rows.dense:
            panel.axhline(rows.dense[network]["accuracy"], color="grey", linestyle="--", label="dense")
        panel.set_title(f"{NAMES[network]}, criterion fec")
        panel.set_xlabel("parameters removed, %")
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(fontsize=7)
    pyplot.tight_layout()
    pyplot.savefig(file, metadata={"Date": None})


def main() -> None:
    """Writes both."""
    document = json.loads((ROOT / "benchmarks" / "results" / "study.json").read_text())
    (ROOT / "docs" / "study.md").write_text(page(document))
    figure(document, ROOT / "docs" / "study.svg")


if __name__ == "__main__":
    main()
