"""Study: accuracy of pruned networks by criterion, by policy, and by budget.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.study --data FOLDER

The folder holds ``cifar10-jpeg.zip`` (folders ``train/CLASS`` and ``test/CLASS``), ``cifar-resnet56.pth`` and
``cifar-vgg16bn.pth``. The dense networks are trained on the images first, unless their weights are in
benchmarks/results/dense. Then every job of ``jobs.py`` is pruned, batch norm is re-estimated, some are fine-tuned, and
the accuracy is counted on test images that neither policies nor formulas were chosen on. Each finished row is written
to benchmarks/results/study.json at once: an interrupted run continues. Training and testing use a GPU if there is one;
each row records the device. At the end docs/study.md is written; with ``--page-only``, nothing else.
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
from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.study import data as images
from benchmarks.study.jobs import Job
from fec_fast import Budget
from fec_fast.pruning.allocation.policies import EntropyPolicy
from fec_fast.vision.weights import load_weights

# The trained networks are kept in the repository: a second training gives other bits on another machine, and rows of
# two different networks must not be compared.
DENSE = RESULTS / "dense"


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with its floating-point tensors in float16."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def bits(model: nn.Module, test: images.Pairs) -> list[bool]:
    """For each image whether it is classified correctly, in bfloat16, on the device of the model."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        return [right for x, y in test for right in (model(x.to(device)).argmax(1).cpu() == y).tolist()]


def packed(right: list[bool]) -> str:
    """Bits as hexadecimal digits: rows can be compared image by image."""
    return f"{int(''.join('01'[bit] for bit in right), 2):0{(len(right) + 3) // 4}x}"


