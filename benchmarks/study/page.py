"""docs/study.md and its figure from benchmarks/results/study.json."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.common.figures import pyplot, write_figure
from benchmarks.common.pages import bullets, code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on, older_scores
from benchmarks.study import comparisons, tables
from benchmarks.study.estimates import estimate
from benchmarks.study.jobs import CHOSEN_ON, POLICY
from benchmarks.study.rows import CRITERION, FORMULA, GROUPS, NAMES, POLICIES, SHARES, STAGES, Rows


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    rows = Rows(document)
    everything, chosen_on, held_out = GROUPS
    return page_of(
        "Study of criteria and policies",
        *_method(document),
        "![Accuracy by budget](study.svg)\n\n",
        *_findings(rows),
        heading(f"{everything[0].upper()}{everything[1:]}"),
        paragraph(
            f"The mean over the networks: criteria under the policy `{POLICY}`, policies with the criterion `fec`."
        ),
        *(block for tuned in STAGES for block in _together(rows, GROUPS[everything], tuned)),
        heading(f"{chosen_on[0].upper()}{chosen_on[1:]}"),
        paragraph(f"Criteria are compared under the policy `{POLICY}`."),
        *_by_network(rows, GROUPS[chosen_on]),
        heading(f"{held_out[0].upper()}{held_out[1:]}"),
        *_by_network(rows, GROUPS[held_out]),
        heading("The constants of `entropy`"),
        paragraph("One shot, re-estimated, on 2,000 other test images, which settings may be chosen on:"),
        tables.table_of_constants(rows),
        heading("Every formula of the family"),
        paragraph("ResNet-56, -50 % of the parameters, one shot, re-estimated:"),
        tables.table_of_formulas(rows),
        heading("Gain by the re-estimation of batch norm"),
        paragraph("Accuracy in % before and after, the criterion `fec` under all policies:"),
        tables.table_of_recalibration(rows),
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page and its figure."""
    write_page("study.md", page(document))
    write_figure("study.svg", figure_of(document))


def devices(document: dict[str, Any]) -> str:
    """The number of rows by device and version of torch."""
    counts = Counter(row["device"] for row in document["rows"])
    return "; ".join(f"{count:,} on {device}" for device, count in counts.most_common())


def _method(document: dict[str, Any]) -> list[str]:
    settings = document["settings"]
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    tuned = sum(row["key"][6] for row in document["rows"])
    dense = "; ".join(
        f"{NAMES[name]} {row['accuracy']:.1f}"
        + (f" (with the weights as downloaded {row['as_it_came']:.1f})" if row["as_it_came"] is not None else "")
        for name, row in document["dense"].items()
    )
    return [
        written_by("python -m benchmarks.study --page-only", "study.json"),
        paragraph("The rows were measured by"),
        code(f"python -m benchmarks.study --data FOLDER {options}"),
        paragraph(
            f"**Images.** CIFAR-10 as JPEG, accuracy in % on {settings['test_images']:,} test images that nothing was",
            "chosen on, and scikit-learn's digits (450 test images).",
        ),
        paragraph(
            "**Dense networks.** Trained on these images first, except VGG-16-BN, which was trained on them before.",
            "Their weights in float16 are in [benchmarks/results/dense](../benchmarks/results/dense). Accuracy in %:",
            f"{dense}.",
        ),
        paragraph(
            f"**Pruned networks.** Batch norm is re-estimated on {settings['calibration_images']:,} training images,",
            f"drawn by the seed. Fine-tuning is {settings['steps']} steps of 128 images (64 digits): a short one. All",
            "in bfloat16 except the re-estimation.",
        ),
        paragraph(
            "**Intervals.** 95 %, over the test images and, if there are several, the seeds (Student's t). In",
            "brackets: the difference on the same images and seeds. The best classical criterion of a budget is",
            "selected after the measurement, one for all networks or one for each, and the interval widened by the",
            "number of candidates (Bonferroni). The intervals do not cover the variation over other networks.",
        ),
        paragraph(
            f"**Rows.** {len(document['rows']):,}, of them {tuned:,} fine-tuned. Seeds: {_seeds(document)}. Empty",
            f"cells were not measured; the command continues with them. By device: {devices(document)}.",
        ),
        measured_on(document, document["rows"]),
        older_scores(document, document["rows"]),
    ]


