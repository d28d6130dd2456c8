"""docs/results.md from the ``results.json`` files of recipe runs.

    python -m benchmarks.recipes

There is nothing to measure here: ``fec-fast run`` runs a recipe and writes ``results.json``. The file of a run is kept
as benchmarks/results/recipes/RECIPE.json, and as RECIPE_dense.json if the network was trained first, by the same recipe
with nothing removed. The command of a run is reconstructed from the differences between the run and its recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Iterator
from typing import Any

from benchmarks.common.environment import ROOT, describe, describe_commit
from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import RESULTS, older_scores, read_result
from benchmarks.common.tables import markdown_table

DENSE = "_dense"
STAGES = {
    "dense_tuned": "dense, after the training of the pruned network",
    "pruned": "pruned",
    "recalibrated": "batch norm re-estimated",
    "pruned_tuned": "fine-tuned",
}


def flat(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys joined with dots, and their values."""
    for key, value in content.items():
        if isinstance(value, dict) and key not in ("budget", "remove", "keep"):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def command(name: str, content: dict[str, Any]) -> str:
    """The command of a run: its recipe, and options for what differs from the recipe.

    Args:
        name: The name of the run, that is, of its result file.
        content: The recipe that the run used, as its results have it.
    """
    import yaml

    recipe = name.removesuffix(DENSE)
    content = {key: value for key, value in content.items() if value is not None}
    original = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    options = [f"fec-fast run recipes/{recipe}.yaml", f"--data {content['data']['name']}"]
    options += [f"--weights {content['weights']}"] if "weights" in content else []
    covered = {"data.name", "weights"}  # keys that the options so far set
    for key, value in content.items():  # a section that lacks a key of the recipe was replaced as a whole
        if isinstance(value, dict) and not {*original.get(key, {})} <= {*value}:
            options.append(f"--set {shlex.quote(f'{key}={json.dumps(value)}'.replace(chr(34), ''))}")
            covered |= {path for path, _ in flat({key: value})}
    in_recipe = dict(flat(original))
    for key, value in flat(content):
        if key not in covered and in_recipe.get(key) != value:
            text = json.dumps(value).replace('"', "")
            options.append(f"--set {shlex.quote(f'{key}={text}')}")
    options += [f"--set {key}={'false' if original[key] is True else 'null'}" for key in original if key not in content]
    return " \\\n    ".join([*options, f"--out {name}"])


def table_of_stages(run: dict[str, Any], first: str) -> str:
    """The metrics by stage.

    Args:
        run: The results of a run.
        first: The title of the stage before pruning.
    """
    images, metrics = run["images"]["held_out"], run["metrics"]
    titles = {"before": first, **STAGES}
    stages = {title: metrics[stage] for stage, title in titles.items() if stage in metrics}
    if "map" in metrics["before"]:
        header = (f"{images:,} held-out images", "COCO mAP, %", "VOC mAP, all points, %")
        return markdown_table(
            header, [(title, f"{100 * m['map']:.1f}", f"{100 * m['voc']:.1f}") for title, m in stages.items()]
        )
    shares = {title: stage["accuracy"] for title, stage in stages.items()}
    half_widths = {title: 1.96 * math.sqrt(share * (1 - share) / images) for title, share in shares.items()}
    return markdown_table(
        (f"{images:,} held-out images", "accuracy, %"),
        [(title, f"{100 * share:.2f} ± {100 * half_widths[title]:.2f}") for title, share in shares.items()],
    )


def section(name: str, run: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    """The section of one run.

    Args:
        name: The name of the run.
        run: Its results.
        first: The results of the training before it; ``None`` if the network came trained.
    """
    size, content = run["size"], run["recipe"]
    before, after, removed, latency = size["before"], size["after"], size["removed"], run["latency_ms"]
    timed = first is None and run["machine"]["device"] == "cpu"  # the other latencies were disturbed
    epochs = run["training"]["pruned_tuned"]["epochs"]
    dense = [] if first is None else [command(f"{name}{DENSE}", first["recipe"])]
    return [
        heading(content["description"]),
        code(*dense, command(name, content)),
        table_of_stages(run, "before pruning" if first is None else "after the first training"),
        *(
            []
            if "dense_tuned" in run["metrics"]
            else [paragraph("The dense network did **not** get the same training.")]
        ),
        paragraph(
            f"Parameters {before['parameters']:,} → {after['parameters']:,} (-{100 * removed['parameters']:.1f} %),",
            "MACs",
            f"{before['macs'] / 1e6:,.1f} → {after['macs'] / 1e6:,.1f} M (-{100 * removed['macs']:.1f} %)"
            + (
                f", one image in {latency['before']:.1f} → {latency['after']:.1f} ms"
                f" (ratio {latency['before'] / latency['after']:.1f})."
                if timed
                else "."
            ),
            f"{len(epochs)} epochs of {epochs[0]['images']:,} images, {run['seconds'] / 60:.0f} minutes in total.",
        ),
        paragraph(f"Measured on: {describe(run['machine'])}; {describe_commit(run['machine'])}."),
    ]


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The whole page: complete trainings first, then short runs that only exercise their recipe.

    Args:
        runs: The results by the name of the run.
    """
    complete: list[str] = []
    short: list[str] = []
    for name, run in sorted(runs.items()):
        if not name.endswith(DENSE):
            first = runs.get(f"{name}{DENSE}")
            (complete if first is None else short).extend(section(name, run, first))
    return page_of(
        "Results of the recipes",
        written_by("python -m benchmarks.recipes", "recipes"),
        paragraph(
            "Each run is the `results.json` that `fec-fast run` wrote, one seed each. Intervals are 95 %, over the",
            "held-out images alone. The trainings are short; a longer one changes the figures of the dense network as",
            "well. No setting was chosen on these figures.",
        ),
        paragraph(
            "CIFAR-10 is in JPEG here. `cifar-vgg16bn.pth` was trained on these images before;",
            "`benchmarks/results/dense/resnet56.safetensors` was trained on the lossless images, then for three epochs",
            "on the JPEG images by `python -m benchmarks.study`.",
        ),
        older_scores({}, runs.values()),
        *complete,
        heading("Short runs on a small part of real images", 1),
        paragraph(
            "These runs show that the recipes work from the first line to the last on photographs (CIFAR-10, enlarged",
            "for the networks of ImageNet; blood cells for SSD300), from random weights: a short training with nothing",
            "removed, then the recipe. ImageNet and weights for it were not available. **The accuracies are no",
            "estimate of the results on the data that a recipe is made for**; the command for that data is at the head",
            "of each recipe, its cost in [scale.md](scale.md). Latencies are omitted: the machine was shared.",
        ),
        *short,
    )


def recorded() -> dict[str, dict[str, Any]]:
    """The results of all runs, by name."""
    runs = {file.stem: read_result(file) for file in sorted((RESULTS / "recipes").glob("*.json"))}
    for run in runs.values():
        # Earlier runs have the share to remove under its older spelling.
        prune = run["recipe"].get("prune", {})
        run["recipe"]["prune"] = {{"budget": "remove"}.get(key, key): value for key, value in prune.items()}
    return runs


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_page("results.md", page(recorded()))


if __name__ == "__main__":
    main()
