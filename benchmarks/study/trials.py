"""What else was tried for a criterion: scores within the idea that are not built, on images that may be chosen on.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.study.trials --data FOLDER --test-images 2000

Rows are made and kept as ``study.py`` makes and keeps them, with its folder, dense networks and options, in
``benchmarks/results/trials.json``. ``trials_page.py`` writes ``docs/trials.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.study import data as images
from benchmarks.study.jobs import CRITERIA, POLICY, SHARES, Job
from benchmarks.study.run import Study, main

BUILT = ("fec_l1", "fec", "fec, both axes", "l1, both sides", "l2, both sides", "fpgm, both sides")
NETWORKS = ("resnet56", "resnet20", "vgg16")
HARDEST = 0.9  # where the fine-tuned criteria are furthest apart


def entropy(weight: Tensor, *, power: float = 2.0, falling: float = 1.0, zero: bool = False) -> Tensor:
    """Entropies of filters by the distances between them, float64 [N], nats.

    Args:
        weight: [N, C, *kernel].
        power: Of the distance's norm: 2 is Euclid's, as in ``Formula()``, 1 the city-block distance.
        falling: A similarity is ``exp(-(distance / tau) ** falling)``, 1 in ``Formula()``.
        zero: Whether half of the population that a filter is compared with is the filter of zeros.
    """
    filters = weight.double().flatten(1)
    distances = torch.cdist(filters, filters, p=power, compute_mode="donot_use_mm_for_euclid_dist")
    tau = distances.mean()
    if tau == 0:
        return torch.zeros(len(filters), dtype=torch.float64)
    similarity = torch.exp(-((distances / tau) ** falling)).mean(1)
    if zero:
        similarity = (similarity + torch.exp(-((filters.norm(p=power, dim=1) / tau) ** falling))) / 2
    return -similarity.log()


TRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "city-block distance": lambda weight: entropy(weight, power=1),
    "a filter of zeros among the others": lambda weight: entropy(weight, zero=True),
    "both of these": lambda weight: entropy(weight, power=1, zero=True),
    "exp(-(d / tau)^2)": lambda weight: entropy(weight, falling=2),
    "exp(H) - 1": lambda weight: entropy(weight).expm1(),
    "H times L2": lambda weight: entropy(weight) * weight.double().flatten(1).norm(dim=1),
}


class Trials(Study):
    """Rows on the images that may be chosen on."""

    def test(self, job: Job) -> images.Pairs:
        """These images."""
        found, make = self.data(job.network)
        return images.tested(found.choice, make, self.arguments.test_images)


def trials(seeds: int) -> Iterator[Job]:
    """All of them, those that tell most first."""
    ways = {name: CRITERIA[name] for name in BUILT} | {name: {"criterion": score} for name, score in TRIED.items()}
    for network, (name, options), seed in itertools.product(NETWORKS[:2], ways.items(), range(seeds)):
        yield Job(network, name, options, POLICY, ("params", HARDEST), seed, True)
    for network, share, (name, options) in itertools.product(NETWORKS, SHARES, ways.items()):
        yield Job(network, name, options, POLICY, ("params", share), 0, False)


if __name__ == "__main__":
    main(Trials, trials, "trials.json", __doc__)
