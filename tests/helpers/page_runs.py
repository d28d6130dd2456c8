"""Runs the Python blocks of a page, with what they need."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from helpers.optional import skip_without
from helpers.page_stand_ins import StandIn, blood_cells, few_digits, own_boxes, own_yolo, trained_resnet
from helpers.pages import PAGES, blocks, name_of


class Needs(NamedTuple):
    """What the blocks of a page need: optional packages, time, and stand-ins for what the reader has."""

    packages: tuple[str, ...] = ()
    slow: bool = False
    stand_in: StandIn | None = None


_TRAINING = ("accelerate", "torchmetrics", "sklearn")
_DETECTION = ("torchvision", "PIL", "defusedxml", "pycocotools", "accelerate", "matplotlib")
NEEDS = {
    "README.md": Needs(("torchvision", "accelerate", "torchmetrics", "matplotlib"), True, trained_resnet),
    "docs/budgets.md": Needs(("torchvision",), True),
    "docs/coming-from.md": Needs(("torchvision", "torch_pruning")),
    "docs/index.md": Needs((*_TRAINING, "matplotlib"), True, few_digits),
    "docs/tutorials/classifier.md": Needs((*_TRAINING, "matplotlib"), True, few_digits),
    "docs/tutorials/detector.md": Needs(_DETECTION, True, own_boxes),
    "docs/tutorials/during-training.md": Needs(_TRAINING, True, few_digits),
    "docs/tutorials/onnx.md": Needs(("onnxscript", "onnxruntime"), True),
    "docs/tutorials/without-labels.md": Needs(_TRAINING, True, few_digits),
    "docs/choosing.md": Needs((*_TRAINING, "matplotlib"), True),
    "docs/couplings.md": Needs(("torchvision", "torch_pruning", "onnxscript", "onnxruntime"), True),
    "docs/finetuning.md": Needs((*_TRAINING, "torchvision"), True),
    "docs/int8.md": Needs(("onnxscript", "onnxruntime"), True),
    "docs/report.md": Needs(("matplotlib",)),
    "docs/scale.md": Needs(("torchvision",)),
    "docs/ssd.md": Needs(_DETECTION, True, blood_cells),
    "docs/yolo.md": Needs(("ultralytics", "onnx"), True, own_yolo),
    "docs/training_loops.md": Needs((*_TRAINING, "torchvision", "lightning", "transformers"), True),
}
WITH_PYTHON = [page for page in PAGES if any(block.language in ("python", "py") for block in blocks(page))]


def parameters(pages: list[Path]) -> list[Any]:
    """Pages as parameters of a test: those that take long are marked."""
    slow = {page for page in pages if NEEDS.get(name_of(page), Needs()).slow}
    return [pytest.param(page, marks=[pytest.mark.slow] if page in slow else [], id=name_of(page)) for page in pages]


def assert_page_runs(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the blocks of a page in a folder, from top to bottom; skips it where a package is missing."""
    needs = NEEDS.get(name_of(page), Needs())
    skip_without(*needs.packages)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if needs.stand_in is not None:
            needs.stand_in(namespace, folder, monkeypatch)
        ran = _run_blocks(page, namespace, capsys)
    assert ran == sum(block.language == "python" and block.reason is None for block in blocks(page))


def _run_blocks(page: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> int:
    """Runs the Python blocks of a page in one namespace; returns how many.

    A block without a language that follows one of Python is what that prints, shortened.
    """
    ran, printed, before = 0, "", ""
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            # Empty lines before the block make the line numbers of a failure those of the page.
            exec(compile("\n" * (block.line - 1) + block.source, str(page), "exec"), namespace)
            ran, printed = ran + 1, capsys.readouterr().out
        elif not block.language and before == "python":
            missing = [row for row in block.source.splitlines() if row != "..." and row not in printed.splitlines()]
            assert not missing, f"{name_of(page)}, line {block.line}: not printed: {missing}"
        before = block.language
    return ran
