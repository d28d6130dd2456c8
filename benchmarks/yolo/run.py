"""Networks of ultralytics: how many channels can be pruned, how long planning and surgery take, and the proof.

    pip install '.[ultralytics]' && python -m benchmarks.yolo [--only NAME ...] [--anew]

Each network is built from ultralytics' YAML files with random weights and drawn statistics of its batch norms, pruned
to half its MACs at 320 x 320 pixels (classifiers: 224 x 224) and proven, on one thread, by the criterion ``fec_l1``,
without recovery: the defaults of ``prune`` measure errors and recover, which takes longer than graph and surgery. The
aims: at least 80 % of the channels can go; plan and surgery take at most 2 CPU seconds for the sizes n and s, 5 for l,
without the proof. Ultralytics is licensed under AGPL-3.0. Results are added to benchmarks/results/yolo.json at once; a
network that has one is not measured again. The table of docs/yolo.md is printed at the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.measuring import timed
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.coverage.packages_run import shares
from benchmarks.yolo.page import table_of_networks
from fec_fast import Budget

RESULT = RESULTS / "yolo.json"
CRITERION = "fec_l1"
TASKS = ("", "-seg", "-pose", "-obb", "-cls")
NETWORKS = (
    *(f"yolov5{size}" for size in "nsmlx"),
    *(f"yolov8n{task}" for task in TASKS),
    *(f"yolov8{size}" for size in "smlx"),
    *("yolov9t", "yolov9s", "yolov9m", "yolov9c", "yolov9c-seg", "yolov9e"),
    *(f"yolov10{size}" for size in "nsmblx"),
    *(f"yolo11n{task}" for task in TASKS),
    *(f"yolo11{size}" for size in "smlx"),
    *(f"yolo12n{task}" for task in TASKS),
    *(f"yolo12{size}" for size in "smlx"),
    *(f"yolo26n{task}" for task in TASKS),
    *(f"yolo26{size}" for size in "smlx"),
    *("rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101"),
)


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and drawn statistics, and an example image."""
    from ultralytics import RTDETR, YOLO

    torch.manual_seed(0)
    yolo = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml")
    for module in yolo.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    size = 224 if yolo.task == "classify" else 320
    return yolo.model.eval(), torch.rand(1, 3, size, size)


def measured(name: str) -> dict[str, Any]:
    """The row of a network."""
    model, image = built(name)
    options: dict[str, Any] = {"criterion": CRITERION, "verify": False, "recover": None}
    prune = partial(fec_fast.prune, model, image, budget=Budget.remove(macs=0.5), **options)
    result, seconds = timed(prune)
    proof = partial(fec_fast.verify_equivalence, model, result.model, result.plan, image)
    difference, proof_seconds = timed(proof)
    found = shares(model, fec_fast.couplings(model, image))
    counted = "convolutions" if name.endswith("-cls") else "layers"  # the linear layer of a classifier is its output
    return {
        "network": name,
        "parameters": [result.before.parameters, result.after.parameters],
        "macs": [result.before.macs, result.after.macs],
        "prunable": found[counted],
        "kept for": found["kept for"],
        "seconds": round(seconds, 2),
        "proof_seconds": round(proof_seconds, 2),
        "difference": float(difference),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NETWORKS, help="measure these networks alone")
    parser.add_argument("--anew", action="store_true", help="measure networks again that have a result")
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    os.environ.setdefault("YOLO_OFFLINE", "true")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    measured("yolov8n")  # what is imported when first used is not timed
    for name in arguments.only or NETWORKS:
        result = read_result(RESULT) or {"rows": []}
        rows = {row["network"]: row for row in result["rows"]}
        if name in rows and not arguments.anew:
            continue
        rows[name] = measured(name) | {"run": run_number(result, "ultralytics")}
        result["rows"] = [rows[each] for each in NETWORKS if each in rows]
        write_result(RESULT, result)
        print(name, rows[name]["prunable"], rows[name]["seconds"], rows[name]["proof_seconds"], flush=True)
    print(table_of_networks(read_result(RESULT)), end="")


if __name__ == "__main__":
    main()
