"""Instructions that each kernel takes, counted by callgrind: the same on every run, whatever else the machine does.

Valgrind knows no AVX-512, so the counts are of the other instruction sets of x86-64.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
COMPRESS, ENTROPY = ("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance")
# filters, channels, taps, compress, entropy, axis, and what is counted a piece
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
    """Builds the program that runs one layer through the kernels."""
    options = ["-DFEC_TESTS=ON", "-DFEC_OPENMP=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], **quiet)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", "2", "--target", "kernels_cost"], **quiet)
    return folder / "kernels_cost"


def count(program: Path, instruction_set: str, case: tuple[Any, ...]) -> int:
    """Instructions inside ``fec::entropies``."""
    filters, channels, taps, compress, entropy, axis, _ = case
    numbers = [filters, channels, taps, COMPRESS.index(compress), ENTROPY.index(entropy), int(axis == "filters")]
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=fec::entropies*"]
    done = subprocess.run(
        [*valgrind, str(program), instruction_set, *map(str, numbers)], check=True, capture_output=True, text=True
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        sys.exit(f"callgrind said nothing of what it counted: {done.stderr}")
    return int(found[1])


def instructions() -> list[dict[str, Any]]:
    """The counts, a row a case."""
    for tool in ("valgrind", "cmake"):
        if shutil.which(tool) is None:
            sys.exit(f"counting instructions needs {tool}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for case in CASES:
            filters, channels, taps, compress, entropy, axis, piece = case
            pieces = filters * channels
            if piece == "pair":
                pieces *= channels
            elif piece == "multiply-add":
                pieces = filters * (filters + 1) // 2 * channels * taps
            row: dict[str, Any] = {"weight": f"{filters} x {channels} x {taps}", "axis": axis}
            row |= {"compress": compress, "entropy": entropy, "instructions a": piece}
            for instruction_set in ("baseline", "avx2"):
                row[instruction_set] = round(count(program, instruction_set, case) / pieces, 3)
            rows.append(row)
    return rows
