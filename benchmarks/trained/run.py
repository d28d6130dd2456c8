"""Pruned networks and dense ones after the same further training, on CIFAR-10 in JPEG.

    pip install '.[bench,train,vision]' && python -m benchmarks.trained --data FOLDER

The folder holds ``cifar10-jpeg.zip`` and ``cifar-vgg16bn.pth``; the other dense networks are in
benchmarks/results/dense, but for ResNet-34: ``python -m benchmarks.recovery.train_dense`` trains it. A training keeps
its state after every epoch in the folder ``--work``, and is written to benchmarks/results/trained.json when it has
ended: an interrupted run continues. With ``--minutes`` it ends by itself after the epoch that reaches them; run it
again until it has nothing to do. On a machine with a GPU it trains there (never run). At the end docs/trained.md is
written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.group_norm import cut_until, group_norm_pruner, sparse_training
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.recovery.networks import Bench, right
from benchmarks.recovery.rows import accuracy
from benchmarks.study import data
from benchmarks.trained.page import write
from benchmarks.trained.rows import (
    BATCH,
    DENSE,
    GROUP_NORM,
    RE_ESTIMATED,
    ROWS,
    SPARSE,
    TRAININGS,
    WARMUP_EPOCHS,
    Key,
    Training,
    keys,
    precision,
)
from benchmarks.trained.teacher import RememberingTeacher
from fec_fast.graph.counts import count

RESULT = RESULTS / "trained.json"
CALIBRATION_IMAGES = 1000
_OTHER_IMAGES = 1000  # added to the seed of the second part of a training, which shifts and mirrors otherwise


class TimedImages(data.GrowingImages):
    """Training images that end a training between two epochs once the time is over.

    Attributes:
        deadline: The moment, as ``time.monotonic`` counts.
    """

    deadline = float("inf")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if time.monotonic() > self.deadline:
            raise KeyboardInterrupt  # as Ctrl-C: the training ends, its state of the last epoch is kept
        return super().__iter__()


class Trainings:
    """Prunes, trains and tests, one network after the other.

    Attributes:
        bench: The networks and images.
        output: The result file.
        work: A folder for the states of unfinished trainings.
        deadline: When to end, as ``time.monotonic`` counts.
    """

    def __init__(self, bench: Bench, output: Path, work: Path, deadline: float) -> None:
        self.bench, self.output, self.work, self.deadline = bench, output, work, deadline
        self.bench.cifar.batch = BATCH

    def run(self, key: Key) -> None:
        """Trains and tests a network, unless the result file has it.

        Raises:
            KeyboardInterrupt: The time is over, or Ctrl-C was pressed; the state of the last epoch is kept.
        """
        if any(row["key"] == list(key) for row in (read_result(self.output) or {"rows": []})["rows"]):
            return
        name, start, named, seed = key
        network, training = ROWS[name].network if name in ROWS else name, TRAININGS[named]
        state = self.work / "-".join("".join(c if c.isalnum() else "_" for c in str(part)) for part in key)
        # The network and what is known of it are the same in every part of an interrupted training.
        if start in (GROUP_NORM, SPARSE):
            model, values, sizes = self._cut_by_torch_pruning(key, state)
            drawn = seed if start == GROUP_NORM else _OTHER_IMAGES + seed
        else:
            model, values = self._start(name, start, seed)
            sizes, drawn = training.sizes, seed
        self._train(model, network, training, sizes, drawn, state / "training")
        document = read_result(self.output) or {"rows": []}
        row = {"key": list(key), **values, "precision": precision(network), **accuracy(self._right(network, model))}
        document["rows"].append({**row, "run": run_number(document, "torchvision", "torch-pruning")})
        write_result(self.output, document)
        shutil.rmtree(state)
        print(json.dumps(key), values.get("before"), row["accuracy"], flush=True)

    def _train(
        self, model: nn.Module, network: str, training: Training, sizes: tuple[int, ...], seed: int, state: Path
    ) -> None:
        """Trains a network in place, for an epoch for each size of images; goes on from a state."""
        images, normalise = self.bench.source(network)
        loader = TimedImages(images, normalise, sizes, len(images.train[1]) // BATCH)
        loader.deadline = self.deadline
        teacher = None
        if training.teacher:
            # Trainings with the same seed see the same images, unless a network has dropout.
            answers = self.work / f"{network}-teacher-{seed}.pt"
            teacher = RememberingTeacher(self.bench.dense(network).to(memory_format=torch.channels_last), answers)
        fec_fast.finetune(
            model.to(memory_format=torch.channels_last),
            loader,
            epochs=len(sizes),
            lr=training.lr,
            warmup_epochs=WARMUP_EPOCHS,
            teacher=teacher,
            mixed_precision=precision(network),
            seed=seed,
            checkpoint=state,
            resume=state.is_dir(),
            progress=False,
        )
        if teacher is not None:
            teacher.save()

    def _cut_by_torch_pruning(self, key: Key, state: Path) -> tuple[nn.Module, dict[str, Any], tuple[int, ...]]:
        """A network cut by Torch-Pruning, what is known of it, and the images that are left of its training."""
        name, start, named, seed = key
        row, training = ROWS[name], TRAININGS[named]
        model, example = self.bench.dense(row.network), self.bench.calibration(row.network, 1, 0)[0]
        dense, sizes = count(model, example), training.sizes
        pruner = group_norm_pruner(model, example)
        if start == SPARSE:
            half = len(sizes) // 2
            with sparse_training(pruner, model):
                self._train(model, row.network, training, sizes[:half], seed, state / "sparse")
            sizes = sizes[half:]
        axis = "macs" if row.budget.macs is not None else "parameters"
        target = (1 - row.budget.share_of(1.0)) * getattr(dense, axis)
        model.eval().cpu()
        cut_until(pruner, lambda: getattr(count(model, example), axis) <= target)
        now = count(model, example)
        values = {each: [getattr(dense, each), getattr(now, each)] for each in ("parameters", "macs")}
        return model, {**values, "before": accuracy(self._right(row.network, model))["accuracy"]}, sizes

    def _start(self, name: str, start: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A network before its training, and what is known of it."""
        if start == DENSE:
            return self.bench.dense(name), {}
        row = ROWS[name]
        dense, batches = self.bench.dense(row.network), self.bench.calibration(row.network, CALIBRATION_IMAGES, seed)
        # The same channels for both starts: what differs is the recovery.
        result = fec_fast.prune(dense, batches[0][:1], budget=row.budget, recover=batches, verify=False)
        model = result.model
        if start == RE_ESTIMATED:
            model = self.bench.dense(row.network)
            fec_fast.apply_plan(model, result.plan)
            fec_fast.recalibrate(model, batches)
        sizes = {"parameters": [result.before.parameters, result.after.parameters]}
        macs = {"macs": [result.before.macs, result.after.macs]}
        return model, {**sizes, **macs, "before": accuracy(self._right(row.network, model))["accuracy"]}

    def _right(self, network: str, model: nn.Module) -> list[bool]:
        """For each of the test images that nothing was chosen on whether it is classified correctly."""
        images, normalise = self.bench.source(network)
        device = next(model.parameters()).device
        test = self.bench.resized(network, data.tested(images.test, normalise, len(images.test[1])))
        return right(model, [(x.to(device), y.to(device)) for x, y in test])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images and weights")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for images and states")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS).replace("%", "%%")
    )
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--minutes", default=float("inf"), type=float, help="begin no epoch after so many minutes")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if not arguments.page_only:
        if arguments.data is None:
            parser.error("--data is needed, except with --page-only")
        deadline = time.monotonic() + 60 * arguments.minutes
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.set_num_threads(arguments.threads)
        bench = Bench(arguments.data, arguments.work, 0)
        trainings = Trainings(bench, arguments.output, arguments.work, deadline)
        try:
            for key in dict.fromkeys(keys(arguments.rows, arguments.seeds)):
                trainings.run(key)
        except KeyboardInterrupt:
            print("interrupted: run the same command again to go on")
    write(read_result(arguments.output))
