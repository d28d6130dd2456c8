"""Which criterion, and which spread over the layers? Accuracy of pruned networks, by budget.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.study --data FOLDER

The folder holds ``cifar10-jpeg.zip`` (folders ``train/CLASS`` and ``test/CLASS``), ``cifar-resnet56.pth`` and
``cifar-vgg16bn.pth``. The dense networks are trained on the images first, unless their weights are in
``benchmarks/results/dense``; then every combination of ``study_jobs.py`` is pruned, batch norm is re-estimated, a
handful is fine-tuned, and accuracy is counted. The test images are none of those that policies and formulas were chosen
on. Everything that is finished is kept (the rows in ``benchmarks/results/study.json``, written anew after each): run it
again, and it goes on. Training and testing use a GPU where there is one, and each row says on what it was made.
``study_page.py`` writes ``docs/study.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fec_fast
from benchmarks.study import data as images
from benchmarks.study.jobs import Job
from fec_fast import Budget
from fec_fast.pruning.allocation import policies
from fec_fast.utils.files import write_text
from fec_fast.utils.machine import describe_machine
from fec_fast.vision.weights import load_weights

ROOT = Path(__file__).parent.parent
# The trained networks are kept: trained again elsewhere they would not come to the same bits, and rows of two networks
# must not be compared.
DENSE = ROOT / "results" / "dense"


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in float16, counters as they are."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def bits(model: nn.Module, test: images.Pairs) -> list[bool]:
    """For each image whether it is classified rightly, in bfloat16, on the device that the model is on."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        return [right for x, y in test for right in (model(x.to(device)).argmax(1).cpu() == y).tolist()]


def packed(right: list[bool]) -> str:
    """Bits as hexadecimal digits, so that rows can be compared image by image."""
    return f"{int(''.join('01'[bit] for bit in right), 2):0{(len(right) + 3) // 4}x}"


