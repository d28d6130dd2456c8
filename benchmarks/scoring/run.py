"""What scoring costs: measures everything behind docs/performance.md, then writes that page anew.

One thread and CPU seconds (time.process_time) unless a column says otherwise, medians, both sides of a ratio in turns
in one run. Parity with the float64 reference is checked before anything is timed.

    python -m benchmarks.scoring [--runs 5] [--part NAME ...] [--page-only]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.measuring import RESULTS, write_json
from benchmarks.scoring import growth as scoring_growth
from benchmarks.scoring import networks as scoring_networks
from benchmarks.scoring.instructions import instructions
from benchmarks.scoring.page import page
from fec_fast.scoring.backends.registry import backends
from fec_fast.utils.machine import describe_machine

RESULT, DOCS = RESULTS / "scoring.json", Path(__file__).parent.parent.parent / "docs"
PARTS: dict[str, Callable[[int], Any]] = {
    "resnet50": scoring_networks.beside_others,
    "networks": lambda runs: {name: scoring_networks.network_row(name, runs) for name in scoring_networks.NETWORKS},
    "formulas": scoring_networks.formulas,
    "pairwise": scoring_networks.pairwise_kernel,
    "memory": scoring_networks.memory,
    "growth": scoring_growth.growth,
    "products": scoring_growth.products,
    "instructions": lambda runs: instructions(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often each side is timed, after a first call")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", default=list(PARTS), help="measure these anew, keep the rest"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    here = describe_machine() | {"fec_fast cpu": backends()["cpu"].reason}
    for part in [] if arguments.page_only else arguments.part:
        print(f"{part} ...", flush=True)
        result[part] = {"machine": here, "runs": arguments.runs, "rows": PARTS[part](arguments.runs)}
        write_json(RESULT, result)
    DOCS.mkdir(exist_ok=True)
    scoring_growth.plot(result["growth"]["rows"], DOCS / "growth.svg")
    beside = DOCS / "performance.part"
    beside.write_text(page(result))
    beside.replace(DOCS / "performance.md")


if __name__ == "__main__":
    main()
