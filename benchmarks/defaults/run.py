"""Defaults: accuracy right after the cut, by the defaults of ``prune`` and by other ways to choose channels.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.defaults --data FOLDER

The folder holds ``cifar10-jpeg.zip``, ``cifar-resnet56.pth`` and ``cifar-vgg16bn.pth``; the other weights are in
benchmarks/results/dense. Each finished row is written to benchmarks/results/defaults.json at once: an interrupted run
continues. At the end docs/defaults.md is written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.defaults.jobs import CHOICES, IMAGES, Job, jobs
from benchmarks.defaults.networks import NAMES, Subjects, values
from benchmarks.defaults.page import write
from fec_fast import Budget

RESULT = RESULTS / "defaults.json"


class Measurement:
    """Prunes, recovers and tests, one row after the other.

    Attributes:
        subjects: The networks and images.
        output: The result file.
        choice: Whether the images that settings may be chosen on are tested, in place of the others.
    """

    def __init__(self, subjects: Subjects, output: Path, *, choice: bool) -> None:
        self.subjects, self.output, self.choice = subjects, output, choice
        self.network = ""

    def prepare(self, network: str) -> None:
        """Reads a network and its test images, unless they are those of the last call."""
        if network == self.network:
            return
        self.dense, self.network = self.subjects.dense(network), network
        self.test = self.subjects.test(network, choice=self.choice)
        self.add([network, "dense"], values(self.dense, self.test), {})

    def run(self, job: Job) -> None:
        """Measures the row of a job, unless the result file has it."""
        if self.has(job.key()):
            return
        self.prepare(job.network)
        batches = self.subjects.calibration(job.network, IMAGES, job.seed)
        options = dict(CHOICES[job.choice])
        options["recover"] = {"data-free": "data-free", "least squares": batches}.get(job.recovery)
        is_bare = options["recover"] is None
        if is_bare and {"reconstruction", "ablation"} & {options.get("criterion"), options.get("ratios")}:
            options["calibration"] = batches if job.has_images else "data-free"
        start = time.process_time()
        budget = Budget(**{job.currency: job.share})
        result = fec_fast.prune(self.dense, batches[0][:1], budget=budget, verify=False, **options)
        if job.recovery == "re-estimated":
            fec_fast.recalibrate(result.model, batches)
        seconds = round(time.process_time() - start, 1)
        size = {"parameters": result.after.parameters, "macs": result.after.macs, "cpu_seconds": seconds}
        self.add(job.key(), values(result.model, self.test), size)

    def has(self, key: list[Any]) -> bool:
        """Whether a row was measured already."""
        return any(row["key"] == key for row in read_result(self.output).get("rows", []))

    def add(self, key: list[Any], found: list[float], others: dict[str, Any]) -> None:
        """Writes a finished row, unless it is there."""
        if self.has(key):
            return
        document = read_result(self.output) or {"images": "choice" if self.choice else "test", "rows": []}
        mean = round(100 * sum(found) / len(found), 2)
        row = {"key": key, "value": mean, **others, "values": bytes(round(255 * value) for value in found).hex()}
        document["rows"].append({**row, "run": run_number(document, "torchvision")})
        write_result(self.output, document)
        print(json.dumps(key), mean, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images and weights")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for decoded images")
    parser.add_argument("--test-images", default=2000, type=int, help="at most 4,000")
    parser.add_argument("--seeds", default=1, type=int, help="draws of the calibration images")
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--choice", action="store_true", help="test the images that settings may be chosen on")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if not arguments.page_only:
        if arguments.data is None:
            parser.error("--data is needed, except with --page-only")
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.set_num_threads(1)
        subjects = Subjects(arguments.data, arguments.work, arguments.test_images)
        measurement = Measurement(subjects, arguments.output, choice=arguments.choice)
        for job in jobs(arguments.seeds):
            if job.network in arguments.networks:
                measurement.run(job)
    if not arguments.choice:
        write(read_result(arguments.output))
