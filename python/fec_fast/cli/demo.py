"""Demo: accuracy against size on real images, by the defaults, by the L1 norm and at random, in less than a minute."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from torch import Tensor, nn

from ..graph.counts import count
from ..plan.checkpoint import load, save
from ..pruning.allocation.budget import Budget
from ..pruning.pruner import PruneResult, prune
from ..pruning.reporting import report_content
from ..report.charts import Curve
from ..report.content import CurveChart
from ..report.figures import check_plotting
from ..report.writer import write_report
from ..training.finetuning import finetune
from ..utils.arguments import check_file_to_write
from ..utils.errors import CheckpointError, InputError, nearest
from ..utils.evaluation import evaluate
from ..utils.files import write_text
from ..utils.machine import describe_machine
from ..utils.random_state import restored_randomness
from ..utils.text import folded, short_number
from ..vision import zoo
from ..vision.digits import load_digits

NETWORKS = ("resnet-digits", "vgg-digits")
DEFAULTS = "fec_fast"  # the default criterion, the default policy, and recovery on the training images
_CRITERIA: Mapping[str, str | None] = {DEFAULTS: None, "l1": "l1", "random": "random"}
METHODS = tuple(_CRITERIA)
_COLOURS = {DEFAULTS: "green", "l1": "yellow", "random": "magenta"}
_BATCH = 64


@dataclass(frozen=True)
class DemoSettings:
    """What the demo prunes to, the length of its trainings, and the number of repetitions.

    Attributes:
        budgets: Shares of the parameters to remove. The report is about the one in the middle.
        epochs: Epochs of training before pruning.
        lr: Learning rate before pruning.
        finetune_epochs: Epochs of training after pruning, with the default learning rate.
        repeats: Runs per way of pruning: fine-tuning with the seeds 1, 2, ...; at random, so many prunings too.
    """

    budgets: tuple[float, ...] = (0.5, 0.8, 0.95)
    epochs: int = 10
    lr: float = 0.05
    finetune_epochs: int = 3
    repeats: int = 2

    @property
    def shown(self) -> float:
        """The budget that the report is about."""
        return self.budgets[len(self.budgets) // 2]


def run_demo(
    output: str | Path | None = None,
    report: str | Path | None = None,
    *,
    network: str = NETWORKS[0],
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains a small network on scikit-learn's digits, prunes it in three ways to several sizes, and shows the results.

    The ways: by the defaults with recovery on the training images, by the L1 norm, and at random. All get the same
    budgets, and the same fine-tuning afterwards; so does the dense network.

    Args:
        output: JSON file for the figures; its folder must exist. ``None`` writes no file.
        report: HTML file for the report on the pruning by the defaults, by the budget in the middle; its folder must
            exist. ``None`` writes none.
        network: ``"resnet-digits"`` or ``"vgg-digits"``.
        settings: Length of the trainings; ``None`` takes values that fit into a minute on two cores.
        console: Console for the results; ``None`` is standard output.

    Returns:
        The figures, equal to the content of the JSON file. Accuracies are on the held-out images, in [0, 1].

    Raises:
        InputError: The network is unknown, or the folder of a file does not exist.
        CheckpointError: The outputs of a loaded network differ from those of the saved one.
        MissingExtraError: scikit-learn or accelerate is not installed; or matplotlib, with a report.
    """
    settings, console = settings or DemoSettings(), console or Console()
    if network not in NETWORKS:
        raise InputError(f"the demo has no network {network!r}; {nearest(network, NETWORKS)}")
    if output is not None:
        check_file_to_write("output", output)
    if report is not None:
        check_file_to_write("report", report)
        check_plotting()
    start = time.perf_counter()
    with restored_randomness(), _one_thread():
        demo = _Demo(network, settings, console)
        figures = demo.figures()
        figures["seconds"] = round(time.perf_counter() - start, 1)
        _print(figures, console)
        if output is not None:
            write_text(Path(output), json.dumps(figures, indent=1) + "\n")
            console.print(f"figures: {output}", soft_wrap=True)
        if report is not None:
            console.print(f"report:  {demo.write_report(Path(report), figures)}", soft_wrap=True)
    return figures


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Networks as small as these gain nothing from threads, which wait for one another where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Demo:
    """One run of the demo: the data, the dense network, and the result that the report is about."""

    def __init__(self, network: str, settings: DemoSettings, console: Console) -> None:
        """Trains the dense network."""
        self.network, self.settings, self.console = network, settings, console
        self.held_out = load_digits(_BATCH)[1]
        self.example: Tensor = next(iter(self.held_out))[0][:1]
        torch.manual_seed(0)
        train = load_digits(_BATCH)[0]
        images = len(train.dataset)  # type: ignore[arg-type]  # a tensor data set, which has a length
        console.print(f"{network}: {settings.epochs} epochs of training on {images} digits")
        self.dense = zoo.build(f"zoo:{network}")
        finetune(self.dense, train, epochs=settings.epochs, lr=settings.lr, progress=False)
        self.dense.cpu().eval()
        self.shown: PruneResult | None = None

    def figures(self) -> dict[str, Any]:
        """Prunes by every budget and method, and measures."""
        counts, images = count(self.dense, self.example), len(self.held_out.dataset)  # type: ignore[arg-type]
        dense: dict[str, Any] = {
            "parameters": counts.parameters,
            "macs": counts.macs,
            "at_once": [evaluate(self.dense, self.held_out)],
            "tuned": [self._tuned(self.dense, seed) for seed in self._seeds],
        }
        self.console.print(f"  {100 * dense['at_once'][0]:.1f} % of the {images} held-out digits are read correctly")
        return {
            "format": "fec_fast demo",
            "version": 2,
            "machine": describe_machine(),
            "data": {"name": "sklearn:digits", "held_out_images": images},
            "settings": {**asdict(self.settings), "budgets": list(self.settings.budgets)},
            "network": self.network,
            "dense": dense,
            "budgets": [
                {"removed": budget, "methods": {method: self._pruned(budget, method) for method in METHODS}}
                for budget in self.settings.budgets
            ],
        }

    @property
    def _seeds(self) -> range:
        return range(1, self.settings.repeats + 1)

    def _pruned(self, budget: float, method: str) -> dict[str, Any]:
        """Prunes by one budget and method, and fine-tunes copies of the result."""
        at_once, tuned = [], []
        result: PruneResult | None = None
        for seed in self._seeds:
            torch.manual_seed(seed)
            if result is None or method == "random":  # the other methods have the same result every time
                images = load_digits(_BATCH, seed)[0] if method == DEFAULTS else None
                result = prune(
                    self.dense, self.example, budget=Budget(params=budget), criterion=_CRITERIA[method], recover=images
                )
                at_once.append(evaluate(result.model, self.held_out))
            tuned.append(self._tuned(result.model, seed))
        assert result is not None  # repeats is at least 1
        if (budget, method) == (self.settings.shown, DEFAULTS):
            self.shown = result
            self._check_file(result)
        self.console.print(
            f"  {100 * budget:.0f} % of the parameters removed by {method}: {100 * fmean(at_once):.1f} % untuned, "
            f"{100 * fmean(tuned):.1f} % tuned"
        )
        return {
            "parameters": result.after.parameters,
            "macs": result.after.macs,
            "at_once": at_once,
            "tuned": tuned,
        }

    def _tuned(self, model: nn.Module, seed: int) -> float:
        """The accuracy of a fine-tuned copy."""
        copied = copy.deepcopy(model)
        finetune(copied, load_digits(_BATCH, seed)[0], epochs=self.settings.finetune_epochs, seed=seed, progress=False)
        return evaluate(copied.cpu(), self.held_out)

    def _check_file(self, result: PruneResult) -> None:
        """Saves a pruned network and loads it into a fresh one, whose outputs must be bit-equal."""
        with tempfile.TemporaryDirectory(prefix="fec-fast-demo-") as folder:
            save(result, Path(folder) / "pruned")
            fresh = load(zoo.build(f"zoo:{self.network}"), Path(folder) / "pruned").eval()
        with torch.no_grad():
            if not torch.equal(fresh(self.example), result.model.eval()(self.example)):
                raise CheckpointError(f"{self.network}: the loaded network differs from the saved one; please report")

    def write_report(self, file: Path, figures: Mapping[str, Any]) -> Path:
        """Writes the report on the shown result, with accuracy against size at the top."""
        assert self.shown is not None  # it is one of the budgets
        result = self.shown
        content = report_content(
            result.plan,
            f"fec-fast demo: {self.network}, {100 * self.settings.shown:.0f} % of the parameters removed",
            pruned=result.model,
            original=self.dense,
            example_inputs=self.example,
            before=result.before,
            after=result.after,
            facts=[] if result.proof is None else [str(result.proof).partition("\n")[0]],
            charts=_charts(figures),
        )
        return write_report(file, content)


