"""Which criterion, and which spread over the layers? Accuracy of pruned CIFAR networks, by budget.

    pip install '.[bench,train,vision]' && python benchmarks/study.py --data FOLDER

The folder holds ``cifar10-jpeg.zip`` (folders ``train/CLASS`` and ``test/CLASS``), ``cifar-resnet56.pth`` and
``cifar-vgg16bn.pth``. The dense networks are fine-tuned on the images first; then every combination is pruned, measured
at once, after batch norm was re-estimated, and (a handful) after a short fine-tuning. The test images are none of those
that policies and formulas were chosen on. Everything that is finished is kept (``runs/study``, and the rows in
``benchmarks/results/study.json``, written anew after each): run it again, and it goes on. ``study_page.py`` writes
``docs/study.md``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study_data as images
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget, Formula, zoo
from fec_fast.files import write_text
from fec_fast.report import machine

ROOT = Path(__file__).parent
BUDGETS = (0.7, 0.9, 0.5, 0.94)
POLICIES = ("uniform", "entropy", "global")
NETWORKS = ("vgg16", "resnet56")
CRITERIA: dict[str, dict[str, Any]] = {
    "fec": {},
    "l1, both sides": {"criterion": "l1"},
    "random": {"criterion": "random"},
    "fpgm, both sides": {"criterion": "fpgm"},
    "l1": {"criterion": "l1", "sides": "producer"},
    "l2, both sides": {"criterion": "l2"},
    "fec, channels, rms": {"formula": Formula(compress="rms", axis="channels")},
    "l2": {"criterion": "l2", "sides": "producer"},
    "fpgm": {"criterion": "fpgm", "sides": "producer"},
    "bn_scale": {"criterion": "bn_scale"},
    "fec, literal": {"formula": Formula.literal()},
    "fec, one side": {"sides": "producer"},
}
# Fine-tuned: the defaults, and the classical criteria as they were published and both-sided.
TUNED = ("fec", "l1, both sides", "fpgm, both sides", "l1", "fpgm", "random")


def formulas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every formula of the family, by what it is called."""
    words = itertools.product(
        ("none", "rms", "absmean", "mean"),
        ("similarity", "softmax", "distance"),
        ("filters", "channels"),
        (1.0, 0.5),
        ("both", "producer"),
    )
    for compress, entropy, axis, scale, sides in words:
        if entropy != "distance" or scale == 1.0:  # that one has no tau
            formula = Formula(compress=compress, entropy=entropy, axis=axis, tau_scale=scale)
            yield f"{formula}, {sides}", {"formula": formula, "sides": sides}


@dataclass(frozen=True)
class Job:
    """One pruning.

    Attributes:
        network: Its name.
        criterion: A name for the options.
        options: For ``prune``.
        policy: How the budget is spread.
        budget: Share of parameters removed.
        seed: Of the images for the re-estimation, of random scores and of the fine-tuning.
        tuned: Whether to fine-tune.
    """

    network: str
    criterion: str
    options: dict[str, Any]
    policy: str
    budget: float
    seed: int
    tuned: bool

    def key(self) -> list[Any]:
        """What the row is found by."""
        return [self.network, self.criterion, self.policy, self.budget, self.seed, self.tuned]


def jobs(seeds: int) -> Iterator[Job]:
    """All of them, those that tell most first: one seed of everything, one shot; then fine-tuned; then more seeds."""
    for seed in range(seeds):
        for criterion, budget in itertools.product(CRITERIA, BUDGETS):
            for policy, network in itertools.product(POLICIES, NETWORKS):
                yield Job(network, criterion, CRITERIA[criterion], policy, budget, seed, False)
        if seed == 0:
            for name, options in formulas():
                yield Job("resnet56", name, options, "uniform", 0.5, seed, False)
        for network, budget in itertools.product(NETWORKS, BUDGETS):
            yield Job(network, "fec", {}, "sensitivity", budget, seed, False)
        for criterion, budget in itertools.product(TUNED, BUDGETS):
            for policy, network in itertools.product(POLICIES, NETWORKS):
                yield Job(network, criterion, CRITERIA[criterion], policy, budget, seed, True)


def build(network: str, folder: Path) -> nn.Module:
    """A network with the weights that it came with."""
    model = zoo.vgg16_cifar() if network == "vgg16" else zoo.resnet56_cifar()
    file = "cifar-vgg16bn.pth" if network == "vgg16" else "cifar-resnet56.pth"
    return zoo.load_weights(model, folder / file).float().eval()


