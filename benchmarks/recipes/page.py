"""Writes docs/results.md: what the recipes came to, from the ``results.json`` that their runs wrote.

python -m benchmarks.recipes

A run's file is kept as ``benchmarks/results/recipes/RECIPE.json``, and as ``RECIPE_dense.json`` where the network was
trained first, by the same recipe with nothing removed. What was set on the command line is worked out by comparing a
run with its recipe.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
DENSE = "_dense"
STAGES = {
    "dense_tuned": "dense, with the training of the pruned one",
    "pruned": "pruned",
    "recalibrated": "batch norm re-estimated",
    "pruned_tuned": "fine-tuned",
}


def flat(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and values."""
    for key, value in content.items():
        if isinstance(value, dict) and key != "budget":
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def command(name: str, content: dict[str, Any]) -> str:
    """What was typed: the recipe, and what the run has otherwise."""
    import yaml

    recipe = name.removesuffix(DENSE)
    content = {key: value for key, value in content.items() if value is not None}
    original = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    words = [f"fec-fast run recipes/{recipe}.yaml", f"--data {content['data']['name']}"]
    words += [f"--weights {content['weights']}"] if "weights" in content else []
    known = {"data.name", "weights"}
    for key, value in content.items():  # where something of the recipe is gone, all was given anew
        if isinstance(value, dict) and not {*original.get(key, {})} <= {*value}:
            words.append(f"--set {shlex.quote(f'{key}={json.dumps(value)}'.replace(chr(34), ''))}")
            known |= {path for path, _ in flat({key: value})}
    written = dict(flat(original))
    for key, value in flat(content):
        if key not in known and written.get(key) != value:
            text = json.dumps(value).replace('"', "")
            words.append(f"--set {shlex.quote(f'{key}={text}')}")
    return " \\\n    ".join([*words, f"--out {name}"])


def measured(run: dict[str, Any], start: str) -> list[str]:
    """The table of the stages; what the first one is called."""
    images, metrics = run["images"]["held_out"], run["metrics"]
    titles = {"before": start, **STAGES}
    stages = {title: metrics[stage] for stage, title in titles.items() if stage in metrics}
    if "map" in metrics["before"]:
        lines = [f"| {images:,} held-out images | COCO mAP, % | VOC mAP, all points, % |", "|---|---|---|"]
        return lines + [f"| {title} | {100 * m['map']:.1f} | {100 * m['voc']:.1f} |" for title, m in stages.items()]
    lines = [f"| {images:,} held-out images | accuracy, % |", "|---|---|"]
    for title, found in stages.items():
        share = found["accuracy"]
        lines.append(f"| {title} | {100 * share:.2f} ± {196 * math.sqrt(share * (1 - share) / images):.2f} |")
    return lines


def section(name: str, run: dict[str, Any], first: dict[str, Any] | None) -> list[str]:
    """One run, and the training before it if there was one."""
    size, content, where = run["size"], run["recipe"], run["machine"]
    before, after, removed, latency = size["before"], size["after"], size["removed"], run["latency_ms"]
    quiet = first is None and where["device"] == "cpu"  # the GPU's machine had other work at the time
    times = f"{latency['before']:.1f} → {latency['after']:.1f} ms"
    speed = f", one image in {times} ({latency['before'] / latency['after']:.1f} times as fast)"
    tuned = run["training"]["pruned_tuned"]["epochs"]
    dense = [] if first is None else [command(f"{name}{DENSE}", first["recipe"])]
    return [
        f"## {content['description']}",
        "",
        "```sh",
        *dense,
        command(name, content),
        "```",
        "",
        *measured(run, "as it came" if first is None else "after the first training"),
        "",
        *([] if "dense_tuned" in run["metrics"] else ["The dense network did **not** get the same training here.", ""]),
        f"Parameters {before['parameters']:,} → {after['parameters']:,} (-{100 * removed['parameters']:.1f} %), MACs",
        f"{before['macs'] / 1e6:,.1f} → {after['macs'] / 1e6:,.1f} M (-{100 * removed['macs']:.1f} %)"
        f"{speed if quiet else ''}.",
        f"{len(tuned)} epochs of {tuned[0]['images']:,} images, {run['seconds'] / 60:.0f} minutes in all;",
        f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}, {where['device']}.",
        "",
    ]


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The whole page: what was trained at length first, then what was only run to its end."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name, run in sorted(runs.items()):
        if not name.endswith(DENSE):
            first = runs.get(f"{name}{DENSE}")
            parts[first is None].extend(section(name, run, first))
    lines = [
        "# What the recipes came to",
        "",
        "Written by `python -m benchmarks.recipes` from the `results.json` of each run, which is kept in",
        "[benchmarks/results/recipes/](../benchmarks/results/recipes). One seed each; intervals are 95 %, over the",
        "held-out images alone. Epochs are few, since nearly all was run on a CPU; longer training is to be expected",
        "to give more, to the dense network as well. Settings were not chosen on these figures.",
        "",
        "CIFAR-10 is in JPEG here, which costs some points. `cifar-vgg16bn.pth` was trained on these images before;",
        "`benchmarks/results/dense/resnet56.safetensors` is a network for the lossless ones, which `study.py` trained",
        "on these for three epochs.",
        "",
        *parts[True],
        "# Run to the end on a small part of real images",
        "",
        "Neither ImageNet nor weights for it were here, nor the time for the larger networks. What follows shows that",
        "these recipes run from the first line to the last on real photographs (of CIFAR-10, enlarged for ImageNet's",
        "networks; of blood cells for SSD300), starting from nothing: a short training with nothing removed, then the",
        "recipe itself. **The accuracies say nothing of what the recipes come to on their own data**; the commands for",
        "those who own them stand at the head of each recipe, and [scale.md](scale.md) says what they cost. The",
        "machine had other work at the time, so no latencies are given.",
        "",
        *parts[False],
    ]
    return "\n".join(lines).rstrip() + "\n"


def kept() -> dict[str, dict[str, Any]]:
    """The runs by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    """Writes the page."""
    (ROOT / "docs" / "results.md").write_text(page(kept()))


if __name__ == "__main__":
    main()
