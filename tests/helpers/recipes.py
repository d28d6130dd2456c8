"""The recipes that are shipped, and a short one for digits."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "recipes"
CLASSIFIERS = sorted(path.name for path in FOLDER.glob("*.yaml") if "voc" not in path.name)
DETECTORS = sorted(path.name for path in FOLDER.glob("*voc*.yaml"))
DIGITS = """
model: zoo:vgg-digits
data: {name: "sklearn:digits", limit: 20}
prune: {budget: {params: 0.5}, ratios: uniform}
recalibrate: 200
dense: true
teacher: true
finetune: {epochs: 2, lr: 0.02}
"""


def write_digits(folder: Path) -> Path:
    """Writes the short recipe."""
    file = folder / "recipe.yaml"
    file.write_text(DIGITS)
    return file
