"""Cost of scoring filters on a CPU: measures everything in docs/performance.md and writes that page.

CPU seconds on one thread, medians, both sides of a ratio in one run. The kernels are compared with the float64
reference before anything is timed.

    pip install '.[bench]' && python -m benchmarks.scoring [--runs 5] [--part NAME ...] [--page-only]

The instruction counts need valgrind, and a C++ compiler, as do the multiply-adds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common.figures import write_figure
from benchmarks.common.pages import write_page
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.scoring import growth, networks
from benchmarks.scoring.instructions import instructions
from benchmarks.scoring.page import page

RESULT = RESULTS / "scoring.json"
PARTS: dict[str, Callable[[int], Any]] = {
    "resnet50": networks.other_scores,
    "networks": lambda runs: {name: networks.network_row(name, runs) for name in networks.NETWORKS},
    "formulas": networks.formulas,
    "pairwise": networks.pairwise_kernel,
    "memory": networks.memory,
    "growth": growth.growth,
    "products": growth.products,
    "instructions": lambda runs: instructions(),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often each side is timed, after one call that is not")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", default=list(PARTS), help="measure these parts, keep the results of others"
    )
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    result = read_result(RESULT)
    for part in [] if arguments.page_only else arguments.part:
        print(f"{part} ...", flush=True)
        rows = PARTS[part](arguments.runs)
        result[part] = {"run": run_number(result), "timings": arguments.runs, "rows": rows}
        write_result(RESULT, result)
    write_page("performance.md", page(result))
    write_figure("growth.svg", growth.figure_of(result["growth"]["rows"]))


if __name__ == "__main__":
    main()
