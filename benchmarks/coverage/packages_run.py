"""Coverage of other packages: prunes their models, each in a process of its own with a time limit.

Each model, with random weights, is pruned at ratio 0.5 and proven by fec_fast; the copy is run forward and backward in
training mode, saved, loaded into a new instance and compared bit for bit. Where less than 60% of the channels can go,
this is done again with ``norms="renormalise"``. A result that exists is not measured again,
unless it says that the model cannot be built.

The packages are in a side folder, never in the working environment. Nothing is installed without --install; the pip
commands of packages that are missing are printed.

    python -m benchmarks.coverage.packages_run SIDE [--install] [--only NAME ...] [--anew]

Writes benchmarks/results/coverage_packages.json and docs/coverage.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.measuring import timed
from benchmarks.common.pages import write_page
from benchmarks.common.results import read_result, run_number, write_result
from benchmarks.coverage.packages import Model, Package, installed_version, packages, pip_command, shown
from benchmarks.coverage.packages_page import PACKAGES_RESULT, RENORMALISED, is_wide
from benchmarks.coverage.page import page
from benchmarks.coverage.run import RESULT, backward, equal, general
from fec_fast.utils.copying import copied_model
from fec_fast.utils.forward import call_model, tensors_in
from fec_fast.utils.model_index import ModelIndex

CPU_LIMIT, WALL_LIMIT = 60, 300  # seconds for one model: of the processor, and in all where the machine is busy
CONVOLUTIONS = nn.modules.conv._ConvNd
HEADS = "outputs of the model"
NOT_BUILT = "cannot be built"  # tried again in the next run

FORK = multiprocessing.get_context("fork")  # a model's process has imported torch and its package already


def examine(model: Model, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Prunes a model and checks the result; gives its row, and again with ``norms="renormalise"`` where few can go."""
    try:
        inputs = model.made_inputs(names)
        original = seeded(partial(model.built, names))
        with torch.no_grad():
            call_model(copied(original), copy.deepcopy(inputs))
    except Exception as error:
        yield {"outcome": NOT_BUILT, "reason": described(error)}
        return
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in original.parameters())}
    row |= measured(model, names, original, inputs, "exact")
    yield row
    if asks_for_more(row):
        yield row | {RENORMALISED: measured(model, names, original, inputs, "renormalise")}


def asks_for_more(row: dict[str, Any]) -> bool:
    """Whether a model that can be run is pruned with ``norms="renormalise"`` too."""
    return row["outcome"] not in (NOT_BUILT, "time limit") and not is_wide(row)


def measured(model: Model, names: dict[str, Any], original: nn.Module, inputs: Any, norms: str) -> dict[str, Any]:
    """Prunes a model and checks the result: what a row says of it."""
    row: dict[str, Any] = {}
    try:
        result, seconds = timed(partial(fec_fast.prune, original, inputs, ratio=0.5, norms=norms, recover=None))
        row["seconds"] = round(seconds, 2)
        row["after"] = sum(p.numel() for p in result.model.parameters())
        row |= shares(original, fec_fast.couplings(original, inputs, norms=norms))
        row["proof"] = {"runs": list(result.proof.runs), "notes": [note[:300] for note in result.proof.notes]}
        return row | verdict(model, names, original, result, inputs)
    except fec_fast.EquivalenceError as error:
        unproven = "cannot be compared" in str(error)  # NaN in the proof's run of the original, say
        return row | {"outcome": "refused" if unproven else "wrong", "reason": described(error)}
    except fec_fast.LayerError as error:
        nothing = str(error).partition("nothing to prune: ")[2]
        return row | {"outcome": "nothing to prune" if nothing else "refused", "reason": (nothing or str(error))[:500]}
    except fec_fast.FecError as error:
        return row | {"outcome": "refused", "reason": f"{type(error).__name__}: {error}"[:500]}
    except Exception as error:
        return row | {"outcome": "crash", "reason": described(error)}


def verdict(
    model: Model, names: dict[str, Any], original: nn.Module, result: fec_fast.PruneResult, inputs: Any
) -> dict[str, str]:
    """Whether the pruned copy trains where the original does, and is the same after saving and loading."""

    def call(network: nn.Module) -> Any:
        return call_model(network, copy.deepcopy(inputs))

    try:
        seeded(lambda: backward(copied(result.model).train(), call))
    except Exception as error:
        with contextlib.suppress(Exception):
            seeded(lambda: backward(copied(original).train(), call))
            return {"outcome": "wrong", "reason": f"only the original can be trained: {described(error)}"}
    with tempfile.TemporaryDirectory() as folder:
        fec_fast.save(result, Path(folder) / "pruned")
        loaded = fec_fast.load(seeded(partial(model.built, names), 1), Path(folder) / "pruned")
    with torch.no_grad():
        before, after, again = (
            seeded(lambda network=network: list(tensors_in(call(network.eval()))))  # type: ignore[misc]
            for network in (result.model, loaded, result.model)
        )
    if not all(map(equal, before, again)):
        return {"outcome": "pass", "reason": "its outputs are random: saved and loaded, not compared"}
    if len(before) != len(after) or not all(map(equal, before, after)):
        return {"outcome": "wrong", "reason": "the loaded network computes other outputs than the saved one"}
    return {"outcome": "pass"}