class Study:
    """The rows so far, and what is needed to make more."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.output = arguments, Path(arguments.output)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # the one that accelerate chooses for training
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(arguments, name) for name in ("test_images", "calibration_images", "steps", "lr")}
        self.document: dict[str, Any] = {"settings": settings, "machine": describe_machine(), "dense": {}, "rows": []}
        if self.output.is_file():
            self.document = json.loads(self.output.read_text())
            if self.document["settings"] != settings:
                raise SystemExit(f"{self.output} was made with {self.document['settings']}, not {settings}")
        self.done = {json.dumps(row["key"]) for row in self.document["rows"]}
        self.cifar = images.cifar(arguments.data / "cifar10-jpeg.zip", self.work)
        self.digits = images.handwritten()
        self.networks: dict[str, nn.Module] = {}

    def write(self) -> None:
        """Brings what there is to the disk."""
        head = {name: value for name, value in self.document.items() if name != "rows"}
        rows = ",\n".join(json.dumps(row) for row in self.document["rows"])
        write_text(self.output, json.dumps(head)[:-1] + f', "rows": [\n{rows}\n]}}\n')

    def data(self, network: str) -> tuple[images.Images, images.Normal]:
        """The images of a network."""
        of_digits = images.NETWORKS[network].norm is None
        return (self.digits if of_digits else self.cifar), images.normal(network)

    def test(self, job: Job) -> images.Pairs:
        """The test images, the same for all rows of a network; what may be chosen on is asked others."""
        found, make = self.data(job.network)
        return images.tested(found.choice if "tau" in job.policy else found.test, make, self.arguments.test_images)

    def tune(self, network: str, model: nn.Module, steps: int, lr: float, seed: int) -> None:
        """Trains for a number of steps."""
        loader = images.loader(*self.data(network), steps, seed)
        model.to(memory_format=torch.channels_last)  # faster in bfloat16, on processors that have instructions for it
        options: dict[str, Any] = {"lr": lr, "seed": seed, "mixed_precision": "bf16", "progress": False}
        fec_fast.finetune(model, loader, epochs=1, **options)
        model.to(memory_format=torch.contiguous_format)

    def dense(self, name: str) -> nn.Module:
        """The network before pruning, trained on the images."""
        if name in self.networks:
            return self.networks[name]
        network, file = images.NETWORKS[name], DENSE / f"{name}.safetensors"
        torch.manual_seed(100)
        model = network.build().eval()
        if network.weights is not None:
            load_weights(model, self.arguments.data / network.weights)
        found, make = self.data(name)
        test = images.tested(found.test, make, self.arguments.test_images)
        new, start = name not in self.document["dense"], time.perf_counter()
        as_it_came = bits(model, test) if new and network.weights else None
        if network.steps:
            if not file.is_file():
                if not new:
                    raise SystemExit(f"{file} is missing, the network that the rows in {self.output} are of")
                self.tune(name, model, network.steps, network.lr, seed=100)
                model.cpu()
                DENSE.mkdir(exist_ok=True)
                save_file(halved(model.state_dict()), file)
            model.load_state_dict(load_file(file))
        if new:
            right = bits(model, test)
            self.document["dense"][name] = {
                "as_it_came": as_it_came and 100 * sum(as_it_came) / len(as_it_came),
                "accuracy": 100 * sum(right) / len(right),
                "images": len(right),
                "right": packed(right),
                "seconds": round(time.perf_counter() - start, 1),
            }
        print(name, {k: v for k, v in self.document["dense"][name].items() if k != "right"}, flush=True)
        self.networks[name] = model.eval()
        return self.networks[name]

    def policy(self, job: Job, dense: nn.Module, example: torch.Tensor) -> Any:
        """What ``prune`` takes for ``ratios``."""
        if job.policy == "sensitivity":
            labelled = images.calibration(*self.data(job.network), self.arguments.calibration_images // 2, job.seed)
            cache = self.work / f"sensitivity-{job.network}-{job.seed}"
            there = copy.deepcopy(dense).to(self.device), example.to(self.device)
            return fec_fast.measure_sensitivity(*there, labelled, at=(0.25, 0.5, 0.75), cache=cache)
        return job.policy.split(",")[0]

    def run(self, job: Job) -> None:
        """Makes a row, unless it is there."""
        if json.dumps(job.key()) in self.done:
            return
        dense, test = self.dense(job.network), self.test(job)
        calibration = images.calibration(*self.data(job.network), self.arguments.calibration_images, job.seed)
        torch.manual_seed(job.seed)
        example = test[0][0][:1]
        policy, usual = self.policy(job, dense, example), (policies.TAU_SCALE, policies.PRICE_POWER)
        start = time.perf_counter()
        try:
            if "tau" in job.policy:
                tau, power = (float(word.split()[1]) for word in job.policy.split(", ")[1:])
                policies.TAU_SCALE, policies.PRICE_POWER = tau, power
            budget = Budget(**{job.budget[0]: job.budget[1]})
            result = fec_fast.prune(dense, example, budget=budget, ratios=policy, verify=False, **job.options)
        finally:
            policies.TAU_SCALE, policies.PRICE_POWER = usual
        pruning = time.perf_counter() - start
        row: dict[str, Any] = {"key": job.key(), "parameters": result.after.parameters, "macs": result.after.macs}
        found = {}
        if not job.tuned and job.criterion == "fec" and "tau" not in job.policy:
            found["at_once"] = bits(result.model, test)
        result.model.to(self.device)
        fec_fast.recalibrate(result.model, [x for x, _ in calibration])
        if job.tuned:
            self.tune(job.network, result.model, self.arguments.steps, self.arguments.lr, job.seed)
        found["tuned" if job.tuned else "recalibrated"] = bits(result.model, test)
        for name, right in found.items():
            row[name] = round(100 * sum(right) / len(right), 2)
        row["right"] = packed(right)
        row["seconds"] = [round(pruning, 2), round(time.perf_counter() - start, 1)]
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        row["device"] = f"{name}, torch {torch.__version__}"
        self.document["rows"].append(row)
        self.done.add(json.dumps(job.key()))
        self.write()
        print({name: value for name, value in row.items() if name != "right"}, flush=True)


def main(kind: type[Study], planned: Callable[[int], Iterable[Job]], name: str, about: str | None) -> None:
    """Makes the rows that are missing, of all that are planned for a number of seeds."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", default=ROOT / "results" / name, type=Path)
    parser.add_argument("--work", default=ROOT.parent / "runs" / "study", type=Path)
    parser.add_argument("--test-images", default=4000, type=int, help="at most 8,000")
    parser.add_argument("--calibration-images", default=1000, type=int)
    parser.add_argument("--steps", default=60, type=int, help="of fine-tuning after pruning")
    parser.add_argument("--lr", default=0.02, type=float)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--networks", nargs="+", choices=images.NETWORKS, default=list(images.NETWORKS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    study = kind(arguments)
    for job in planned(arguments.seeds):
        if job.network in arguments.networks:
            study.run(job)
