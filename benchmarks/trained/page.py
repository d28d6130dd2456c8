"""The page docs/trained.md: pruned networks against dense ones with the same further training, and epochs saved."""

from __future__ import annotations

from typing import Any

from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table
from benchmarks.recovery.train_dense import RECIPES
from benchmarks.study.estimates import Estimate, by_seed, difference, estimate
from benchmarks.trained.rows import (
    ALONE,
    BATCH,
    DENSE,
    GROUP_NORM,
    HALF,
    RE_ESTIMATED,
    RECOVERED,
    ROWS,
    SMALLER,
    SPARSE,
    TRAININGS,
    WHOLE,
)

_STARTS = ((RE_ESTIMATED, HALF), (RE_ESTIMATED, WHOLE), (RECOVERED, HALF), (RECOVERED, WHOLE))


def verdict(found: Estimate, aim: float) -> str:
    """Whether a difference to the dense network meets an aim: at most so many points behind."""
    if found.mean >= -aim:
        return "met"
    return "missed, within the interval" if found.mean + found.half_width() >= -aim else "missed"


def epochs_of(sizes: tuple[int, ...]) -> str:
    """The sizes of images that a training goes through, in words: ``"2 epochs of 16 and 1 of 24"``."""
    counts = [f"{sizes.count(size)} of {size}" for size in dict.fromkeys(sizes)]
    return " and ".join(counts).replace(" of", " epochs of", 1)


def training_of(name: str, table: str) -> str:
    """The training of a row in the table of a training: a row may have its own in the first."""
    return ROWS[name].training if table == WHOLE else table


def table_of_rows(document: dict[str, Any], table: str) -> str:
    """The pruned networks and the dense ones after the same training; nothing where no row was measured."""
    rows, lines = by_seed(document["rows"]), []
    for name, row in ROWS.items():
        training = training_of(name, table)
        dense, pruned = rows.get((row.network, DENSE, training)), rows.get((name, RECOVERED, training))
        if not dense or not pruned or not dense.keys() & pruned.keys():
            continue
        seeds = sorted(dense.keys() & pruned.keys())
        own = [each for each in document["rows"] if each["key"][:3] == [name, RECOVERED, training]]
        before = sum(each["before"] for each in own) / len(own)
        found = difference({seed: pruned[seed] for seed in seeds}, dense)
        lines.append(
            [
                name,
                f"{before:.1f}",
                estimate({seed: pruned[seed] for seed in seeds}).text(),
                estimate({seed: dense[seed] for seed in seeds}).text(),
                found.text("+"),
                f"{f'at most {row.aim:g} behind' if row.aim else 'not behind'}: {verdict(found, row.aim)}",
                len(seeds),
            ]
        )
    header = ("network", "recovered", "and trained", "dense, trained", "difference", "aim", "seeds")
    return markdown_table(header, lines) if lines else ""


def precisions(document: dict[str, Any], table: str) -> str:
    """Which pairs of the table were trained in bfloat16, as processors that have instructions for it do."""
    found: dict[str, list[str]] = {"bf16": [], "mixed": []}
    for name, row in ROWS.items():
        keys = ([row.network, DENSE, training_of(name, table)], [name, RECOVERED, training_of(name, table)])
        dense, pruned = (
            {each["key"][3]: each["precision"] for each in document["rows"] if each["key"][:3] == key} for key in keys
        )
        both = sorted(dense.keys() & pruned.keys())
        coarse = [seed for seed in both if {dense[seed], pruned[seed]} == {"bf16"}]
        mixed = [seed for seed in both if dense[seed] != pruned[seed]]
        for kind, seeds in (("bf16", coarse), ("mixed", mixed)):
            if seeds:
                some = "" if seeds == both else f" (seed {', '.join(map(str, seeds))})"
                found[kind].append(f"{name}{some}")
    text = f"Trained in bfloat16: {'; '.join(found['bf16']) or 'none'}; the others in float32."
    return f"{text} One network of the two in bfloat16: {'; '.join(found['mixed'])}." if found["mixed"] else text


def table_of_epochs(document: dict[str, Any]) -> str:
    """Accuracy by start and number of epochs; nothing where none of the short trainings was measured."""
    rows, lines = by_seed(document["rows"]), []
    for name in ROWS:
        measured = [rows.get((name, start, training)) for start, training in _STARTS]
        cells = [estimate(values).text() if values else "" for values in measured]
        slow, quick = rows.get((name, RE_ESTIMATED, WHOLE), {}), rows.get((name, RECOVERED, HALF), {})
        both = slow.keys() & quick.keys()
        cells.append(difference({seed: quick[seed] for seed in both}, slow).text("+") if both else "")
        if sum(map(bool, measured)) > 1:
            lines.append([name, *cells])
    titles = [f"{start}, {training.split(',')[0]}" for start, training in _STARTS]
    header = ["network", *titles, "two epochs, recovered, minus four, re-estimated"]
    return markdown_table(header, lines) if lines else ""


