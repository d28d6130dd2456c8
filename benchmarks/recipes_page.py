"""Writes docs/results.md: what the recipes came to, from the ``results.json`` that their runs wrote.

python benchmarks/recipes_page.py

A run's file is kept as ``benchmarks/results/recipes/RECIPE.json``, or ``RECIPE_WORD.json`` for one with other settings
than the recipe's; what was set on the command line is worked out by comparing the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
STAGES = {
    "before": "as it came",
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

    recipe = name.split("_")[0]
    written = dict(flat(yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())))
    words = [
        f"fec-fast run recipes/{recipe}.yaml",
        f"--data {content['data']['name']}",
        f"--weights {content['weights']}",
    ]
    for key, value in flat(content):
        if key not in ("data.name", "weights") and written.get(key) != value:
            text = json.dumps(value).replace('"', "") if isinstance(value, dict) else json.dumps(value).strip('"')
            words.append(f"--set '{key}={text}'" if isinstance(value, dict) else f"--set {key}={text}")
    return " \\\n    ".join([*words, f"--out {name}"])


def section(name: str, run: dict[str, Any]) -> list[str]:
    """One run."""
    size, content, where = run["size"], run["recipe"], run["machine"]
    before, after, removed, latency = size["before"], size["after"], size["removed"], run["latency_ms"]
    images, faster = run["images"]["held_out"], latency["before"] / latency["after"]
    rows = []
    for stage, title in STAGES.items():
        if stage in run["metrics"]:
            share = run["metrics"][stage]["accuracy"]
            rows.append(f"| {title} | {100 * share:.2f} ± {196 * math.sqrt(share * (1 - share) / images):.2f} |")
    tuned = run["training"]["pruned_tuned"]["epochs"]
    lines = [
        f"## {content['description']}",
        "",
        "```sh",
        command(name, content),
        "```",
        "",
        f"| {images:,} held-out images | accuracy, % |",
        "|---|---|",
        *rows,
        "",
        *([] if "dense_tuned" in run["metrics"] else ["The dense network did **not** get the same training here.", ""]),
        f"Parameters {before['parameters']:,} → {after['parameters']:,} (-{100 * removed['parameters']:.1f} %), MACs",
        f"{before['macs'] / 1e6:,.1f} → {after['macs'] / 1e6:,.1f} M (-{100 * removed['macs']:.1f} %), one image in",
        f"{latency['before']:.1f} → {latency['after']:.1f} ms ({faster:.1f} times as fast).",
        f"{len(tuned)} epochs of {tuned[0]['images']:,} images, {run['seconds'] / 60:.0f} minutes in all;",
        f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}, {where['device']}.",
        "",
    ]
    return lines


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    lines = [
        "# What the recipes came to",
        "",
        "Written by `python benchmarks/recipes_page.py` from the `results.json` of each run, which is kept in",
        "[benchmarks/results/recipes/](../benchmarks/results/recipes). One seed each; intervals are 95 %, over the",
        "held-out images alone. Epochs are few, since all was run on a CPU; longer training is to be expected to give",
        "more, to the dense network as well. Settings were not chosen on these figures.",
        "",
        "CIFAR-10 is in JPEG here, which costs some points. `cifar-vgg16bn.pth` was trained on these images before;",
        "`resnet56-jpeg.safetensors` is a network for the lossless ones, which `study.py` trained on these for three",
        "epochs (`runs/study/resnet56.safetensors`).",
        "",
    ]
    for name, run in sorted(runs.items()):
        lines += section(name, run)
    return "\n".join(lines).rstrip() + "\n"


def kept() -> dict[str, dict[str, Any]]:
    """The runs by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    """Writes the page."""
    (ROOT / "docs" / "results.md").write_text(page(kept()))


if __name__ == "__main__":
    main()
