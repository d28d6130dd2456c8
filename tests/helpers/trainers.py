"""Trainings by Lightning's and transformers' Trainer in two processes: ``python -m helpers.trainers WHICH FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fec_fast
from helpers.training_loops import EXAMPLE, IMAGES, LABELS, network

OPTIONS: dict[str, Any] = {
    "budget": fec_fast.Budget(macs=0.5),
    "schedule": fec_fast.PruningSchedule.linear([2, 4]),
}


def lightning(folder: Path) -> Any:
    import lightning.pytorch as pl

    from fec_fast.integrations.lightning import PruningCallback

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, number: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    pruning = PruningCallback("net", EXAMPLE, **OPTIONS)
    trainer = pl.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False},
        **{"enable_progress_bar": False, "enable_checkpointing": False, "callbacks": [pruning]},
    )
    trainer.fit(Classifier(), DataLoader(TensorDataset(IMAGES.flatten(0, 1), LABELS.flatten()), 6))
    return pruning


def transformers(folder: Path) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

    from fec_fast.integrations.transformers import PruningCallback

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    pairs = zip(IMAGES.flatten(0, 1), LABELS.flatten().tolist(), strict=True)
    data = [{"pixel_values": image, "labels": label} for image, label in pairs]
    pruning = PruningCallback({"pixel_values": EXAMPLE}, **OPTIONS)
    settings = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=6, max_steps=7, use_cpu=True, report_to=[], save_strategy="no"
    )
    trainer = Trainer(ResNetForImageClassification(config), settings, train_dataset=data, callbacks=[pruning])
    try:
        trainer.train()
    except fec_fast.ArgumentError as error:
        assert "is not wrapped by DistributedDataParallel" in str(error)
    else:
        raise AssertionError("in several processes the callback needs its trainer")
    pruning.attach(trainer)
    trainer.train()
    return pruning


def main(which: str, folder: str) -> None:
    """Runs in each process."""
    pruning = {"lightning": lightning, "transformers": transformers}[which](Path(folder))
    assert torch.distributed.get_world_size() == 2
    rank = os.environ["RANK"]
    tensors = {name: tensor.clone() for name, tensor in pruning.model.state_dict().items()}  # some are shared
    save_file(tensors, Path(folder) / f"{which}-{rank}.safetensors")
    (Path(folder) / f"{which}-{rank}.json").write_text(pruning.plan.to_json())
    assert [made.steps for made in pruning.rounds] == [2, 4] and pruning.pruner.is_finished
    sys.stdout.flush()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
