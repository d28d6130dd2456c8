"""Does a detector lose by pruning? A narrow SSD on blood cells, dense and pruned, by seed.

    pip install '.[bench,train,detection]' && python -m benchmarks.detection --data bccd-voc.zip

For every seed: a dense network is trained; then a copy of it is trained on, and copies pruned by each policy are
fine-tuned, all for the same epochs with the same settings, for each of the lengths asked for; then both once more with
the features of the dense network to imitate. What is chosen (by ``ssd_page.py``) is chosen on the split ``val``; what
counts is ``test``.
Every stage that is finished is kept (``runs/ssd``), an interrupted one goes on after its last epoch, and
``benchmarks/results/ssd.json`` is written anew after each: run it again, and it goes on. ``ssd_page.py`` writes
``docs/ssd.md`` and its pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fec_fast
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.training.tasks.detection import Detection, evaluate_detector
from fec_fast.utils.files import write_text
from fec_fast.utils.machine import describe_machine
from fec_fast.utils.timing import compare_latency
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc

ROOT = Path(__file__).parent.parent
IMAGE = 192
LISTS = ("extra_epochs", "policies", "imitate")  # what to make, not how
IMITATED = ("backbone.features", "backbone.extra.0", "backbone.extra.1")
TRAINING = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warmup_epochs": 1.0,
    "clip_norm": 10.0,
    "mixed_precision": "bf16",
}


def example() -> list[torch.Tensor]:
    """What a detector is traced and timed on: one image."""
    return [torch.rand(3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))]


@dataclass(frozen=True)
class Arm:
    """A further training.

    Attributes:
        policy: What was pruned before; ``None`` for nothing.
        epochs: How long.
        imitating: Whether the features of the dense network, as it was before, are imitated.
    """

    policy: str | None
    epochs: int
    imitating: bool = False

    @property
    def name(self) -> str:
        """What its stage is called."""
        return f"{self.policy or 'dense'}, {self.epochs} more{', imitating' if self.imitating else ''}"

    @property
    def control(self) -> Arm:
        """What it is compared with: the same training of the dense network."""
        return replace(self, policy=None)


def arms(settings: Mapping[str, Any]) -> list[Arm]:
    """All of them, each after its control."""
    found = []
    for epochs in settings["extra_epochs"]:
        found += [Arm(policy, epochs) for policy in (None, *settings["policies"])]
        if settings["imitate"]:
            found += [Arm(policy, epochs, imitating=True) for policy in (None, *settings["imitate"])]
    return found


def at_once(policy: str) -> str:
    """The stage of a network just pruned."""
    return f"{policy}, at once"


def latency(policy: str) -> str:
    """The row of how long a network takes before and after."""
    return f"{policy}, latency"


class Study:
    """What is finished, and what is needed to go on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        names = ("epochs", "lr", "extra_lr", "batch", "budget", "round_to", *LISTS)
        settings = {name: getattr(arguments, name) for name in names} | {"image": IMAGE, **TRAINING}
        self.document: dict[str, Any] = {"settings": settings, "machine": describe_machine(), "seeds": {}}
        if arguments.output.is_file():
            self.document = json.loads(arguments.output.read_text())
            before = self.document["settings"]
            if any(before.get(name) != value for name, value in settings.items() if name not in LISTS):
                raise SystemExit(f"{arguments.output} was made with {before}, not {settings}")
            self.document["settings"] = settings
        self.held_out = {part: self.loaders(part, 0)[1] for part in ("val", "test")}
        self.classes = self.held_out["test"].dataset.classes
        self.document["images"] = {part: len(loader.dataset) for part, loader in self.held_out.items()}
        self.document["images"]["train"] = len(self.loaders("val", 0)[0].dataset)

    def loaders(self, held_out: str, seed: int) -> tuple[Any, Any]:
        """Training images, and those of another split."""
        options: dict[str, Any] = {"image_size": IMAGE, "augment": "microscope", "splits": ("train", held_out)}
        return load_voc(self.arguments.data, self.arguments.batch, seed, **options)

    def build(self) -> nn.Module:
        """The network before training."""
        return zoo.build("zoo:ssd-small", num_classes=len(self.classes) + 1, image_size=IMAGE)

    def prune(self, model: nn.Module, policy: str) -> fec_fast.PruneResult:
        """The budget, spread by a policy."""
        budget = Budget(params=self.arguments.budget)
        return fec_fast.prune(
            model, example(), budget=budget, ratios=policy, criterion="fec", round_to=self.arguments.round_to
        )

    def train(
        self, model: nn.Module, name: str, epochs: int, lr: float, seed: int, teacher: nn.Module | None = None
    ) -> float:
        """Trains in place, going on where an interrupted training stopped; returns the seconds that it took."""
        model.to(memory_format=torch.channels_last)  # faster in bfloat16, which processors of late are built for
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
        """Where the network of a stage is kept."""
        return self.work / f"{seed}-{name.replace(', ', '-').replace(' ', '-')}.safetensors"

    def stage(self, seed: int, name: str, model: nn.Module, *training: Any) -> nn.Module:
        """Trains (see :meth:`train`) and measures, unless that is done; fills the model either way."""
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
            }
            self.write()
        model.load_state_dict(load_file(file))
        row = rows[name]["val"]
        print(seed, name, {key: round(value, 4) for key, value in row.items() if key != "by_class"}, flush=True)
        return model.eval()

    def run(self, seed: int) -> None:
        """All stages of a seed."""
        made = self.arguments
        torch.manual_seed(seed)
        dense = self.stage(seed, "dense", self.build(), made.epochs, made.lr, seed)
        rows = self.document["seeds"][str(seed)]
        for policy in made.policies:
            if at_once(policy) not in rows:
                result = self.prune(dense, policy)
                rows[at_once(policy)] = self.measured(result.model)
                rows[latency(policy)] = asdict(compare_latency(dense, result.model, example(), min_run_time=5.0))
                self.write()
        for arm in arms(self.document["settings"]):
            model = copy.deepcopy(dense) if arm.policy is None else self.prune(dense, arm.policy).model
            teacher = copy.deepcopy(dense) if arm.imitating else None
            self.stage(seed, arm.name, model, arm.epochs, made.extra_lr, 1000 + seed, teacher)

    def write(self) -> None:
        """Brings what there is to the disk."""
        self.arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.arguments.output, json.dumps(self.document, indent=1) + "\n")


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a folder or zip in the layout of VOC")
    parser.add_argument("--output", default=ROOT / "results" / "ssd.json", type=Path)
    parser.add_argument("--work", default=ROOT.parent / "runs" / "ssd", type=Path)
    parser.add_argument("--epochs", default=50, type=int, help="of the dense network")
    parser.add_argument(
        "--extra-epochs", default=[20, 50], type=int, nargs="+", help="of the dense and the pruned ones"
    )
    parser.add_argument("--imitate", default=["entropy"], nargs="*", help="policies that are also tuned by imitating")
    parser.add_argument("--policies", default=["uniform", "entropy", "global"], nargs="+")
    parser.add_argument("--lr", default=2e-3, type=float)
    parser.add_argument("--extra-lr", default=2e-3, type=float)
    parser.add_argument("--batch", default=8, type=int)
    parser.add_argument("--budget", default=0.5572, type=float, help="the share of parameters to remove")
    parser.add_argument("--round-to", default=8, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    return parser.parse_args(words)


def main() -> None:
    """Makes what is missing."""
    arguments = parsed()
    warnings.filterwarnings("ignore", message="nothing to resume|data 'voc:")
    study = Study(arguments)
    for seed in range(arguments.seeds):
        study.run(seed)


if __name__ == "__main__":
    main()
