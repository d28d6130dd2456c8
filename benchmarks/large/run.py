"""Memory and time of every step on large models: score, prune, prove, recover, save, load.

Every network is handled in a new process, on one thread, with random weights and a ratio of 0.5. The memory of a step
is what the process grows by at most meanwhile: what the step returns is in it, the model before it is not. ``load``
prunes the model in place, so that the process is smaller afterwards. Times are CPU seconds.

    pip install '.[bench]' && python -m benchmarks.large [--only NAME ...]

The largest network takes 12 GiB. Writes benchmarks/results/large.json; docs/reliability.md shows the figures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.measuring import peak_extra_mib, timed
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.common.tables import markdown_table
from benchmarks.large.networks import CASES, Case, chain

RESULT = RESULTS / "large.json"


def mib(model: nn.Module) -> float:
    """The size of a model's parameters and buffers in MiB."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / 2**20


def measure(name: str) -> dict[str, Any]:
    """The steps of one network, measured in a new process.

    Args:
        name: A key of :data:`benchmarks.large.networks.CASES`.

    Returns:
        ``MiB``, ``pruned MiB``, ``largest tensor MiB``, and ``steps``: by name ``MiB`` and ``seconds``.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_in_this_process, CASES[name]).result()


def measure_in_this_process(case: Case) -> dict[str, Any]:
    """The steps of one network, as :func:`measure` returns them; in a process that has done nothing else yet."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fec_fast.prune(chain(4), torch.randn(2, 3, 8, 8), recover=None)  # what a first call alone imports
    torch.manual_seed(0)
    model, image = case.build().eval(), torch.randn(case.image)
    steps: dict[str, dict[str, float]] = {}

    def step(label: str, call: Callable[[], Any]) -> Any:
        results: list[Any] = []
        extra = peak_extra_mib(lambda: results.append(timed(call)))
        result, seconds = results.pop()
        steps[label] = {"MiB": round(extra, 1), "seconds": round(seconds, 2)}
        print(label, steps[label], flush=True)
        return result

    facts = {"MiB": round(mib(model), 1)}
    facts["largest tensor MiB"] = round(max(t.numel() * t.element_size() for t in model.parameters()) / 2**20, 1)
    step("score, channels", lambda: fec_fast.score_model(model))
    step("score, filters", lambda: fec_fast.score_model(model, formula=fec_fast.Formula(axis="filters")))
    result = step("prune", lambda: fec_fast.prune(model, image, ratio=0.5, verify=False, recover=None))
    facts["pruned MiB"] = round(mib(result.model), 1)
    step("prove", lambda: fec_fast.verify_equivalence(model, result.model, result.plan, image))
    if case.calibration:
        images = torch.randn(case.calibration, *case.image[1:])
        step("compensate", lambda: fec_fast.compensate(model, result.model, result.plan, images, progress=False))
    with tempfile.TemporaryDirectory() as folder:
        path = step("save", lambda: fec_fast.save(result, f"{folder}/saved"))
        step("load", lambda: fec_fast.load(model, path))
    return {**facts, "steps": steps}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, help="measure these networks alone")
    only = parser.parse_args().only or list(CASES)
    torch.set_num_threads(1)
    result = read_result(RESULT) or {"networks": {}}
    for name in only:
        result["networks"][name] = measure(name) | {"run": run_number(result)}
        write_result(RESULT, result)
    rows = [
        (name, step, f"{figures['MiB'] / row['MiB']:.2f}", figures["MiB"], figures["seconds"])
        for name, row in result["networks"].items()
        for step, figures in row["steps"].items()
    ]
    print(markdown_table(("network", "step", "models", "MiB", "CPU s"), rows), end="")


if __name__ == "__main__":
    main()
