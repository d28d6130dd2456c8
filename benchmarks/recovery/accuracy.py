"""Recovery without training: accuracy right after the cut, by method, network and budget, and by number of images.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.recovery.accuracy --data FOLDER

The folder holds ``cifar10-jpeg.zip``, ``cifar-resnet56.pth`` and ``cifar-vgg16bn.pth``; the other weights are in
benchmarks/results/dense. Every row of ``methods.py`` is pruned, recovered without training and without labels, and
tested on images that nothing was chosen on. Each finished row is written to benchmarks/results/recovery.json at once:
an interrupted run continues. At the end docs/recovery.md is written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable

import torch

import fec_fast
from benchmarks.common.results import read_result
from benchmarks.recovery.methods import METHODS, Cut, Job, jobs
from benchmarks.recovery.networks import NAMES, Bench, right
from benchmarks.recovery.page import write
from benchmarks.recovery.rows import Rows, accuracy, parser_of, started
from fec_fast import Budget


class Measurement:
    """The networks and images that rows are measured with.

    Attributes:
        bench: The networks and images.
        rows: The result file.
    """

    def __init__(self, bench: Bench, rows: Rows) -> None:
        self.bench, self.rows = bench, rows
        self.network = ""
        self.pruned: dict[str, fec_fast.PruneResult] = {}  # of the present network, by what was asked for

    def prepare(self, network: str) -> None:
        """Reads a network and its test images, unless they are those of the last call."""
        if network != self.network:
            self.dense, self.test, self.network = self.bench.dense(network), self.bench.test(network), network
            self.pruned.clear()
            self.rows.add_dense(network, right(self.dense, self.test))

    def prune(self, job: Job, batches: list[torch.Tensor]) -> fec_fast.PruneResult:
        """Prunes the network of a job; what was pruned already is not pruned again."""
        method = METHODS[job.method]
        options = {**method.options, "calibration": batches} if method.chosen else method.options
        drawn = (job.seed, job.images) if method.chosen or method.options["criterion"] == "random" else ()
        key = json.dumps([method.options, job.currency, job.share, drawn])
        if key not in self.pruned:
            torch.manual_seed(job.seed)
            budget, example = Budget(**{job.currency: job.share}), self.test[0][0][:1]
            self.pruned[key] = fec_fast.prune(self.dense, example, budget=budget, verify=False, recover=None, **options)
        return self.pruned[key]

    def run(self, job: Job) -> None:
        """Measures the row of a job, unless the result file has it."""
        if self.rows.has(job.key()):
            return
        self.prepare(job.network)
        batches = self.bench.calibration(job.network, job.images or 1, job.seed)
        start = time.process_time()
        result = self.prune(job, batches)
        pruning = time.process_time() - start
        cut = Cut(self.dense, copy.deepcopy(result.model), result.plan, batches, job.seed)
        model = METHODS[job.method].recover(cut)
        seconds = time.process_time() - start - pruning
        correct = right(model, self.test)
        size = {"parameters": result.after.parameters, "macs": result.after.macs}
        self.rows.add(job.key(), {**size, "cpu_seconds": [round(pruning, 2), round(seconds, 2)], **accuracy(correct)})


def main(planned: Iterable[Job] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, devices=True)
    parser.add_argument("--test-images", default=4000, type=int, help="at most 4,000")
    parser.add_argument("--seeds", default=3, type=int, help="draws of the calibration images")
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    arguments = started(parser)
    measurement = Measurement(
        Bench(arguments.data, arguments.work, arguments.test_images, arguments.device),
        Rows(arguments.output, "accuracy"),
    )
    for job in planned or jobs(arguments.seeds):
        if job.network in arguments.networks:
            measurement.run(job)
    write(read_result(arguments.output))


if __name__ == "__main__":
    main()
