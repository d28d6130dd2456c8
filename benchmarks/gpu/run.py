"""Correctness and speed of the CUDA and Triton kernels, on a machine with a GPU.

    pip install '.[bench]' && python -m benchmarks.gpu [--runs 20] [--skip-sanitizer]

Builds the extension for the GPU of the machine, compares every kernel of both GPU backends with the float64 reference
on the device, replays a CUDA graph, runs memcheck and racecheck of compute-sanitizer on small shapes, measures the
throughput, writes benchmarks/results/gpu-NAME.json and prints the table for docs/gpu.md. Nothing is timed if a
comparison fails. Without a GPU nothing is run.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, run_number, write_result
from benchmarks.gpu import parity, throughput
from benchmarks.gpu.page import table_of_throughput


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


def run_part(*arguments: str, under: list[str] | None = None) -> str:
    """Runs a part of this benchmark in a new process and returns what it prints; ends the program if it fails.

    Args:
        arguments: The command line.
        under: A program and its options, to run the process under.
    """
    command = [*(under or []), sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def sanitizer() -> dict[str, str]:
    """The summaries of memcheck and racecheck of compute-sanitizer over the small shapes."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"not run": "no compute-sanitizer on the PATH"}
    summaries = {}
    for check in ("memcheck", "racecheck"):
        print(f"{check} ...", flush=True)
        text = run_part("--part", "small", under=[program, "--tool", check, "--error-exitcode", "1"])
        summaries[check] = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)[-1]
        failures = json.loads(next(line for line in text.splitlines() if line.startswith("{")))["failures"]
        if failures:
            sys.exit(f"wrong under {check}:\n" + "\n".join(failures))
    return summaries


def measure(part: str, runs: int) -> dict[str, Any]:
    """Runs one part in this process: ``"parity"``, ``"small"`` (CUDA alone, small shapes) or ``"throughput"``."""
    if part == "throughput":
        return {network: throughput.throughput(network, runs) for network in throughput.NETWORKS}
    if part == "parity":
        return parity.parity(parity.ALL)
    # Without Triton: racecheck reports its sums, in which several lanes write equal numbers to one address.
    return parity.parity(parity.SMALL, ("cuda",))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="how often each side is timed")
    parser.add_argument("--skip-sanitizer", action="store_true", help="do not run compute-sanitizer")
    parser.add_argument(
        "--part", choices=("parity", "small", "throughput"), help="run one part in this process and print its results"
    )
    arguments = parser.parse_args()
    name = device_name()
    if arguments.part is not None:
        return print(json.dumps(measure(arguments.part, arguments.runs)))
    print(f"building for {name} ...", flush=True)
    result: dict[str, Any] = {"device": name, "gpu": describe_gpu(), "build": build()}
    result["run"] = run_number(result, "triton")
    print("parity ...", flush=True)
    result["parity"] = json.loads(run_part("--part", "parity").splitlines()[-1])
    if result["parity"]["failures"]:
        sys.exit("not timed, these are wrong:\n" + "\n".join(result["parity"]["failures"]))
    result["compute-sanitizer"] = {"not run": "--skip-sanitizer"} if arguments.skip_sanitizer else sanitizer()
    print("throughput ...", flush=True)
    timed = run_part("--part", "throughput", "--runs", str(arguments.runs))
    result["throughput"] = json.loads(timed.splitlines()[-1])
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    write_result(path, result)
    print(table_of_throughput(result))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
