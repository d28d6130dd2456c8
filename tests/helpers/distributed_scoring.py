"""Scores of sharded models in two processes: the program that a test starts, and the network.

``python -m helpers.distributed_scoring FOLDER`` in each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

import fec_fast


def network() -> nn.Sequential:
    """Seven filters over two processes are uneven; three layers are sharded by fully_shard, each of them by itself."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 7, 3), nn.ReLU(), nn.ConvTranspose2d(7, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 9, 3)]
    return nn.Sequential(*layers).eval()


def main(folder: Path) -> None:
    """Writes the scores that this process gets, and the errors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    rank = os.environ["RANK"]
    sharded = network()
    for number in (0, 2, 4):
        fully_shard(sharded[number], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    by_hand = network()
    for number, place in ((0, Shard(1)), (2, Shard(0)), (3, Replicate())):
        by_hand[number].weight = nn.Parameter(distribute_tensor(by_hand[number].weight.detach(), mesh, [place]))
    for name, model in (("fully_shard", sharded), ("by hand", by_hand)):
        for formula in (fec_fast.Formula(), fec_fast.Formula("rms", axis="channels")):
            scores = fec_fast.score_model(model, formula=formula)
            (folder / f"{name} {formula.axis} {rank}.json").write_text(scores.to_json())
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters()), "the model is only read"
    flat = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    errors = {}
    for name, call in {
        "flat": lambda: fec_fast.score_model(flat),
        "prune": lambda: fec_fast.prune(sharded, torch.randn(1, 3, 8, 8), ratio=0.5),
    }.items():
        try:
            call()
        except fec_fast.WeightError as error:
            errors[name] = [str(error), error.layer]
    (folder / f"errors {rank}.json").write_text(json.dumps(errors))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
