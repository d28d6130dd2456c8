"""Demo: train, score, prune, fine-tune, save, load and evaluate small networks on real images, in minutes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..graph.counts import count
from ..plan.checkpoint import load, save
from ..pruning.pruner import prune
from ..scoring.model_scores import score_model
from ..training.finetuning import finetune
from ..utils.errors import CheckpointError, InputError, nearest
from ..utils.evaluation import evaluate
from ..utils.files import write_text
from ..utils.machine import describe_machine
from ..utils.random_state import restored_randomness
from ..utils.timing import measure_latency
from ..vision import zoo
from ..vision.digits import load_digits

# Share of channels removed from every layer of each network: 94 % and 83 % of the parameters.
RATIOS: Mapping[str, float] = {"vgg-digits": 0.75, "resnet-digits": 0.6}
RECOVERED = "recovered"  # by the default criterion, and the kept channels take over the work of the removed ones
ROWS = (RECOVERED, "l1", "random")
DENSE = "none"
_BATCH = 64


@dataclass(frozen=True)
class DemoSettings:
    """Length of the demo's trainings and number of repetitions.

    Attributes:
        epochs: Epochs of training before pruning.
        lr: Learning rate before pruning.
        finetune_epochs: Epochs of training after pruning.
        finetune_lr: Learning rate after pruning.
        repeats: Number of runs per network and way of pruning, with seeds 0, 1, ...; the dense network has one.
        latency_seconds: Seconds for which each network is timed.
    """

    epochs: int = 20
    lr: float = 0.05
    finetune_epochs: int = 8
    finetune_lr: float = 0.02
    repeats: int = 3
    latency_seconds: float = 0.5


def run_demo(
    output: str | Path | None = None,
    *,
    networks: Iterable[str] = tuple(RATIOS),
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains small networks on scikit-learn's digits, prunes them in three ways and prints the results.

    The ways: with recovery on the training images, by the L1 norm, and at random. Each removes the same number of
    channels from every layer and gets the same fine-tuning. So does the dense network (``"none"``). Every pruned
    network is saved, loaded into a fresh one, and then evaluated.

    Args:
        output: JSON file for the figures; its folder must exist. ``None`` writes no file.
        networks: Names of networks, keys of ``RATIOS``.
        settings: Length of the trainings; ``None`` takes values that fit into four minutes on two cores.
        console: Console for the results; ``None`` is standard output.

    Returns:
        The figures, equal to the content of the file. Accuracies are on the held-out images, in [0, 1];
        latencies are medians in milliseconds for one batch.

    Raises:
        InputError: A network is unknown, or the folder of the output does not exist.
        CheckpointError: The outputs of a loaded network differ from those of the saved one.
        MissingExtraError: scikit-learn or accelerate is not installed.
    """
    settings = settings or DemoSettings()
    console = console or Console()
    chosen = list(networks)
    for name in chosen:
        if name not in RATIOS:
            raise InputError(f"the demo has no network {name!r}; {nearest(name, RATIOS)}")
    if output is not None and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise InputError(f"output={str(output)!r} must name a file in an existing folder")
    start = time.perf_counter()
    _, held_out = load_digits(_BATCH)
    images = len(held_out.dataset)  # type: ignore[arg-type]  # a tensor data set, which has a length
    report: dict[str, Any] = {
        "format": "fec_fast demo",
        "version": 1,
        "machine": describe_machine(),
        "data": {"name": "sklearn:digits", "held_out_images": images, "latency_batch": _BATCH},
        "settings": vars(settings).copy(),
        "networks": {},
    }
    with restored_randomness():
        for name in chosen:
            report["networks"][name] = _network(name, settings, console)
    report["seconds"] = round(time.perf_counter() - start, 1)
    for name in chosen:
        console.print(_table(name, report["networks"][name]))
    host = report["machine"]
    console.print(
        f"Accuracy on {images} held-out images (one image is {100 / images:.2f} points), means of {settings.repeats} "
        f"runs;\n'at once' is before fine-tuning, 'tuned' after it. Latency: median, {_BATCH} images.\n"
        f"{host['processor']}, {host['threads']} threads, torch {host['torch']}; {report['seconds']} s in all."
    )
    if output is not None:
        write_text(Path(output), json.dumps(report, indent=1) + "\n")
        console.print(f"figures written to {output}")
    return report


