"""Correctness and speed of the CUDA and Triton kernels, on a machine with a GPU.

    pip install '.[bench]' && python -m benchmarks.gpu [--runs 15] [--part PART]

The parts, in this order, in at most nine minutes together:

    build       builds the extension for the GPU of the machine
    parity      compares every kernel of both backends with the float64 reference on the device, replays CUDA graphs,
                runs memcheck and racecheck of compute-sanitizer on small shapes
    throughput  times both backends, eager and as CUDA graphs, in three dtypes, score_model, and torch's operators
    kernels     times each kernel of a call
    grams       times the products of compensation, and the card's copy bandwidth

Each result is written to benchmarks/results/gpu-NAME.json at once. What was cut off is measured by the same command
again, from the same commit; what is there is kept. Nothing is timed if a comparison fails, or was not made. Without a
GPU nothing is run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT, environment
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.gpu import parity, throughput
from benchmarks.gpu.grams import gram_rows
from benchmarks.gpu.page import table_of_throughput
from benchmarks.gpu.rows import Row, measure_rows
from fec_fast.scoring.backends.registry import backends

# Seconds after which a part begins nothing more; some of the whole are left for what it is at.
PARTS = {"build": 110, "parity": 160, "throughput": 160, "kernels": 30, "grams": 20}
_SECONDS = 530
_GRACE = 60


def device_name() -> str:
    """The GPU's name; ends the program with the reason if there is none."""
    if not torch.cuda.is_available():
        reason = "it is built without CUDA" if torch.version.cuda is None else "it sees no CUDA device"
        sys.exit(f"benchmarks.gpu needs a CUDA GPU: torch {torch.__version__} is here, but {reason}. Nothing was run.")
    return torch.cuda.get_device_name(0)


def describe_gpu() -> dict[str, Any]:
    """Multiprocessors, memory, driver and clock of the GPU."""
    gpu = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    )
    return {
        "multiprocessors": gpu.multi_processor_count,
        "memory GiB": round(gpu.total_memory / 2**30, 1),
        "driver, greatest clock": driver.stdout.strip().split("\n")[0],
        "cuda": torch.version.cuda,
    }


