"""Trials: criteria of the same idea that are not built, measured on images that settings may be chosen on.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.study.trials --data FOLDER --test-images 2000

Rows are measured as in ``python -m benchmarks.study``, with its folder of images, dense networks and options. Writes
benchmarks/results/trials.json and docs/trials.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.study import data as images
from benchmarks.study.jobs import CRITERIA, POLICY, SHARES, Job
from benchmarks.study.run import Study, main
from benchmarks.study.trials_page import write

BUILT = ("fec_l1", "fec", "fec, both axes", "l1, both sides", "l2, both sides", "fpgm, both sides")
NETWORKS = ("resnet56", "resnet20", "vgg16")
FINE_TUNED_SHARE = 0.9  # where the fine-tuned criteria differ most


def entropy(weight: Tensor, *, power: float = 2.0, decay: float = 1.0, zero: bool = False) -> Tensor:
    """One entropy per filter, by the distances between filters.

    Args:
        weight: [N, C, *kernel].
        power: p of the p-norm of the differences: 2 (Euclidean) in ``Formula()``; 1 is the city-block distance.
        decay: The similarity is ``exp(-(distance / tau) ** decay)``; 1 in ``Formula()``.
        zero: Whether half of the population that a filter is compared with is a filter of zeros.

    Returns:
        Float64 [N], in nats.
    """
    filters = weight.double().flatten(1)
    distances = torch.cdist(filters, filters, p=power, compute_mode="donot_use_mm_for_euclid_dist")
    tau = distances.mean()
    if tau == 0:
        return torch.zeros(len(filters), dtype=torch.float64)
    similarity = torch.exp(-((distances / tau) ** decay)).mean(1)
    if zero:
        similarity = (similarity + torch.exp(-((filters.norm(p=power, dim=1) / tau) ** decay))) / 2
    return -similarity.log()


TRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "city-block distance": lambda weight: entropy(weight, power=1),
    "a filter of zeros among the others": lambda weight: entropy(weight, zero=True),
    "both of these": lambda weight: entropy(weight, power=1, zero=True),
    "exp(-(d / tau)^2)": lambda weight: entropy(weight, decay=2),
    "exp(H) - 1": lambda weight: entropy(weight).expm1(),
    "H times L2": lambda weight: entropy(weight) * weight.double().flatten(1).norm(dim=1),
}


class Trials(Study):
    """The study on the test images that settings may be chosen on."""

    def test(self, job: Job) -> images.Pairs:
        """The test images of a job."""
        source, normalise = self.data(job.network)
        return images.tested(source.choice, normalise, self.arguments.test_images)


def trials(seeds: int) -> Iterator[Job]:
    """The rows to measure, the most informative first."""
    criteria = {name: CRITERIA[name] for name in BUILT} | {name: {"criterion": score} for name, score in TRIED.items()}
    for network, (name, options), seed in itertools.product(NETWORKS[:2], criteria.items(), range(seeds)):
        yield Job(network, name, options, POLICY, ("params", FINE_TUNED_SHARE), seed, True)
    for network, share, (name, options) in itertools.product(NETWORKS, SHARES, criteria.items()):
        yield Job(network, name, options, POLICY, ("params", share), 0, False)


if __name__ == "__main__":
    main(Trials, trials, "trials.json", __doc__, write)
