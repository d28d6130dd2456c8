"""Start for training: accuracy after some steps, from a re-estimated and from a recovered network.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.recovery.training --data FOLDER

Every start is trained at several learning rates, in steps of 64 images. Its rate is chosen on the images that settings
may be chosen on; the accuracy of the page is that on the others. Rows that the result file has are not measured again.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.results import read_result
from benchmarks.recovery.methods import BY_DEFAULT, IMAGES, Cut, re_estimated
from benchmarks.recovery.networks import Bench, right
from benchmarks.recovery.page import write
from benchmarks.recovery.rows import Rows, accuracy, parser_of, started
from benchmarks.study import data
from fec_fast import Budget

NETWORKS = ("resnet56", "vgg16")
SHARES = (0.7, 0.5, 0.9)
RATES = {60: (0.005, 0.01, 0.02), 600: (0.005, 0.02)}  # by steps
BATCH = 64


def recovered(ridge: float) -> Callable[[Cut], nn.Module]:
    """The recovery by least squares with a ridge."""

    def recover(cut: Cut) -> nn.Module:
        images = sum(map(len, cut.batches))
        fec_fast.compensate(cut.dense, cut.model, cut.plan, cut.batches, ridge=ridge, images=images, progress=False)
        return cut.model

    return recover


STARTS: dict[str, Callable[[Cut], nn.Module]] = {
    "re-estimated": lambda cut: re_estimated(cut.model, cut),
    "least squares, ridge 0.01": recovered(0.01),
    "least squares, ridge 0.3": recovered(0.3),
}


def keys(seeds: int) -> Iterator[list[Any]]:
    """The keys of all rows, the most informative first: network, share, seed, steps, rate, start."""
    for seed, steps in itertools.product(range(seeds), RATES):
        for share, network, start, rate in itertools.product(SHARES, NETWORKS, STARTS, RATES[steps]):
            yield [network, share, seed, steps, rate, start]


class Trainings:
    """Trains and tests starts.

    Attributes:
        bench: The networks and images.
        rows: The result file.
    """

    def __init__(self, bench: Bench, rows: Rows) -> None:
        self.bench, self.rows = bench, rows
        self.start = functools.lru_cache(maxsize=1)(self._start)

    def _start(self, network: str, share: float, seed: int, start: str) -> tuple[nn.Module, float]:
        """A network before its training, and its accuracy in %."""
        dense, batches = self.bench.dense(network), self.bench.calibration(network, IMAGES, seed)
        options = {"budget": Budget(params=share), "verify": False, "recover": None, **BY_DEFAULT}
        result = fec_fast.prune(dense, batches[0][:1], **options)
        model = STARTS[start](Cut(dense, result.model, result.plan, batches, seed))
        return model, accuracy(right(model, self.bench.test(network)))["accuracy"]

    def run(self, key: list[Any]) -> None:
        """Trains and tests a start."""
        network, share, seed, steps, rate, start = key
        images, normalise = self.bench.source(network)
        model, before = copy.deepcopy(self.start(network, share, seed, start))
        model.to(memory_format=torch.channels_last)
        loader = data.loader(images, normalise, steps, seed)
        fec_fast.finetune(model, loader, epochs=1, lr=rate, seed=seed, progress=False)
        model.to(self.bench.device)
        chosen = accuracy(right(model, self.bench.choice(network)))["accuracy"]
        tested = accuracy(right(model, self.bench.test(network)))
        self.rows.add(key, {"before": before, "on_choice": chosen, **tested})


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, devices=True)
    parser.add_argument("--test-images", default=4000, type=int, help="at most 4,000")
    parser.add_argument("--seeds", default=3, type=int, help="draws of the calibration images, and orders of training")
    arguments = started(parser)
    bench = Bench(arguments.data, arguments.work, arguments.test_images, arguments.device)
    rows = Rows(arguments.output, "training")
    bench.cifar.batch = BATCH
    trainings = Trainings(bench, rows)
    for key in keys(arguments.seeds):
        if not rows.has(key):
            trainings.run(key)
    write(read_result(arguments.output))


if __name__ == "__main__":
    main()
