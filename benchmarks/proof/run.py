"""Faults planted in pruned networks, and how many of them the proof finds.

    pip install '.[bench]' && python -m benchmarks.proof --faults 10000

The networks are those of :mod:`benchmarks.proof.networks`, in which faults hide, and the stand-ins for known networks
of ``tests/helpers/stand_ins.py``. Every fault is proven with the plan; the result file has, by network and kind of
fault, how many were planted and which were not found.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter
from functools import partial
from typing import Any

import torch

import fec_fast
from benchmarks.common.results import RESULTS, run_number, write_result
from benchmarks.proof.faults import faults, is_found, pruned_with_random_channels
from benchmarks.proof.networks import NETWORKS, built
from tests.helpers.stand_ins import STAND_INS


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=10_000, type=int, help="in all networks together")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"rows": []}
    run = run_number(document)
    networks = [(name, partial(built, name), "exact") for name in NETWORKS]
    networks += [(name, stand_in.built, stand_in.norms) for name, stand_in in STAND_INS.items()]
    each = -(-arguments.faults // len(networks))
    for name, make, norms in networks:
        model, inputs = make()
        planted, missed = Counter[str](), []
        try:
            result = pruned_with_random_channels(model, inputs, 0, norms)
        except fec_fast.LayerError as error:
            print(name, error, flush=True)
            continue
        for kind, place, pruned, plan in itertools.islice(faults(model, result, random.Random(0)), each):
            planted[kind] += 1
            if not is_found(model, pruned, plan, inputs):
                missed.append([kind, place])
        row = {"network": name, "planted": dict(planted), "missed": missed, "run": run}
        print(name, dict(planted), "missed:", missed, flush=True)
        document["rows"].append(row)
    planted_in_all = sum(sum(row["planted"].values()) for row in document["rows"])
    print(planted_in_all, "faults,", sum(len(row["missed"]) for row in document["rows"]), "missed")
    write_result(RESULTS / "proof.json", document)