def table_of_rivals(document: dict[str, Any]) -> str:
    """Ours beside Torch-Pruning's after the same epochs; nothing where that was not measured."""
    rows, lines = by_seed(document["rows"]), []
    for name in ROWS:
        ours = rows.get((name, RECOVERED, WHOLE), {})
        cells = []
        for start in (GROUP_NORM, SPARSE):
            theirs = rows.get((name, start, WHOLE), {})
            both = ours.keys() & theirs.keys()
            gap = difference({seed: theirs[seed] for seed in both}, ours).text("+") if both else ""
            cells.append(f"{estimate(theirs).text()} ({gap})" if both else "")
        if any(cells):
            lines.append([name, estimate(ours).text(), *cells])
    header = ("network", "ours", "Torch-Pruning: cut, all epochs", "Torch-Pruning: sparse training, cut, training")
    return markdown_table(header, lines) if lines else ""


def page(document: dict[str, Any]) -> str:
    """The text of the page."""
    epochs, alone, rivals = table_of_epochs(document), table_of_rows(document, ALONE), table_of_rivals(document)
    sizes = ", ".join(map(str, TRAININGS[WHOLE].sizes))
    return page_of(
        "Pruned, recovered and trained",
        written_by("python -m benchmarks.trained --page-only", "trained.json"),
        paragraph(
            "Networks on CIFAR-10 (JPEG) are pruned and recovered by `prune(model, example, budget=...,",
            "recover=images)` with its defaults, on 1,000 training images without labels, and trained. The dense",
            "networks get the same training. Accuracy in % on 8,000 test images that nothing was chosen on, with its",
            "95 % interval over images and seeds; the difference is that on the same images and seeds.",
        ),
        code("python -m benchmarks.trained --data FOLDER"),
        paragraph(
            f"Training: four epochs of 50,000 images, whose height and width are {sizes} pixels in turn, in batches of",
            f"{BATCH}; SGD, cosine from a learning rate of {TRAININGS[WHOLE].lr:g}; shifted and mirrored images. The",
            "dense network as it was before is the teacher of all, of itself too (`finetune(..., teacher=dense)`).",
            "That there is a teacher was chosen on 2,000 other test images, by ResNet-20 and VGG-16; the learning",
            "rate is that of the recipes. The trainings are short: with more epochs the figures of dense and pruned",
            "networks change. Rows that are missing were not measured.",
        ),
        paragraph(
            "ResNet-34, for the time that it takes, on smaller images: its dense network was trained for",
            f"{epochs_of(RECIPES['resnet34'].sizes)} pixels (`python -m benchmarks.recovery.train_dense`; its weights,",
            "42 MB, are not in the repository), which is not to its end, both networks further for",
            f"{epochs_of(TRAININGS[SMALLER].sizes)} pixels. They are calibrated and tested on images of 24 pixels.",
        )
        if any(row["key"][2] == SMALLER for row in document["rows"])
        else "",
        measured_on(document, document["rows"]),
        heading("Against the dense network with the same training"),
        table_of_rows(document, WHOLE),
        paragraph(precisions(document, WHOLE)),
        heading("Without a teacher") if alone else "",
        paragraph(
            f"The same epochs from the labels alone, from a learning rate of {TRAININGS[ALONE].lr:g}.",
        )
        if alone
        else "",
        alone,
        paragraph(precisions(document, ALONE)) if alone else "",
        heading("Epochs saved") if epochs else "",
        paragraph(
            "The same channels are removed; batch norms are re-estimated, or the network is recovered. All have the",
            f"teacher. In two epochs, height and width are {' and '.join(map(str, TRAININGS[HALF].sizes))} pixels.",
        )
        if epochs
        else "",
        epochs,
        heading("Torch-Pruning") if rivals else "",
        paragraph(
            "Torch-Pruning's group norm pruner with the settings of its CIFAR-10 script (one ranking of all groups),",
            "at the same budget, with the same images, epochs and teacher: the cut before all epochs, or after half of",
            "them with its penalty (a cosine in each half). In brackets: the difference to ours on the same images and",
            "seeds. Its script trains for 100 epochs with the penalty and 100 more: these figures say nothing of that.",
        )
        if rivals
        else "",
        rivals,
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("trained.md", page(document))
