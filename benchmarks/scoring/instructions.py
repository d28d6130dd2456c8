"""Instruction counts of the kernels by callgrind: equal on every run, whatever else the machine does.

Valgrind does not support AVX-512: counted are the other instruction sets of x86-64.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT

COMPRESS, ENTROPY = ("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance")
# Filters, channels, taps, compress, entropy, axis, and the unit that instructions are divided by.
CASES = (
    (64, 64, 9, "rms", "similarity", "channels", "channel"),
    (64, 512, 9, "rms", "similarity", "channels", "channel"),
    (64, 2048, 1, "rms", "similarity", "channels", "channel"),
    (64, 512, 1, "rms", "softmax", "channels", "channel"),
    (64, 512, 1, "rms", "distance", "channels", "channel"),
    (8, 512, 9, "none", "similarity", "channels", "pair"),
    (256, 64, 9, "none", "similarity", "filters", "multiply-add"),
    (256, 512, 9, "none", "similarity", "filters", "multiply-add"),
)


def build(folder: Path) -> Path:
    """Builds kernels_cost.cpp, the program that scores one layer; returns its path."""
    options = ["-DFEC_TESTS=ON", "-DFEC_OPENMP=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], **quiet)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", "2", "--target", "kernels_cost"], **quiet)
    return folder / "kernels_cost"


def count(program: Path, instruction_set: str, case: tuple[Any, ...]) -> int:
    """Instructions inside ``fec::entropies`` for one of ``CASES``."""
    filters, channels, taps, compress, entropy, axis, _ = case
    numbers = [filters, channels, taps, COMPRESS.index(compress), ENTROPY.index(entropy), int(axis == "filters")]
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=fec::entropies*"]
    done = subprocess.run(
        [*valgrind, str(program), instruction_set, *map(str, numbers)], check=True, capture_output=True, text=True
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None:
        sys.exit(f"callgrind printed no count: {done.stderr}")
    return int(collected[1])


def instructions() -> list[dict[str, Any]]:
    """One row of counts per case."""
    for tool in ("valgrind", "cmake"):
        if shutil.which(tool) is None:
            sys.exit(f"the instruction counts need {tool}, which is not on the PATH")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for case in CASES:
            filters, channels, taps, compress, entropy, axis, unit = case
            units = filters * channels
            if unit == "pair":
                units *= channels
            elif unit == "multiply-add":
                units = filters * (filters + 1) // 2 * channels * taps
            row: dict[str, Any] = {"weight": f"{filters} x {channels} x {taps}", "axis": axis}
            row |= {"compress": compress, "entropy": entropy, "instructions a": unit}
            for instruction_set in ("baseline", "avx2"):
                row[instruction_set] = round(count(program, instruction_set, case) / units, 3)
            rows.append(row)
    return rows
