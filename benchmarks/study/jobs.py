"""Jobs of the study: which network is pruned how, in which order, and which results are fine-tuned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fec_fast import Formula

SHARES = (0.7, 0.94, 0.5, 0.9)
MACS = (0.5, 0.7)
POLICIES = ("uniform", "entropy", "global")
# The policy under which criteria are compared.
POLICY = "entropy"
CHOSEN_ON = ("resnet56", "vgg16")  # the networks that formulas and policies were chosen on
HELD_OUT = ("resnet-digits", "vgg-digits", "resnet20")
CRITERIA: dict[str, dict[str, Any]] = {
    "fec_l1": {"criterion": "fec_l1"},
    "fec": {"criterion": "fec"},
    "l1, both sides": {"criterion": "l1"},
    "l1": {"criterion": "l1", "sides": "producer"},
    "fpgm, both sides": {"criterion": "fpgm"},
    "fpgm": {"criterion": "fpgm", "sides": "producer"},
    "l2, both sides": {"criterion": "l2"},
    "l2": {"criterion": "l2", "sides": "producer"},
    "random": {"criterion": "random"},
    "bn_scale": {"criterion": "bn_scale"},
    "fec, both axes": {"criterion": "fec", "formula": Formula(compress="rms", axis="both")},
    "fec, channels, rms": {"criterion": "fec", "formula": Formula(compress="rms", axis="channels")},
    "fec, literal": {"criterion": "fec", "formula": Formula.literal()},
    "fec, one side": {"criterion": "fec", "sides": "producer"},
}
# Fine-tuned: the entropies, and the classical criteria on filters (as published) and on both sides.
TUNED = (
    *("fec_l1", "fec", "fec, both axes"),
    *("l1, both sides", "fpgm, both sides", "l2, both sides", "l1", "fpgm", "l2", "random"),
)
# The constants of the policy "entropy": the scale of tau, and the power of the price.
ABLATION = [
    *((tau, 0.25) for tau in (0.125, 0.25, 0.5, 1.0)),
    *((0.25, power) for power in (0.0, 0.5, 1.0)),
    *((tau, 0.5) for tau in (0.125, 0.5)),
]


@dataclass(frozen=True)
class Job:
    """One pruning.

    Attributes:
        network: Its name.
        criterion: The name of the criterion in the tables.
        options: Its arguments of ``fec_fast.prune``.
        policy: How the removal is distributed over the layers.
        budget: The currency (``"params"`` or ``"macs"``), and the share removed.
        seed: The seed of the images for the re-estimation, of random scores and of the fine-tuning.
        tuned: Whether the pruned network is fine-tuned.
    """

    network: str
    criterion: str
    options: dict[str, Any]
    policy: str
    budget: tuple[str, float]
    seed: int
    tuned: bool

    def key(self) -> list[Any]:
        """The key of its row in the result file."""
        return [self.network, self.criterion, self.policy, *self.budget, self.seed, self.tuned]


def formulas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every formula of the family: its name and its arguments of ``fec_fast.prune``."""
    combinations = itertools.product(
        ("none", "rms", "absmean", "mean"),
        ("similarity", "softmax", "distance"),
        ("filters", "channels"),
        (1.0, 0.5),
        ("both", "producer"),
    )
    for compress, entropy, axis, scale, sides in combinations:
        if entropy != "distance" or scale == 1.0:  # the distance entropy has no tau
            formula = Formula(compress=compress, entropy=entropy, axis=axis, tau_scale=scale)
            yield f"{formula}, {sides}", {"criterion": "fec", "formula": formula, "sides": sides}


def jobs(seeds: int) -> Iterator[Job]:
    """All jobs, each once, the most informative first."""
    seen = set()
    for job in _jobs(seeds):
        key = tuple(job.key())
        if key not in seen:
            seen.add(key)
            yield job


def _jobs(seeds: int) -> Iterator[Job]:
    networks = *CHOSEN_ON, *HELD_OUT
    for seed in range(seeds):
        yield from _criteria(networks, list(TUNED), seed, tuned=True)
    yield from _criteria(CHOSEN_ON, list(CRITERIA), 0, tuned=False)
    for seed in range(seeds):
        yield from _policies(networks, seed, tuned=True)
    yield from _policies(networks, 0, tuned=False)
    yield from _criteria(HELD_OUT, list(TUNED), 0, tuned=False)
    for network, (tau, power) in itertools.product(CHOSEN_ON, ABLATION):
        for budget in (("params", 0.7), ("macs", 0.5)):
            yield Job(network, "fec", CRITERIA["fec"], f"entropy, tau {tau}, power {power}", budget, 0, False)
    for name, options in formulas():
        yield Job("resnet56", name, options, POLICY, ("params", 0.5), 0, False)
    for network, share in itertools.product(CHOSEN_ON, SHARES):
        yield Job(network, "fec", CRITERIA["fec"], "sensitivity", ("params", share), 0, False)


def _policies(networks: tuple[str, ...], seed: int, *, tuned: bool) -> Iterator[Job]:
    """Every policy with the criterion ``"fec"``, by either budget."""
    budgets = [("params", share) for share in SHARES] + [("macs", share) for share in MACS]
    for budget, policy, network in itertools.product(budgets, POLICIES, networks):
        yield Job(network, "fec", CRITERIA["fec"], policy, budget, seed, tuned)


def _criteria(networks: tuple[str, ...], names: list[str], seed: int, *, tuned: bool) -> Iterator[Job]:
    """Criteria under the one policy, by budgets in parameters."""
    for share, name, network in itertools.product(SHARES, names, networks):
        yield Job(network, name, CRITERIA[name], POLICY, ("params", share), seed, tuned)