def shares(model: nn.Module, couplings: fec_fast.Couplings) -> dict[str, Any]:
    """The shares of output channels that can be removed, and how many are kept for each reason.

    Counted are the layers that the inputs reach, without those that make the model's outputs. A layer is a convolution,
    transposed ones included; ``layers`` counts linear layers too. ``None`` where there is no channel.
    """
    free, kept = {True: 0, False: 0}, {True: 0, False: 0}
    reasons: dict[str, int] = {}
    for coupled in couplings.sets:
        for layer, channels in coupled.channels.items():
            free[isinstance(model.get_submodule(layer), CONVOLUTIONS)] += coupled.units * channels
    for pinned in couplings.pinned:
        if HEADS not in pinned.reason and "do not reach" not in pinned.reason:
            kept[isinstance(model.get_submodule(pinned.layer), CONVOLUTIONS)] += pinned.channels
            reason = general(pinned.reason)[:300]
            reasons[reason] = reasons.get(reason, 0) + pinned.channels
    every, removable = sum(free.values()) + sum(kept.values()), sum(free.values())
    return {
        "convolutions": round(free[True] / (free[True] + kept[True]), 4) if free[True] + kept[True] else None,
        "layers": round(removable / every, 4) if every else None,
        "kept for": dict(sorted(reasons.items(), key=lambda item: -item[1])[:3]),
    }


def copied(model: nn.Module) -> nn.Module:
    """A copy, also where ``copy.deepcopy`` refuses: weight norm of the old kind leaves results in attributes."""
    return copied_model(ModelIndex.of(model))


def seeded(function: Callable[[], Any], seed: int = 0) -> Any:
    """Calls a function with torch's random numbers at their start."""
    torch.manual_seed(seed)
    return function()


def described(error: BaseException) -> str:
    """An error in one line: its type, its message and the function that raised it."""
    function = traceback.extract_tb(error.__traceback__)[-1].name
    return " ".join(f"{type(error).__name__}: {error} (in {function})".split())[:500]


def try_model(model: Model, names: dict[str, Any], connection: Connection) -> None:
    """The process of a model: sends its row."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, resource.RLIM_INFINITY))
    for row in examine(model, names):
        connection.send(row)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_LIMIT, resource.RLIM_INFINITY))


def received(connection: Connection, process: multiprocessing.process.BaseProcess) -> dict[str, Any]:
    """The next row of a model's process, or what it ended with."""
    try:
        if connection.poll(WALL_LIMIT):
            row: dict[str, Any] = connection.recv()
            return row
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            return {"outcome": "crash", "reason": f"the process ended with {process.exitcode}"}
    return {"outcome": "time limit", "reason": f"longer than {CPU_LIMIT} s of processor time"}


def try_package(package: Package, models: Sequence[Model], connection: Connection) -> None:
    """The process of a package: imports it, starts the process of each model and sends the rows."""
    try:
        names = package.namespace()
    except BaseException as error:  # some packages end the program
        for _ in models:
            connection.send({"outcome": NOT_BUILT, "reason": f"it cannot be imported: {described(error)}"})
        return
    for model in models:
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=try_model, args=(model, names, there))
        process.start()
        there.close()
        row = received(here, process)
        if asks_for_more(row):
            again = received(here, process)
            row = row | {RENORMALISED: again.get(RENORMALISED, again)}
        process.kill()
        process.join()
        connection.send(row)


def measure(package: Package, models: Sequence[Model]) -> None:
    """Adds the rows of a package's models to the result file, each as soon as it is known."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=try_package, args=(package, models, there))
    process.start()
    there.close()
    versions = {name: installed_version(name) for name in package.install}
    for model in models:
        try:
            row = here.recv()
        except EOFError:
            row = {"outcome": NOT_BUILT, "reason": "importing the package ends the process"}
        result = results()  # read again: two commands may run at a time
        result["packages"][package.name] = {"domain": package.domain, "licence": package.licence, "versions": versions}
        row = {"package": package.name, "model": model.name} | row | {"run": run_number(result)}
        result["rows"] = [other for other in result["rows"] if key_of(other) != key_of(row)] + [row]
        write_result(PACKAGES_RESULT, result)
        print(
            *key_of(row),
            row["outcome"],
            row.get("convolutions", ""),
            row.get(RENORMALISED, {}).get("convolutions", ""),
            row.get("reason", ""),
            flush=True,
        )
    process.join()


def results() -> dict[str, Any]:
    """The content of the result file."""
    return read_result(PACKAGES_RESULT) or {"packages": {}, "rows": []}


def key_of(row: dict[str, Any]) -> tuple[str, str]:
    """What a row is about."""
    return row["package"], row["model"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", metavar="SIDE", type=Path, help="the folder that the packages are installed to")
    parser.add_argument("--install", action="store_true", help="install the packages that are missing, by pip")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these packages or models alone")
    parser.add_argument("--anew", action="store_true", help="measure models again that have a result")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.side.resolve()))  # last: what the working environment has is not replaced
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    only = {*arguments.only} if arguments.only else None
    for package in packages():
        asked = [model for model in package.models if only is None or only & {package.name, model.name}]
        rows = [] if arguments.anew else results()["rows"]
        known = {key_of(row) for row in rows if row["outcome"] != NOT_BUILT}
        models = [model for model in asked if (package.name, model.name) not in known]
        missing = package.missing()
        if models and missing:
            command = pip_command(missing, arguments.side)
            print(f"{package.name}{f' ({package.licence})' if package.licence else ''}: {shown(command)}", flush=True)
            if not arguments.install or subprocess.run(command).returncode:
                continue
        if models:
            measure(package, models)
    write_page("coverage.md", page(read_result(RESULT)))


if __name__ == "__main__":
    main()