def _charts(figures: Mapping[str, Any]) -> list[CurveChart]:
    """Accuracy against size, right after the cut and tuned."""
    images, epochs = figures["data"]["held_out_images"], figures["settings"]["finetune_epochs"]
    names = {"at_once": "Right after the cut", "tuned": f"After {epochs} epochs of fine-tuning"}
    dense = figures["dense"]
    charts = []
    for key, title in names.items():
        curves = []
        for method in METHODS:
            rows = [dense, *(budget["methods"][method] for budget in figures["budgets"])]
            sizes = [row["parameters"] / 1000 for row in rows]
            curves.append(Curve(method, sizes, [round(100 * fmean(row[key]), 2) for row in rows]))
        text = (
            f"{figures['network']} on {images} held-out digits of scikit-learn; the point on the right is the dense "
            f"network. {DEFAULTS}: the defaults, recovered on 1,024 training images; l1 and random: not recovered."
        )
        charts.append(CurveChart(title, curves, "parameters, thousands", "accuracy, %", text))
    return charts


def _print(figures: Mapping[str, Any], console: Console) -> None:
    """Prints accuracy against size as bars, in 80 columns or fewer, and what they were measured on."""
    width = min(14, max(4, (min(console.width, 80) - 46) // 2))
    dense, machine, settings = figures["dense"], figures["machine"], figures["settings"]
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("removed", "by", "MACs", "untuned", "", "tuned", ""):
        table.add_column(title, no_wrap=True)
    for budget in figures["budgets"]:
        for method, row in budget["methods"].items():
            first = f"{100 * budget['removed']:.0f} %" if method == METHODS[0] else ""
            cells: list[Any] = [first, method, short_number(row["macs"])]
            for key in ("at_once", "tuned"):
                share = fmean(row[key])
                cells += [ProgressBar(1.0, share, width=width, complete_style=_COLOURS[method]), f"{100 * share:.1f} %"]
                cells[-2].finished_style = _COLOURS[method]
            table.add_row(*cells)
    console.print()
    console.print(table)
    images, tuned = figures["data"]["held_out_images"], fmean(dense["tuned"])
    noise = 196 * math.sqrt(tuned * (1 - tuned) / images)  # the half of a 95 % interval, in points
    console.print(
        folded(
            f"\nremoved: of the {short_number(dense['parameters'])} parameters. "
            f"Dense: {short_number(dense['macs'])} MACs, {100 * fmean(dense['at_once']):.1f} %, "
            f"tuned {100 * tuned:.1f} %.\n"
            f"untuned: right after the cut. tuned: {settings['finetune_epochs']} epochs later, means of "
            f"{settings['repeats']} runs.\n"
            f"Accuracy on {images} held-out digits: less than about {noise:.1f} points may be chance.\n"
            f"{DEFAULTS}: the defaults, recovered on 1,024 training images without labels.\n"
            "l1, random: the same call with that criterion, without recovery.\n"
            + "".join(f"{line}\n" for line in _remarks(figures["budgets"]))
            + f"{machine['processor']}, {machine['threads']} thread, torch {machine['torch']}; {figures['seconds']} s."
        ),
        soft_wrap=True,
    )


def _remarks(budgets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says where the defaults are not the best, so that nobody has to look for it."""
    lines = []
    for key, words in (("at_once", "Right after the cut"), ("tuned", "Tuned")):
        below = []
        for budget in budgets:
            mean = {method: fmean(row[key]) for method, row in budget["methods"].items()}
            better = [method for method in METHODS if mean[method] > mean[DEFAULTS]]
            if better:
                below.append(f"{' and '.join(better)} with {100 * budget['removed']:.0f} % removed")
        if below:
            lines.append(f"{words}, {DEFAULTS} is below {'; below '.join(below)}.")
    return lines