def bits(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> list[bool]:
    """For each image whether it is classified rightly, in bfloat16 where that is faster."""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return [right for x, y in test for right in (model(x).argmax(1) == y).tolist()]


def packed(right: list[bool]) -> str:
    """Bits as hexadecimal digits, so that rows can be compared image by image."""
    return f"{int(''.join('01'[bit] for bit in right), 2):0{len(right) // 4}x}"


class Study:
    """The rows so far, and what is needed to make more."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.output = arguments, Path(arguments.output)
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        settings = {
            name: getattr(arguments, name)
            for name in ("test_images", "calibration_images", "dense_steps", "steps", "lr")
        }
        self.document: dict[str, Any] = {"settings": settings, "machine": machine(), "dense": {}, "rows": []}
        if self.output.is_file():
            self.document = json.loads(self.output.read_text())
            if self.document["settings"] != settings:
                raise SystemExit(f"{self.output} was made with {self.document['settings']}, not {settings}")
        self.done = {json.dumps(row["key"]) for row in self.document["rows"]}
        self.archive = images.Archive(arguments.data / "cifar10-jpeg.zip", self.work)
        self.networks = {name: self.dense(name) for name in NETWORKS}

    def write(self) -> None:
        """Brings what there is to the disk."""
        head = {name: value for name, value in self.document.items() if name != "rows"}
        rows = ",\n".join(json.dumps(row) for row in self.document["rows"])
        write_text(self.output, json.dumps(head)[:-1] + f', "rows": [\n{rows}\n]}}\n')

    def test(self, network: str) -> list[tuple[Tensor, Tensor]]:
        """The test images, the same for all rows: none of those that anything was chosen on."""
        return self.archive.test(network, self.arguments.test_images)

    def tune(self, network: str, model: nn.Module, steps: int, seed: int) -> None:
        """Trains for a number of steps."""
        loader = images.loader(*self.archive.train(network), steps, seed)
        model.to(memory_format=torch.channels_last)  # faster in bfloat16, which processors of late are built for
        options: dict[str, Any] = {"lr": self.arguments.lr, "seed": seed, "mixed_precision": "bf16", "progress": False}
        fec_fast.finetune(model, loader, epochs=1, **options)
        model.cpu().to(memory_format=torch.contiguous_format)

    def dense(self, network: str) -> nn.Module:
        """The network before pruning, fine-tuned on the images."""
        model, file = build(network, self.arguments.data), self.work / f"{network}.safetensors"
        if network not in self.document["dense"]:
            before = bits(model, self.test(network))
            start = time.perf_counter()
            if self.arguments.dense_steps:
                self.tune(network, model, self.arguments.dense_steps, seed=100)
            save_file(model.state_dict(), file)
            after = bits(model, self.test(network)) if self.arguments.dense_steps else before
            self.document["dense"][network] = {
                "as_it_came": 100 * sum(before) / len(before),
                "accuracy": 100 * sum(after) / len(after),
                "right": packed(after),
                "seconds": round(time.perf_counter() - start, 1),
            }
            self.write()
        model.load_state_dict(load_file(file))
        print(network, {k: v for k, v in self.document["dense"][network].items() if k != "right"}, flush=True)
        return model.eval()

    def run(self, job: Job) -> None:
        """Makes a row, unless it is there."""
        if json.dumps(job.key()) in self.done:
            return
        dense, test = self.networks[job.network], self.test(job.network)
        calibration = self.archive.calibration(job.network, self.arguments.calibration_images, job.seed)
        torch.manual_seed(job.seed)
        options: dict[str, Any] = dict(job.options)
        policy: Any = job.policy
        if policy == "sensitivity":
            labelled = self.archive.labelled(job.network, self.arguments.calibration_images, job.seed)
            cache = self.work / f"sensitivity-{job.network}-{job.seed}"
            policy = fec_fast.measure_sensitivity(dense, test[0][0][:1], labelled, at=(0.25, 0.5, 0.75), cache=cache)
        start = time.perf_counter()
        result = fec_fast.prune(
            dense, test[0][0][:1], budget=Budget(params=job.budget), ratios=policy, verify=False, **options
        )
        pruning = time.perf_counter() - start
        row: dict[str, Any] = {"key": job.key(), "parameters": result.after.parameters, "macs": result.after.macs}
        found = {}
        if not job.tuned:
            found["at_once"] = bits(result.model, test)
        fec_fast.recalibrate(result.model, calibration)
        if job.tuned:
            self.tune(job.network, result.model, self.arguments.steps, job.seed)
            found["tuned"] = bits(result.model, test)
        else:
            found["recalibrated"] = bits(result.model, test)
        for name, right in found.items():
            row[name] = round(100 * sum(right) / len(right), 2)
        row["right"] = packed(right)
        row["seconds"] = [round(pruning, 2), round(time.perf_counter() - start, 1)]
        self.document["rows"].append(row)
        self.write()
        print({name: value for name, value in row.items() if name != "right"}, flush=True)


def main() -> None:
    """Makes the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", default=ROOT / "results" / "study.json", type=Path)
    parser.add_argument("--work", default=ROOT.parent / "runs" / "study", type=Path)
    parser.add_argument("--test-images", default=4000, type=int, help="a multiple of 4, at most 8,000")
    parser.add_argument("--calibration-images", default=1000, type=int)
    parser.add_argument("--dense-steps", default=1170, type=int, help="of 128 images, before pruning; 0 for none")
    parser.add_argument("--steps", default=100, type=int, help="of 128 images, after pruning")
    parser.add_argument("--lr", default=0.02, type=float)
    parser.add_argument("--seeds", default=3, type=int)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    random.seed(0)
    study = Study(arguments)
    for job in jobs(arguments.seeds):
        study.run(job)


if __name__ == "__main__":
    main()