def _network(name: str, settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Trains one network and prunes it by every criterion."""
    torch.manual_seed(0)
    dense = zoo.build(f"zoo:{name}")
    train, held_out = load_digits(_BATCH)
    console.print(f"[bold]{name}[/bold]: training on {len(train)} batches of {_BATCH} digits, {settings.epochs} epochs")
    start = time.perf_counter()
    finetune(dense, train, epochs=settings.epochs, lr=settings.lr)
    seconds = time.perf_counter() - start
    dense.cpu()
    accuracy = evaluate(dense, held_out)
    console.print(f"  {100 * accuracy:.2f} % of the held-out digits right after {seconds:.1f} s")
    start = time.perf_counter()
    scores = score_model(dense)
    scoring = time.perf_counter() - start
    console.print(f"  {len(scores)} convolutions scored in {1000 * scoring:.1f} ms")
    return {
        "ratio": RATIOS[name],
        "training_seconds": round(seconds, 1),
        "trained_accuracy": accuracy,
        "scoring_ms": round(1000 * scoring, 3),
        "criteria": {criterion: _criterion(name, dense, criterion, settings, console) for criterion in (DENSE, *ROWS)},
    }


def _criterion(name: str, dense: nn.Module, criterion: str, settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Prunes (unless the row is ``DENSE``) and fine-tunes copies of a network."""
    _, held_out = load_digits(_BATCH)
    example: Tensor = next(iter(held_out))[0]
    one_shot, accuracy, seconds = [], [], []
    model = dense
    for seed in range(1 if criterion == DENSE else settings.repeats):
        torch.manual_seed(seed)  # for criterion "random"
        train, _ = load_digits(_BATCH)
        ratio = 0.0 if criterion == DENSE else RATIOS[name]
        by_default = criterion in (DENSE, RECOVERED)
        images = train if criterion == RECOVERED else None
        result = prune(dense, example, ratio=ratio, criterion=None if by_default else criterion, recover=images)
        one_shot.append(evaluate(result.model, held_out))
        start = time.perf_counter()
        finetune(
            result.model, train, epochs=settings.finetune_epochs, lr=settings.finetune_lr, seed=seed + 1, progress=False
        )
        seconds.append(time.perf_counter() - start)
        result.model.cpu()
        model = _through_disk(name, result, example)
        accuracy.append(evaluate(model, held_out))
    counts = count(model, example[:1])
    console.print(
        f"  {criterion}: {counts.parameters:,} parameters, {100 * fmean(one_shot):.2f} % at once, "
        f"{100 * fmean(accuracy):.2f} % after {settings.finetune_epochs} epochs ({fmean(seconds):.1f} s)"
    )
    return {
        "parameters": counts.parameters,
        "macs": counts.macs,
        "accuracy_before_finetuning": one_shot,
        "accuracy": accuracy,
        "finetuning_seconds": [round(value, 2) for value in seconds],
        "latency_ms": round(1000 * measure_latency(model, example, settings.latency_seconds), 4),
    }


def _through_disk(name: str, result: Any, example: Tensor) -> nn.Module:
    """Saves a pruned network and loads it into a fresh one, whose outputs must be bit-equal."""
    with tempfile.TemporaryDirectory(prefix="fec-fast-demo-") as folder:
        save(result, Path(folder) / "pruned")
        model = load(zoo.build(f"zoo:{name}"), Path(folder) / "pruned")
    outputs = []
    for each in (result.model, model):
        each.eval()
        with torch.no_grad():
            outputs.append(each(example))
    if not torch.equal(*outputs):
        raise CheckpointError(f"{name}: the loaded network differs from the saved one; please report this")
    return model


def _table(name: str, network: dict[str, Any]) -> Table:
    """Table of one network's figures, at most 80 columns wide for terminals and logs."""
    title = f"{name}: {100 * network['ratio']:.0f} % of every layer's channels removed"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("network", "parameters", "MACs", "at once", "tuned (range)", "latency"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    whole = network["criteria"][DENSE]
    for criterion, row in network["criteria"].items():
        accuracy = row["accuracy"]
        table.add_row(
            criterion,
            _share(row["parameters"], whole["parameters"]),
            _share(row["macs"], whole["macs"]),
            f"{100 * fmean(row['accuracy_before_finetuning']):.1f} %",
            f"{100 * fmean(accuracy):.1f} % ({100 * min(accuracy):.1f}-{100 * max(accuracy):.1f})",
            f"{row['latency_ms']:.2f} ms",
        )
    return table


def _share(value: int, whole: int) -> str:
    text = f"{value / 1000:,.0f} k"
    return text if value == whole else f"{text} {100 * (value / whole - 1):+.1f} %"
