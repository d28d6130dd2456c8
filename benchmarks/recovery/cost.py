"""Cost of ``fec_fast.compensate``: CPU seconds against two forward passes, memory, and where the time goes.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.recovery.cost --data FOLDER

One thread, a fresh process per network. ResNet-50 and VGG-16 for ImageNet (with its linear layer of 25,088 inputs) have
random weights and batch norms, and random images of 224 x 224 pixels: cost does not depend on the values. The others
have 1,000 calibration images.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.measuring import cpu_seconds, peak_extra_mib
from benchmarks.recovery.networks import Bench
from benchmarks.recovery.rows import Rows, parser_of, started
from fec_fast import Budget

NETWORKS = ("resnet50", "vgg16_bn", "vgg16", "resnet56", "mobilenetv2")
IMAGES = {"resnet50": 256, "vgg16_bn": 64}  # of the networks for ImageNet
OTHERS = 1000
BATCH = 32  # of the forward passes
ROUNDS = 3  # of the two passes and the compensation, in turns: the speed of a shared machine varies
# Where the time goes: what is on the stack, the first that fits; the rest are the two forward passes.
PARTS = {
    "Gram matrices": ("_product",),
    "solutions": ("_factor", "_solver", "cholesky_solve", "<lambda>"),
    "rows": ("input_rows", "output_rows", "spread_positions", "arrive", "_record"),
    "errors and activations": ("slack", "predict", "error", "fitted", "_solve", "__init__"),
}
WAITING = ("acquire", "wait", "join")
INTERVAL = 0.002  # seconds between two looks at the stacks


def for_imagenet(name: str) -> nn.Module:
    """A network of torchvision with random weights, and batch norms as if they were trained."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model: nn.Module = get_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


def shares(function: Callable[[], object]) -> dict[str, float]:
    """The share of a call's time by part, from a look at the stack of the running thread at short intervals."""
    counts: Counter[str] = Counter()
    done = threading.Event()

    def watch() -> None:
        own = threading.get_ident()
        while not done.wait(INTERVAL):
            stacks = []
            for thread, frame in sys._current_frames().items():
                names = []
                while frame is not None:
                    if "fec_fast" in frame.f_code.co_filename:
                        names.append(frame.f_code.co_name)
                    frame = frame.f_back  # type: ignore[assignment]
                if thread != own and names and names[0] not in ("_pause", "go_on", "_body"):
                    stacks.append(names)
            running = stacks[0] if len(stacks) == 1 else next((names for names in stacks if names), [])
            part = next((part for part, of_part in PARTS.items() if set(of_part) & set(running)), "forward passes")
            counts[part] += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return {part: round(counts[part] / counts.total(), 3) for part in ("forward passes", *PARTS)}


def forward(model: nn.Module, batches: list[Tensor]) -> None:
    """One forward pass over all batches."""
    with torch.inference_mode():
        for batch in batches:
            model(batch)


def measured(dense: nn.Module, images: Tensor) -> dict[str, Any]:
    """The cost of one compensation at half of the parameters.

    Args:
        dense: The network.
        images: The calibration images.
    """
    result = fec_fast.prune(dense, images[:1], budget=Budget(params=0.5), verify=False, recover=None)
    batches = list(images.split(BATCH))

    def compensate() -> None:
        model = copy.deepcopy(result.model)
        done = fec_fast.compensate(dense, model, result.plan, batches, images=len(images), progress=False)
        if done.images < len(images):  # the passes over all would make it look cheaper than it is
            raise RuntimeError(f"{done.images} of {len(images)} images were used: memory is too little")

    forward(dense, batches[:1])
    split: dict[str, float] = {}
    start = time.perf_counter()
    memory = peak_extra_mib(lambda: split.update(shares(compensate)))
    wall = time.perf_counter() - start
    passes = {
        "dense": lambda: forward(dense, batches),
        "pruned": lambda: forward(result.model, batches),
        "compensate": compensate,
    }
    rounds = [{name: cpu_seconds(function) for name, function in passes.items()} for _ in range(ROUNDS)]
    return {
        **{f"{name}_seconds": round(statistics.median(taken[name] for taken in rounds), 2) for name in passes},
        "ratios": [round(taken["compensate"] / (taken["dense"] + taken["pruned"]), 2) for taken in rounds],
        "memory_mib": round(memory),
        "shares": split,
        "wall_seconds": round(wall, 1),
    }


def network(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """A network and its calibration images."""
    if name in IMAGES:
        return for_imagenet(name), torch.rand(IMAGES[name], 3, 224, 224, generator=torch.Generator().manual_seed(0))
    bench = Bench(arguments.data, arguments.work, 0)
    return bench.dense(name), torch.cat(bench.calibration(name, OTHERS, 0))


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--alone", action="store_true", help="measure one network in this process, print the result")
    arguments = started(parser)
    if arguments.alone:
        print(json.dumps(measured(*network(arguments.networks[0], arguments))))
        return
    rows = Rows(arguments.output, "cost")
    for name in arguments.networks:
        key = [name, IMAGES.get(name, OTHERS)]
        if not rows.has(key):
            folders = ["--data", str(arguments.data), "--work", str(arguments.work)]
            command = [sys.executable, "-m", "benchmarks.recovery.cost", "--alone", "--networks", name, *folders]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows.add(key, json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
