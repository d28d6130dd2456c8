"""Trainings in two processes: the program that tests/integration/test_processes.py starts, and what both share.

``python -m helpers.distributed_training FOLDER HOW`` in each process. HOW: ``killed`` (one process is killed),
``sharded`` (FSDP2), or ``replicated`` (each process has all weights; then it resumes the states that the two others
have left in the same folder).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from fec_fast.training.tasks.detection import Detection
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc
from helpers import voc_folders
from helpers.training import InterruptedLoader


def labelled_images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, labels, labels] += 1.0  # too little for an accuracy of 1
    return TensorDataset(images, labels)


class KillsSecondProcess(TensorDataset):
    """Images of which the last one of the second epoch kills the second process."""

    fetched = 0

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        # 8 images are checked before training, and half of 96 are an epoch of one process.
        if os.environ.get("RANK") == "1" and self.fetched == 8 + 48 + 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def network(norm: bool) -> nn.Module:
    torch.manual_seed(1)
    first = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(4) if norm else nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def train(model: nn.Module, batch_size: int, **options: Any) -> Any:
    dataset = options.pop("dataset", labelled_images(96, 1))
    loader = DataLoader(dataset, batch_size, shuffle=True, generator=torch.Generator())
    # 45 images in batches of 8 do not divide between two processes: a sampler repeats some.
    held_out = options.pop("val_loader", DataLoader(labelled_images(45, 2), 8))
    fixed: dict[str, Any] = {"epochs": 3, "lr": 0.05, "clip_norm": 1.0, "ema_decay": 0.8, "progress": False}
    return fec_fast.finetune(model, loader, val_loader=held_out, **{**fixed, **options})


def fading(model: nn.Module) -> fec_fast.GrowingPenalty:
    """A penalty on half of a network's channels."""
    plan = fec_fast.prune(model, torch.zeros(1, 1, 6, 6), remove=0.5, criterion="l1", verify=False, recover=None).plan
    return fec_fast.GrowingPenalty(plan, until=0.7)


def box_loaders(folder: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Twelve training images and five held-out ones, each with one or two boxes."""

    def image(number: int) -> list[voc_folders.Box]:
        left = 5 + 7 * number % 40
        red: voc_folders.Box = ("red", left, 10, left + 30, 40)
        return [red, ("blue", 50, 90 - left, 75, 115 - left)] if number % 3 else [red]

    if not folder.exists():
        splits = {part: {f"{part}{n}": image(n) for n in range(count)} for part, count in (("train", 12), ("val", 5))}
        voc_folders.write(folder, splits, size=(128, 128))
    return load_voc(folder, batch_size=3, image_size=64, augment="none")


def trained_detector(folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    """Returns a detector after two epochs, and the result of its training."""
    torch.manual_seed(1)
    model = zoo.build("zoo:ssd-small", num_classes=3, image_size=64)
    train_loader, held_out = box_loaders(folder)
    fixed: dict[str, Any] = {"epochs": 2, "lr": 0.01, "clip_norm": 10.0, "progress": False}
    return model, fec_fast.finetune(model, train_loader, task=Detection(), val_loader=held_out, **fixed, **options)


def pretend_gpus() -> None:
    """Makes accelerate shard the weights (FSDP2) over processes on the CPU, which it does on GPUs only."""
    from accelerate import DistributedType, PartialState

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}
    # `accelerate launch` sets the second one.
    os.environ |= {"FSDP_MIN_NUM_PARAMS": "30", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def write_result(out: Path, name: str, model: nn.Module, result: Any) -> None:
    """Writes this process's weights and history, for the test to read."""
    save_file(model.state_dict(), out / f"{name}-{os.environ['RANK']}.safetensors")
    rows = [asdict(row) for row in result.history]
    (out / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(rows))


def train_killed(out: Path) -> None:
    """Trains until the second process is killed."""
    dataset = KillsSecondProcess(*labelled_images(96, 1).tensors)
    model = network(norm=False)
    write_result(out, "killed", model, train(model, 8, dataset=dataset, checkpoint=out / "killed-state"))


def train_replicated(out: Path) -> None:
    """Trains with all weights in each process, then resumes what was killed and what was sharded."""
    for norm in (False, True):
        model = network(norm)
        result = train(model, 8, log_dir=out / "logs", checkpoint=out / f"replicated-state-{norm}")
        write_result(out, f"replicated-{norm}", model, result)
    model = network(norm=False)
    write_result(out, "sparse", model, train(model, 8, sparsify=fading(model)))
    write_result(out, "replicated-boxes", *trained_detector(out / "voc"))
    model = network(norm=False)
    write_result(out, "resumed-killed", model, train(model, 8, checkpoint=out / "killed-state", resume=True))
    model = network(norm=True)
    options: dict[str, Any] = {"val_loader": DataLoader(labelled_images(45, 2), 45), "optimizer": "adamw"}
    result = train(model, 8, checkpoint=out / "sharded-stopped", resume=True, **options)
    write_result(out, "resumed-sharded", model, result)


def train_sharded(out: Path) -> None:
    """Trains with a part of each weight in each process."""
    pretend_gpus()
    bf16 = {"mixed_precision": "bf16"}
    for name, norm, options in (("sharded", False, {}), ("sharded", True, {}), ("bf16", True, bf16)):
        model = network(norm)
        if os.environ["RANK"] == "1":  # rank 0's weights are broadcast
            nn.init.normal_(model[0].weight)
        result = train(model, 8, checkpoint=out / "sharded-state", **options)  # replaces the state before it
        write_result(out, f"{name}-{norm}", model, result)
    with pytest.raises(fec_fast.BackendError, match="sparsify needs the whole weights"):
        train(network(norm=True), 8, sparsify=fading(network(norm=True)))
    with pytest.raises(fec_fast.BackendError, match="SSD cannot be sharded.*NO_WRAP: .*ModuleList"):
        trained_detector(out / "voc")
    with mock.patch.dict(os.environ, {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}):
        write_result(out, "sharded-boxes", *trained_detector(out / "voc", ema_decay=0.5))
    held_out = DataLoader(labelled_images(45, 2), 45)
    for after, resume in ((1, False), (99, True)):
        model = network(norm=True)
        options = {
            "val_loader": InterruptedLoader(held_out, after),
            "optimizer": "adamw",
            "checkpoint": out / "stopped",
        }
        try:
            result = train(model, 8, resume=resume, **options)
        except fec_fast.TrainingInterrupted:
            assert not resume
            save_file(model.state_dict(), out / f"interrupted-{os.environ['RANK']}.safetensors")
            if os.environ["RANK"] == "0":
                shutil.copytree(out / "stopped", out / "sharded-stopped")
        else:
            assert resume
            write_result(out, "resumed", model, result)
    model = network(norm=True)
    write_result(out, "undisturbed", model, train(model, 8, val_loader=held_out, optimizer="adamw"))


def main(folder: str, how: str) -> None:
    """Runs in each process."""
    {"killed": train_killed, "sharded": train_sharded, "replicated": train_replicated}[how](Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