def build() -> dict[str, Any]:
    """Builds the extension for the GPU of the machine and copies it into the ``fec_fast`` that is imported.

    This process may have loaded the old extension: what needs the new one runs in processes of its own.
    """
    major, minor = torch.cuda.get_device_capability(0)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, str(ROOT)]
        options = {"CUDAARCHS": f"{major}{minor}", "SKBUILD_CMAKE_DEFINE": "FEC_CUDA=ON"}
        subprocess.run(command, check=True, env=os.environ | options, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        built = next(Path(folder, "fec_fast").rglob("_native*.so"))
        package = importlib.util.find_spec("fec_fast")
        if package is None or package.origin is None:
            sys.exit("fec_fast is not installed: pip install '.[bench]' first")
        target = Path(package.origin).parent / built.relative_to(Path(folder, "fec_fast"))
        beside = target.with_suffix(".part")
        shutil.copy2(built, beside)
        beside.replace(target)  # a new file: processes that have loaded the old one keep it
    return {"architecture": f"sm_{major}{minor}", "seconds": round(seconds, 1), "bytes": target.stat().st_size}


def result_file(name: str) -> Path:
    """Where the results of a GPU are."""
    return RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def begin(name: str, *, dirty_too: bool) -> None:
    """Makes the result file hold results of this commit, these versions and this GPU alone.

    Args:
        name: The GPU's name.
        dirty_too: Whether results of a commit with changes that are not committed are kept: these may be others now.
    """
    path, here = result_file(name), environment("triton")
    result = read_result(path)
    there = (result.get("runs") or [{}])[-1]
    kept = all(there.get(key) == here[key] for key in ("versions", "commit")) and result.get("device") == name
    if kept and (dirty_too or not here["commit"].endswith("+dirty")):
        return
    result = {"device": name, "gpu": describe_gpu()}
    result["run"] = run_number(result, "triton")
    write_result(path, result)


def failures_of(result: dict[str, Any]) -> list[str]:
    """The failures among the comparisons that were made."""
    rows = [row for section in result.get("parity", {}).values() for row in section.values()]
    return [failure for row in rows for failure in row["failures"]]


def check_parity(result: dict[str, Any]) -> None:
    """Ends the program if a comparison has failed or was not made; compute-sanitizer's may be missing."""
    failures = failures_of(result)
    if failures:
        sys.exit("not timed, these are wrong:\n" + "\n".join(failures))
    made = result.get("parity", {})
    for row in parity.parity_rows():
        if row.section != parity.SANITIZER and row.name not in made.get(row.section, {}):
            sys.exit(f"not timed, {row.section} {row.name} was not compared: run --part parity first")


def rows_of(part: str, runs: int) -> Iterable[Row]:
    """The rows of a part."""
    if part == "parity":
        return parity.parity_rows()
    if part == "throughput":
        return throughput.throughput_rows(runs)
    if part == "kernels":
        return throughput.kernel_rows()
    copied = Row("card", "copy bandwidth, GB/s", lambda: throughput.copy_bandwidth(runs))
    return [copied, *gram_rows(runs)]


def measure(part: str, name: str, runs: int, seconds: float) -> list[str]:
    """Measures one part in this process, and returns what was left out for want of time."""
    path = result_file(name)
    result = read_result(path)
    if part == "build":
        if "build" not in result or not backends()["cuda"].usable:
            built = build()
            write_result(path, read_result(path) | {"build": built})
        return []
    if part != "parity":
        check_parity(result)
    left_out = measure_rows(path, part, rows_of(part, runs), seconds)
    if part == "parity" and failures_of(read_result(path)):
        check_parity(read_result(path))
    return left_out


def run_part(part: str, runs: int, seconds: float, most: float) -> list[str]:
    """Runs a part in a new process; ends the program if it fails.

    Args:
        part: Its name.
        runs: How often each call is timed.
        seconds: After so long it begins nothing more.
        most: After so long it is stopped.

    Returns:
        What was left out for want of time.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--runs", str(runs)]
    command += ["--seconds", str(seconds)]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        return [f"the rest of {part}, which was stopped after {most:.0f} s"]
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    left_out: list[str] = json.loads(done.stdout.splitlines()[-1])
    return left_out


def run_all(name: str, runs: int) -> None:
    """Runs all parts, each in a process of its own, and prints the table."""
    end, left_out = time.monotonic() + _SECONDS, list[str]()
    begin(name, dirty_too=False)
    for part, share in PARTS.items():
        print(f"{part} ...", flush=True)
        left = max(1.0, end - time.monotonic())
        left_out += run_part(part, runs, min(share, left), min(share + _GRACE, left))
    path = result_file(name)
    result = read_result(path)
    if "throughput" in result:
        print(table_of_throughput(result))
    print(f"written: {path}")
    if left_out:
        print("no time was left for these; the same command goes on with them:", *left_out, sep="\n  ")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="how often each side is timed")
    parser.add_argument("--part", choices=PARTS, help="run one part, in this process")
    parser.add_argument("--seconds", type=float, help="with --part: begin nothing more after so long")
    parser.add_argument("--small", action="store_true", help="compare the CUDA kernels on small shapes and print that")
    arguments = parser.parse_args()
    name, part = device_name(), arguments.part
    if arguments.small:  # what compute-sanitizer runs
        print(json.dumps(parity.parity(parity.SMALL, ("cuda",))))
    elif part is None:
        run_all(name, arguments.runs)
    else:
        begin(name, dirty_too=True)
        seconds = PARTS[part] if arguments.seconds is None else arguments.seconds
        print(json.dumps(measure(part, name, arguments.runs, seconds)))


if __name__ == "__main__":
    main()
