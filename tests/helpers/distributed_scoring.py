"""Scores of sharded models in two processes: the program that a test starts, and the network.

``python -m helpers.distributed_scoring FOLDER`` in each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import fec_fast

FORMULAS = {
    "filters": fec_fast.Formula(),
    "both": fec_fast.Formula("rms", axis="both"),
    "one number": fec_fast.Formula("rms", axis="channels"),
    "all taps": fec_fast.Formula("none", axis="channels"),
    "softmax": fec_fast.Formula("mean", "softmax", "channels", tau_scale=2.0),
    "distance": fec_fast.Formula("absmean", "distance", "channels"),
    "given tau": fec_fast.Formula("rms", axis="channels", tau=0.1),
}
# By hand, sharded along the axis of the filters and scored in parts: "2" and "5".
GATHERED = {"fully_shard": ["2", "6"], "by hand": ["0", "3", "6"]}


def network() -> nn.Sequential:
    """Filters over two processes: seven are uneven, of one a process has none. One layer has equal weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 7, 3), nn.ReLU(), nn.ConvTranspose2d(7, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 9, 3)]
    layers += [nn.Conv2d(8, 6, 3, groups=2), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Conv2d(4, 5, 3)]
    nn.init.constant_(layers[-1].weight, 0.1)
    return nn.Sequential(*layers).eval()


def main(folder: Path) -> None:
    """Writes the scores that this process gets, which weights it gathers, how often it adds up, and the errors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    of_two_axes = init_device_mesh("cpu", (2, 1))
    rank = os.environ["RANK"]
    sharded = network()
    for number in (0, 2, 4):
        fully_shard(sharded[number], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    by_hand = network()
    for number, where, *places in (
        (0, of_two_axes, Shard(0), Replicate()),
        (2, mesh, Shard(1)),
        (3, mesh, Replicate()),
        (5, mesh, Shard(0)),
        (6, mesh, Shard(1)),
    ):
        by_hand[number].weight = nn.Parameter(distribute_tensor(by_hand[number].weight.detach(), where, places))
    for name, model in (("fully_shard", sharded), ("by hand", by_hand)):
        for kind, formula in FORMULAS.items():
            with (
                mock.patch.object(DTensor, "full_tensor", autospec=True, side_effect=DTensor.full_tensor) as whole,
                mock.patch.object(torch.distributed, "all_reduce", wraps=torch.distributed.all_reduce) as added,
            ):
                scores = fec_fast.score_model(model, formula=formula)
            gathered = [list(call.args[0].shape) for call in whole.call_args_list]
            seen = {"scores": scores.to_json(), "gathered": gathered, "all_reduces": added.call_count}
            (folder / f"{name} {kind} {rank}.json").write_text(json.dumps(seen))
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters()), "the model is only read"
    broken = network()
    with torch.no_grad():
        broken[0].weight[6, 1, 2, 0] = float("nan")  # in the last process's part
    fully_shard(broken, mesh=mesh)
    flat = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    errors = {}
    for name, call in {
        "flat": lambda: fec_fast.score_model(flat),
        "not a number": lambda: fec_fast.score_model(broken, formula=FORMULAS["one number"]),
        "not a number, tau given": lambda: fec_fast.score_model(broken, formula=FORMULAS["given tau"]),
        "prune": lambda: fec_fast.prune(sharded, torch.randn(1, 3, 8, 8), ratio=0.5, recover=None),
    }.items():
        try:
            call()
        except fec_fast.WeightError as error:
            errors[name] = [str(error), error.layer]
    (folder / f"errors {rank}.json").write_text(json.dumps(errors))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
