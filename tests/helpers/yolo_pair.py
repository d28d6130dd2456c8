"""One of two processes that train a pruned YOLO together, by gloo on the CPU: ultralytics itself starts GPUs alone.

Run by torch.distributed.run, with the folder of the network, the data set's YAML file and a folder for the results.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

from fec_fast.integrations import ultralytics as integration
from fec_fast.integrations.ultralytics_training import pruned_trainer

RANK = int(os.environ["RANK"])
Wrapper = nn.parallel.DistributedDataParallel


class OnCpu(Wrapper):
    """The wrapper without the number of a GPU."""

    def __init__(self, model: nn.Module, device_ids: Any = None, **options: Any) -> None:
        super().__init__(model, **options)


class Pair(pruned_trainer(DetectionTrainer)):  # type: ignore[misc]
    """The trainer of pruned networks, in two processes on the CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world_size = 2

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", rank=RANK, world_size=2)

    def final_eval(self) -> None:
        """Left out: it asks for the number of the GPU."""


def main(network: str, data: str, folder: str) -> None:
    nn.parallel.DistributedDataParallel = OnCpu  # type: ignore[misc]

    def tell(trainer: Any) -> None:
        parameters = list(trainer.model.parameters())
        digest = hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in parameters)).hexdigest()
        content = {"parameters": sum(each.numel() for each in parameters), "digest": digest}
        content["wrapped"] = isinstance(trainer.model, OnCpu)
        content["average"] = sum(each.numel() for each in trainer.ema.ema.parameters())
        (Path(folder) / f"rank{RANK}.json").write_text(json.dumps(content))

    yolo = integration.load(network)
    yolo.add_callback("on_fit_epoch_end", tell)
    small = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    yolo.train(trainer=Pair, data=data, epochs=1, project=folder, name="run", exist_ok=True, **small)


if __name__ == "__main__":
    main(*sys.argv[1:])
