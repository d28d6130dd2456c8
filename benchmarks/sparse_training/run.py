"""Sparse training: the same number of training steps before, between and after the cuts.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.sparse_training --data FOLDER

The folder holds ``cifar10-jpeg.zip``; the dense networks are in benchmarks/results/dense. Each finished row is written
to benchmarks/results/sparse_training.json at once: an interrupted run continues. At the end docs/sparse_training.md is
written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.recovery.networks import Bench, right
from benchmarks.recovery.rows import accuracy
from benchmarks.sparse_training.page import write
from benchmarks.sparse_training.schedules import LR, NETWORKS, SCHEDULES, STEPS, Work, keys
from benchmarks.study import data
from fec_fast import Budget

RESULT = RESULTS / "sparse_training.json"
CALIBRATION_IMAGES = 1000


class Measurement:
    """Trains and tests, one row after the other.

    Attributes:
        bench: The networks and images.
        output: The result file.
    """

    def __init__(self, bench: Bench, output: Path) -> None:
        self.bench, self.output = bench, output

    def run(self, network: str, schedule: str, share: float, seed: int) -> None:
        """Measures a row, unless the result file has it."""
        key = [network, schedule, share, seed]
        document = read_result(self.output) or {"rows": []}
        if any(row["key"] == key for row in document["rows"]):
            return
        start = time.process_time()
        batches = self.bench.calibration(network, CALIBRATION_IMAGES, seed)
        train = partial(self.train, network, seed)
        work = Work(self.bench.dense(network), batches, Budget(params=share or 0.5), train)
        model = SCHEDULES[schedule](work)
        seconds = round(time.process_time() - start)
        row = {"key": key, **accuracy(right(model, self.bench.test(network))), "cpu_seconds": seconds}
        document["rows"].append({**row, "run": run_number(document, "torchvision", "torch-pruning")})
        write_result(self.output, document)
        print(json.dumps(key), row["accuracy"], seconds, flush=True)

    def train(self, network: str, seed: int, model: nn.Module, share: float, part: int, **options: Any) -> None:
        """Trains a network for a share of the steps. Parts of a training see different images."""
        images, normalise = self.bench.source(network)
        loader = data.loader(images, normalise, round(STEPS[network] * share), 100 * seed + part)
        fec_fast.finetune(model, loader, epochs=1, lr=LR, warmup_epochs=0.05, seed=seed, progress=False, **options)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for decoded images")
    parser.add_argument("--test-images", default=4000, type=int, help="at most 4,000")
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if not arguments.page_only:
        if arguments.data is None:
            parser.error("--data is needed, except with --page-only")
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.set_num_threads(1)
        measurement = Measurement(Bench(arguments.data, arguments.work, arguments.test_images), arguments.output)
        for key in keys(arguments.seeds):
            if key[0] in arguments.networks:
                measurement.run(*key)
    write(read_result(arguments.output))