class Study:
    """The result file, and the images and networks that further rows need.

    Attributes:
        document: The content of the result file.
        done: The keys of its rows, as JSON.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.output = arguments, Path(arguments.output)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # the device that accelerate selects for training
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(arguments, name) for name in ("test_images", "calibration_images", "steps", "lr")}
        self.document = read_result(self.output) or {"settings": settings, "dense": {}, "rows": []}
        if self.document["settings"] != settings:
            raise SystemExit(f"{self.output} was measured with {self.document['settings']}, not {settings}")
        self.done = {json.dumps(row["key"]) for row in self.document["rows"]}
        self.cifar = images.cifar(arguments.data / "cifar10-jpeg.zip", self.work)
        self.digits = images.handwritten()
        self.networks: dict[str, nn.Module] = {}

    def data(self, network: str) -> tuple[images.Images, images.Normalise]:
        """The images of a network, and the function that normalises them."""
        of_digits = images.NETWORKS[network].norm is None
        return (self.digits if of_digits else self.cifar), images.normaliser(network)

    def test(self, job: Job) -> images.Pairs:
        """The test images of a job: equal for all rows of a network, except those that constants are chosen by."""
        source, normalise = self.data(job.network)
        part = source.choice if "tau" in job.policy else source.test
        return images.tested(part, normalise, self.arguments.test_images)

    def tune(self, network: str, model: nn.Module, steps: int, lr: float, seed: int) -> None:
        """Trains a model for a number of steps."""
        loader = images.loader(*self.data(network), steps, seed)
        model.to(memory_format=torch.channels_last)  # faster on processors with bfloat16 instructions
        options: dict[str, Any] = {"lr": lr, "seed": seed, "mixed_precision": "bf16", "progress": False}
        fec_fast.finetune(model, loader, epochs=1, **options)
        model.to(memory_format=torch.contiguous_format)

    def dense(self, name: str) -> nn.Module:
        """The network before pruning, trained on the images; records its accuracy on the first call."""
        if name in self.networks:
            return self.networks[name]
        network, file = images.NETWORKS[name], DENSE / f"{name}.safetensors"
        torch.manual_seed(100)
        model = network.build().eval()
        if network.weights is not None:
            load_weights(model, self.arguments.data / network.weights)
        source, normalise = self.data(name)
        test = images.tested(source.test, normalise, self.arguments.test_images)
        new, start = name not in self.document["dense"], time.perf_counter()
        as_it_came = bits(model, test) if new and network.weights else None
        if network.steps:
            if not file.is_file():
                if not new:
                    raise SystemExit(f"{file} is missing: the rows in {self.output} were measured with this network")
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
        """The argument ``ratios`` of ``fec_fast.prune`` for a job."""
        if job.policy == "sensitivity":
            labelled = images.calibration(*self.data(job.network), self.arguments.calibration_images // 2, job.seed)
            cache = self.work / f"sensitivity-{job.network}-{job.seed}"
            model, inputs = copy.deepcopy(dense).to(self.device), example.to(self.device)
            return fec_fast.measure_sensitivity(model, inputs, labelled, at=(0.25, 0.5, 0.75), cache=cache)
        if "tau" in job.policy:  # such as "entropy, tau 0.25, power 0.5"
            tau_scale, price_power = (float(part.split()[1]) for part in job.policy.split(", ")[1:])
            return EntropyPolicy(tau_scale, price_power)
        return job.policy

    def run(self, job: Job) -> None:
        """Measures the row of a job, unless the result file has it."""
        if json.dumps(job.key()) in self.done:
            return
        dense, test = self.dense(job.network), self.test(job)
        calibration = images.calibration(*self.data(job.network), self.arguments.calibration_images, job.seed)
        torch.manual_seed(job.seed)
        example = test[0][0][:1]
        policy = self.policy(job, dense, example)
        start = time.perf_counter()
        budget = Budget(**{job.budget[0]: job.budget[1]})
        options: dict[str, Any] = {"budget": budget, "ratios": policy, "verify": False, "recover": None, **job.options}
        result = fec_fast.prune(dense, example, **options)
        pruning = time.perf_counter() - start
        row: dict[str, Any] = {"key": job.key(), "parameters": result.after.parameters, "macs": result.after.macs}
        correct = {}
        if not job.tuned and job.criterion == "fec" and "tau" not in job.policy:
            correct["at_once"] = bits(result.model, test)
        result.model.to(self.device)
        fec_fast.recalibrate(result.model, [x for x, _ in calibration])
        if job.tuned:
            self.tune(job.network, result.model, self.arguments.steps, self.arguments.lr, job.seed)
        correct["tuned" if job.tuned else "recalibrated"] = bits(result.model, test)
        for name, right in correct.items():
            row[name] = round(100 * sum(right) / len(right), 2)
        row["right"] = packed(right)
        row["seconds"] = [round(pruning, 2), round(time.perf_counter() - start, 1)]
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        row["device"] = f"{name}, torch {torch.__version__}"
        row["run"] = run_number(self.document)
        self.document["rows"].append(row)
        self.done.add(json.dumps(job.key()))
        write_result(self.output, self.document)
        print({name: value for name, value in row.items() if name != "right"}, flush=True)


def main(
    kind: type[Study],
    planned: Callable[[int], Iterable[Job]],
    result: str,
    description: str | None,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """The command line of the study and of the trials.

    Args:
        kind: The class that measures the rows.
        planned: From a number of seeds to the jobs.
        result: The name of the result file.
        description: For ``--help``.
        write: Writes the page from the content of the result file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images and weights")
    parser.add_argument("--output", default=RESULTS / result, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for decoded images")
    parser.add_argument("--test-images", default=4000, type=int, help="at most 8,000")
    parser.add_argument("--calibration-images", default=1000, type=int, help="for the re-estimation of batch norm")
    parser.add_argument("--steps", default=60, type=int, help="steps of fine-tuning after pruning")
    parser.add_argument("--lr", default=0.02, type=float, help="learning rate of the fine-tuning")
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--networks", nargs="+", choices=images.NETWORKS, default=list(images.NETWORKS))
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if arguments.page_only:
        return write(read_result(arguments.output))
    if arguments.data is None:
        parser.error("--data is needed, except with --page-only")
    warnings.filterwarnings("ignore", category=UserWarning)
    study = kind(arguments)
    for job in planned(arguments.seeds):
        if job.network in arguments.networks:
            study.run(job)
    write(study.document)
