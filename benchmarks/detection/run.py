"""Detection: average precision of a narrow SSD on images of blood cells, dense and pruned, by seed.

    pip install '.[bench,train,detection]' && python -m benchmarks.detection --data bccd-voc.zip

For every seed a dense network is trained. Then the dense network is trained further, and copies pruned by each policy
are fine-tuned, all for the same epochs with the same settings, for each length asked for; then both once more by
imitating the features of the dense network. The page selects a policy on the split ``val`` and reports ``test``.
Finished stages are kept in runs/ssd and written to benchmarks/results/ssd.json at once; an interrupted training
continues after its last epoch. At the end docs/ssd.md is written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.detection.page import write
from benchmarks.detection.stages import IMITATED, LISTS, arms, latency, untuned
from benchmarks.study.run import DENSE, halved
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.training.tasks.detection import Detection, evaluate_detector
from fec_fast.utils.timing import compare_latency
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc

WEIGHTS = DENSE / "ssd.safetensors"  # of the first dense network, in float16, for benchmarks.defaults
IMAGE = 192
TRAINING = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warmup_epochs": 1.0,
    "clip_norm": 10.0,
    "mixed_precision": "bf16",
}


def example() -> list[torch.Tensor]:
    """The example input of tracing and timing: one image."""
    return [torch.rand(3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))]


class Study:
    """The result file, and the images that further stages need.

    Attributes:
        document: The content of the result file.
        held_out: The loaders of the splits ``val`` and ``test``.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        names = ("epochs", "lr", "extra_lr", "batch", "budget", "round_to", *LISTS)
        settings = {name: getattr(arguments, name) for name in names} | {"image": IMAGE, **TRAINING}
        self.document = read_result(arguments.output) or {"settings": settings, "seeds": {}}
        before = self.document["settings"]
        if any(before.get(name) != value for name, value in settings.items() if name not in LISTS):
            raise SystemExit(f"{arguments.output} was measured with {before}, not {settings}")
        self.document["settings"] = settings
        self.held_out = {part: self.loaders(part, 0)[1] for part in ("val", "test")}
        self.classes = self.held_out["test"].dataset.classes
        self.document["images"] = {part: len(loader.dataset) for part, loader in self.held_out.items()}
        self.document["images"]["train"] = len(self.loaders("val", 0)[0].dataset)

    def loaders(self, held_out: str, seed: int) -> tuple[Any, Any]:
        """The loaders of the training images and of another split."""
        options: dict[str, Any] = {"image_size": IMAGE, "augment": "microscope", "splits": ("train", held_out)}
        return load_voc(self.arguments.data, self.arguments.batch, seed, **options)

    def build(self) -> nn.Module:
        """A new network."""
        return zoo.build("zoo:ssd-small", num_classes=len(self.classes) + 1, image_size=IMAGE)

    def prune(self, model: nn.Module, policy: str) -> fec_fast.PruneResult:
        """Prunes a network to the budget, by a policy."""
        budget = Budget(params=self.arguments.budget)
        options = {"ratios": policy, "criterion": "fec", "round_to": self.arguments.round_to, "recover": None}
        return fec_fast.prune(model, example(), budget=budget, **options)

    def train(
        self, model: nn.Module, name: str, epochs: int, lr: float, seed: int, teacher: nn.Module | None = None
    ) -> float:
        """Trains in place, continuing an interrupted training; returns the wall time in seconds."""
        model.to(memory_format=torch.channels_last)  # faster on processors with bfloat16 instructions
        train, _ = self.loaders("val", seed)
        result = fec_fast.finetune(
            model,
            train,
            task=Detection(),
            teacher=teacher,
            feature_layers=IMITATED if teacher else (),
            checkpoint=self.work / f"{name}-training",
            resume=True,
            progress=False,
            **{**TRAINING, "epochs": epochs, "lr": lr, "seed": seed},
        )
        model.to(memory_format=torch.contiguous_format)
        return round(sum(row.seconds for row in result.history), 1)

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """The average precisions on both held-out splits, in float32."""
        return {part: asdict(evaluate_detector(model.eval(), loader)) for part, loader in self.held_out.items()}

    def file(self, seed: int, name: str) -> Path:
        """The file of weights of a stage."""
        return self.work / f"{seed}-{name.replace(', ', '-').replace(' ', '-')}.safetensors"

    def stage(self, seed: int, name: str, model: nn.Module, *training: Any) -> nn.Module:
        """Trains and measures a model, unless the result file has the stage; loads its weights in both cases.

        Args:
            seed: The seed.
            name: The name of the stage.
            model: The model; trained in place.
            training: The arguments of :meth:`train` after the name.
        """
        rows, file = self.document["seeds"].setdefault(str(seed), {}), self.file(seed, name)
        if name not in rows:
            seconds = self.train(model, file.stem, *training)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
            size = count(model, example())
            rows[name] = {
                **self.measured(model),
                "parameters": size.parameters,
                "macs": size.macs,
                "training_seconds": seconds,
                "run": run_number(self.document, "torchvision"),
            }
            self.write()
        model.load_state_dict(load_file(file))
        row = rows[name]["val"]
        print(seed, name, {key: round(value, 4) for key, value in row.items() if key != "by_class"}, flush=True)
        return model.eval()

    def run(self, seed: int) -> None:
        """Measures all stages of a seed."""
        options = self.arguments
        torch.manual_seed(seed)
        dense = self.stage(seed, "dense", self.build(), options.epochs, options.lr, seed)
        if not WEIGHTS.is_file():
            save_file({key: value.contiguous() for key, value in halved(dense.state_dict()).items()}, WEIGHTS)
        rows = self.document["seeds"][str(seed)]
        for policy in options.policies:
            if untuned(policy) not in rows:
                result = self.prune(dense, policy)
                rows[untuned(policy)] = self.measured(result.model)
                rows[latency(policy)] = asdict(compare_latency(dense, result.model, example(), min_run_time=5.0))
                self.write()
        for arm in arms(self.document["settings"]):
            model = copy.deepcopy(dense) if arm.policy is None else self.prune(dense, arm.policy).model
            teacher = copy.deepcopy(dense) if arm.imitating else None
            self.stage(seed, arm.name, model, arm.epochs, options.extra_lr, 1000 + seed, teacher)

    def write(self) -> None:
        """Writes the result file."""
        write_result(self.arguments.output, self.document)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; of this process, if none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder or zip file in the layout of VOC")
    parser.add_argument("--output", default=RESULTS / "ssd.json", type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "ssd", type=Path, help="a folder for the trained networks")
    parser.add_argument("--epochs", default=50, type=int, help="epochs of the dense network")
    parser.add_argument(
        "--extra-epochs", default=[20, 50], type=int, nargs="+", help="epochs of the further training, dense and pruned"
    )
    parser.add_argument("--imitate", default=["entropy"], nargs="*", help="policies that are also tuned by imitating")
    parser.add_argument("--policies", default=["uniform", "entropy", "global"], nargs="+")
    parser.add_argument("--lr", default=2e-3, type=float, help="learning rate of the dense network")
    parser.add_argument("--extra-lr", default=2e-3, type=float, help="learning rate of the further training")
    parser.add_argument("--batch", default=8, type=int, help="images per step")
    parser.add_argument("--budget", default=0.5572, type=float, help="the share of parameters to remove")
    parser.add_argument("--round-to", default=8, type=int, help="the multiple that widths are rounded to")
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    return parser.parse_args(arguments)


def main() -> None:
    """The command line."""
    arguments = parse()
    if arguments.page_only:
        return write(read_result(arguments.output))
    if arguments.data is None:
        raise SystemExit("--data is needed, except with --page-only")
    warnings.filterwarnings("ignore", message="nothing to resume|data 'voc:")
    study = Study(arguments)
    for seed in range(arguments.seeds):
        study.run(seed)
    write(study.document)


if __name__ == "__main__":
    main()