def _findings(rows: Rows) -> list[str]:
    """What the defaults are compared with, in sentences computed from the rows."""
    blocks = [
        heading("Defaults compared with the alternatives"),
        paragraph(
            f"Where filters alone decide, the criterion is `{CRITERION}`, the entropies of `Formula()` times the L1",
            f"norm, on both sides, and the policy is `{POLICY}`: it needs no data. Where a model has batch norms, and",
            "where there are images, `prune` has other defaults: [defaults](defaults.md). The sentences below are",
            "computed from the tables:",
            '"level" means that the 95 % interval of the difference contains zero. Criteria are compared under the',
            'same policy, policies with the criterion `fec`. The intervals behind "criteria ahead" are not widened',
            "for the number of criteria.",
        ),
        paragraph(
            "This criterion was chosen among [trials](trials.md) on other test images of CIFAR-10, with",
            "ResNet-56, ResNet-20 and VGG-16-BN: only the digits are new to it. `fec, both axes` in the tables is the",
            'sum of the entropies of both axes, `Formula("rms", axis="both")`.',
        ),
    ]
    for group, networks in GROUPS.items():
        for tuned, stage in STAGES.items():
            better = comparisons.better_criteria(rows, networks, tuned)
            blocks += [
                paragraph(f"**{group[0].upper()}{group[1:]}. {stage}.** `{CRITERION}` compared with"),
                bullets(f"{sentence}." for sentence in comparisons.criterion_findings(rows, networks, tuned)),
                paragraph(
                    f"Criteria ahead of `{CRITERION}` (mean difference): {', '.join(better)}."
                    if better
                    else f"No criterion is ahead of `{CRITERION}`."
                ),
                paragraph(f"`{POLICY}` compared with"),
                bullets(f"{sentence}." for sentence in comparisons.policy_findings(rows, networks, tuned)),
            ]
    return blocks


def _together(rows: Rows, networks: Sequence[str], tuned: bool) -> list[str]:
    return [
        paragraph(f"**{STAGES[tuned]}.**"),
        comparisons.table_of_criteria(rows, networks, tuned),
        comparisons.table_of_policies(rows, networks, tuned),
    ]


def _by_network(rows: Rows, networks: Sequence[str]) -> list[str]:
    blocks = []
    for tuned, stage in sorted(STAGES.items()):
        criteria = [table for network in networks if (table := tables.table_of_criteria(rows, network, tuned))]
        if criteria:
            blocks += [paragraph(f"**{stage}.**"), comparisons.table_of_criteria(rows, networks, tuned), *criteria]
        policies = [table for network in networks if (table := tables.table_of_policies(rows, network, tuned))]
        if policies:
            title = (
                f"**{stage}, by policy,** the criterion `fec`; at the end of a cell what remains in the other currency."
            )
            blocks += [paragraph(title), *policies]
    return blocks


def _seeds(document: dict[str, Any]) -> str:
    """The number of seeds of each network: the fewest and the most of all its combinations."""
    counts: dict[str, dict[str, set[int]]] = {name: defaultdict(set) for name in NAMES}
    for row in document["rows"]:
        network, criterion, policy, currency, share, seed, tuned = row["key"]
        if "tau" not in policy and FORMULA not in criterion and policy != "sensitivity":
            counts[network][json.dumps([criterion, policy, currency, share, tuned])].add(seed)
    spans = []
    for name, by_combination in counts.items():
        numbers = [len(seeds) for seeds in by_combination.values()]
        if numbers:
            few, many = min(numbers), max(numbers)
            spans.append(f"{NAMES[name]} {few}" + (f" to {many}" if many > few else ""))
    return ", ".join(spans)


def figure_of(document: dict[str, Any]) -> Any:
    """Accuracy by budget, one panel per network and one line per policy, for the criterion ``fec``."""
    rows = Rows(document)
    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for panel, network in zip(panels, CHOSEN_ON, strict=True):
        for number, policy in enumerate(POLICIES[:3]):
            for tuned, style in ((False, ":"), (True, "-")):
                values = {share: rows.get(network, "fec", policy, "params", share, tuned) for share in SHARES}
                points = [(100 * share, estimate(each)) for share, each in values.items() if each is not None]
                if points:
                    x, y, half = zip(*((share, each.mean, each.half_width()) for share, each in points), strict=True)
                    label = f"{policy}, fine-tuned" if tuned else policy
                    panel.errorbar(x, y, half, marker="o", capsize=3, label=label, linestyle=style, color=f"C{number}")
        if network in rows.dense:
            panel.axhline(rows.dense[network]["accuracy"], color="grey", linestyle="--", label="dense")
        panel.set_title(f"{NAMES[network]}, criterion fec")
        panel.set_xlabel("parameters removed, %")
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    return figure
