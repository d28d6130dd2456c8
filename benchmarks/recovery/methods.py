"""Methods of recovery that are compared: how each prunes a network, and what it does afterwards without training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import fec_fast
from benchmarks.recovery.baselines import folded, grail, merged_neurons

BY_DEFAULT: dict[str, Any] = {"criterion": "fec_l1", "ratios": "entropy"}
L1: dict[str, Any] = {"criterion": "l1", "sides": "producer", "ratios": "entropy"}
CHOSEN: dict[str, Any] = {"criterion": "reconstruction", "ratios": "entropy"}
SPREAD: dict[str, Any] = {"criterion": "reconstruction", "ratios": "reconstruction"}
CHOSEN_ON_NOISE: dict[str, Any] = {**CHOSEN, "calibration": "data-free"}
SPREAD_ON_NOISE: dict[str, Any] = {**SPREAD, "calibration": "data-free"}
ABLATED_ON_NOISE: dict[str, Any] = {"criterion": "ablation", "ratios": "ablation", "calibration": "data-free"}
RANDOM: dict[str, Any] = {"criterion": "random", "ratios": "entropy"}


@dataclass(frozen=True, eq=False)
class Cut:
    """A pruned network, and what its recovery may use.

    Attributes:
        dense: The network before pruning.
        model: The pruned copy.
        plan: What was removed.
        batches: Calibration images, in batches.
        seed: The seed that they were drawn by.
    """

    dense: nn.Module
    model: nn.Module
    plan: fec_fast.Plan
    batches: list[Tensor]
    seed: int

    @property
    def example(self) -> Tensor:
        """An example input."""
        return self.batches[0][:1]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        recover: Returns the recovered network.
        images: Whether it uses images: then it is measured with several draws of them.
        options: Its arguments of ``fec_fast.prune``.
        chosen: Whether the channels are chosen on the images too.
        applies: Whether it is defined for a network, by its name.
    """

    recover: Callable[[Cut], nn.Module]
    images: bool = True
    options: dict[str, Any] = field(default_factory=lambda: BY_DEFAULT)
    chosen: bool = False
    applies: Callable[[str], bool] = lambda network: True


def re_estimated(model: nn.Module, cut: Cut) -> nn.Module:
    """The model, with its batch norms re-estimated in place."""
    fec_fast.recalibrate(model, cut.batches)
    return model


def by_grail(cut: Cut) -> nn.Module:
    """The model of a cut, compensated by GRAIL in place."""
    grail(cut.dense, cut.model, cut.plan, cut.batches)
    return cut.model


def by_least_squares(cut: Cut) -> nn.Module:
    """The model of a cut, compensated with its calibration images in place."""
    images = sum(map(len, cut.batches))
    fec_fast.compensate(cut.dense, cut.model, cut.plan, cut.batches, images=images, progress=False)
    return cut.model


def without_images(cut: Cut) -> nn.Module:
    """The model of a cut, compensated on noise in place."""
    example = cut.example.new_zeros(cut.example.shape)
    fec_fast.compensate(cut.dense, cut.model, cut.plan, example_inputs=example, progress=False)
    return cut.model


def without_depthwise(network: str) -> bool:
    """Whether no channel of a network is made by a depthwise convolution."""
    return network != "mobilenetv2"


AS_PRUNED, RE_ESTIMATED = "as pruned, chosen by ablation", "re-estimated, chosen by ablation"
WITHOUT_IMAGES = "data-free, chosen and spread by reconstruction"
METHODS = {
    "as pruned": Method(lambda cut: cut.model, images=False),
    AS_PRUNED: Method(lambda cut: cut.model, images=False, options=ABLATED_ON_NOISE),
    "re-estimated": Method(lambda cut: re_estimated(cut.model, cut)),
    RE_ESTIMATED: Method(lambda cut: re_estimated(cut.model, cut), options=ABLATED_ON_NOISE),
    "L1, re-estimated": Method(lambda cut: re_estimated(cut.model, cut), options=L1),
    "Neuron Merging": Method(
        lambda cut: merged_neurons(cut.dense, cut.example, cut.plan), images=False, applies=without_depthwise
    ),
    "data-free": Method(without_images, images=False),
    "data-free, chosen by reconstruction": Method(without_images, images=False, options=CHOSEN_ON_NOISE),
    WITHOUT_IMAGES: Method(without_images, images=False, options=SPREAD_ON_NOISE),
    "Model Folding": Method(lambda cut: re_estimated(folded(cut.dense, cut.example, cut.plan, cut.seed), cut)),
    "GRAIL, re-estimated": Method(lambda cut: re_estimated(by_grail(cut), cut)),
    "random, least squares": Method(by_least_squares, options=RANDOM),
    "least squares": Method(by_least_squares),
    "least squares, chosen by reconstruction": Method(by_least_squares, options=CHOSEN, chosen=True),
    "least squares, chosen and spread by reconstruction": Method(by_least_squares, options=SPREAD, chosen=True),
}
OURS = tuple(name for name in METHODS if name.startswith("least squares"))
DEFAULT = "least squares, chosen and spread by reconstruction"  # what prune(recover=images) does


@dataclass(frozen=True)
class Job:
    """One pruning and recovery.

    Attributes:
        network: Its name.
        method: The name of the method.
        currency: Of the budget: ``"params"`` or ``"macs"``.
        share: The share removed.
        seed: The seed of the calibration images.
        images: How many of them.
    """

    network: str
    method: str
    currency: str
    share: float
    seed: int
    images: int

    def key(self) -> list[Any]:
        """The key of its row in the result file."""
        return [self.network, self.method, self.currency, self.share, self.seed, self.images]


PARAMS = tuple(("params", share) for share in (0.5, 0.7, 0.9))
BUDGETS = {
    "resnet56": PARAMS,
    "vgg16": (*PARAMS, ("params", 0.94)),
    "resnet20": PARAMS,
    "resnet-digits": PARAMS,
    "vgg-digits": PARAMS,
    "mobilenetv2": (("macs", 0.3), ("macs", 0.5)),
}
IMAGES = 1000
COUNTS = (16, 64, 256, 1024, 2048)
COUNTED_NETWORKS = ("resnet56", "vgg16")
COUNTED_METHODS = ("re-estimated", *OURS[:2])
COUNTED_SHARE = 0.7


def jobs(seeds: int) -> Iterator[Job]:
    """The rows of the tables: all methods by seed and network, and the table of accuracy by number of images."""
    for seed, network in itertools.product(range(seeds), (name for name in BUDGETS if name != "mobilenetv2")):
        yield from _budgets(network, seed)
    for seed, network, count, method in itertools.product(range(seeds), COUNTED_NETWORKS, COUNTS, COUNTED_METHODS):
        yield Job(network, method, "params", COUNTED_SHARE, seed, count)
    for seed in range(seeds):
        yield from _budgets("mobilenetv2", seed)


def _budgets(network: str, seed: int) -> Iterator[Job]:
    ours_first = sorted(METHODS.items(), key=lambda item: item[0] not in OURS)
    for (currency, share), (name, method) in itertools.product(BUDGETS[network], ours_first):
        if method.applies(network) and (method.images or not seed):
            yield Job(network, name, currency, share, seed, IMAGES if method.images else 0)
