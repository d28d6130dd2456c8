"""Faults planted in pruned networks, and how many of them the proof finds.

    pip install '.[bench]' && python -m benchmarks.proof --faults 10000

Every fault is proven with the plan; the result file has, by network and kind of fault, how many were planted and which
were not found.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter
from typing import Any

import torch

from benchmarks.common.results import RESULTS, run_number, write_result
from benchmarks.proof.faults import faults, is_found, pruned_with_random_channels
from benchmarks.proof.networks import NETWORKS, built


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=10_000, type=int, help="in all networks together")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"rows": []}
    run = run_number(document)
    for name in NETWORKS:
        planted, missed = Counter[str](), []
        model, images = built(name)
        result = pruned_with_random_channels(model, images, 0)
        each = -(-arguments.faults // len(NETWORKS))
        for kind, place, pruned, plan in itertools.islice(faults(model, result, random.Random(0)), each):
            planted[kind] += 1
            if not is_found(model, pruned, plan, images):
                missed.append([kind, place])
        row = {"network": name, "planted": dict(planted), "missed": missed, "run": run}
        print(name, dict(planted), "missed:", missed, flush=True)
        document["rows"].append(row)
    write_result(RESULTS / "proof.json", document)
