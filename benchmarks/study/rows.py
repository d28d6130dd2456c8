"""Rows of the study, and what is compared in them: networks, criteria, policies and budgets."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.study.estimates import Correct, unpacked
from benchmarks.study.jobs import CHOSEN_ON, HELD_OUT

NAMES = {
    "resnet56": "ResNet-56",
    "vgg16": "VGG-16-BN",
    "resnet20": "ResNet-20",
    "resnet-digits": "ResNet on digits",
    "vgg-digits": "VGG on digits",
}
GROUPS = {
    "all networks": tuple(NAMES),
    "the networks that formulas and policies were chosen on": CHOSEN_ON,
    "the networks that nothing was chosen on": tuple(name for name in NAMES if name in HELD_OUT),
}
CRITERION = "fec_l1"  # the default of fec_fast.prune, which the others are compared with
POLICIES = ("uniform", "entropy", "global", "sensitivity")
SHARES = (0.5, 0.7, 0.9, 0.94)
BUDGETS = (*(("params", share) for share in SHARES), ("macs", 0.5), ("macs", 0.7))
CURRENCIES = {"params": "parameters", "macs": "MACs"}
BOTH_SIDES = ("l1, both sides", "l2, both sides", "fpgm, both sides")
FILTERS_ONLY = ("l1", "l2", "fpgm")
CLASSICAL = (*BOTH_SIDES, *FILTERS_ONLY, "bn_scale")
FORMULA = " entropy, axis="  # part of the name of a criterion that is a formula written out
STAGES = {True: "Fine-tuned", False: "One shot, batch norm re-estimated"}


class Rows:
    """The rows of a result file by what was pruned how."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.rows: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in document["rows"]:
            network, criterion, policy, currency, share, _, tuned = row["key"]
            self.rows[network, criterion, policy, currency, share, tuned].append(row)
        self.images = {name: dense["images"] for name, dense in document["dense"].items()}
        self.dense = document["dense"]

    def get(self, *key: Any) -> Correct | None:
        """Which images are classified correctly, by seed; ``None`` if nothing was measured.

        Args:
            key: Network, criterion, policy, currency of the budget, share removed, whether fine-tuned.
        """
        rows = self.rows.get(key)
        if not rows:
            return None
        images = len(rows[0]["right"]) * 4 if "tau" in key[2] else self.images[key[0]]
        return {row["key"][5]: unpacked(row["right"], images) for row in rows}

    def first(self, *key: Any) -> dict[str, Any]:
        """The first of the rows of a key: sizes are equal for all seeds."""
        return self.rows[key][0]

    def criteria(self) -> list[str]:
        """The names of all criteria but the formulas written out."""
        return list(dict.fromkeys(key[1] for key in self.rows if FORMULA not in key[1]))
