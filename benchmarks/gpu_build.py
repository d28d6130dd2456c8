"""Building the CUDA sources for the tables: nvcc, the tools that read what it made, and what a device has room for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CUDA = ROOT / "csrc" / "cuda"
FILES = ("run", "sorted_f32", "sorted_f64", "pairwise_f32", "pairwise_f64")
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Device:
    """What one multiprocessor of a compute capability holds (CUDA programming guide, technical specifications)."""

    threads: int
    blocks: int
    shared_kib: int
    registers: int = 65536


DEVICES = {
    75: Device(1024, 16, 64),
    80: Device(2048, 32, 164),
    86: Device(1536, 16, 100),
    89: Device(1536, 24, 100),
    90: Device(2048, 32, 228),
    100: Device(2048, 32, 228),
    120: Device(1536, 24, 100),
}


def nvcc() -> str:
    """The compiler; ends the program with the reason where there is none."""
    found = shutil.which("nvcc")
    if found is None:
        sys.exit("not run: needs nvcc")
    return found


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: from the CUDA toolkit, or from Triton's package."""
    found = shutil.which(name)
    if found is None:
        import triton

        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        if not path.is_file():
            sys.exit(f"not run: needs {name} (of the CUDA toolkit, or of the triton package)")
        found = str(path)
    return found


def compile_all(jobs: list[tuple[Path, int, Path, list[str]]]) -> None:
    """Compiles (source, architecture, cubin, flags), two at a time."""
    compiler = nvcc()

    def one(job: tuple[Path, int, Path, list[str]]) -> None:
        source, architecture, cubin, flags = job
        command = [compiler, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", *flags]
        subprocess.run([*command, "-cubin", str(source), "-o", str(cubin)], check=True)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(one, jobs))


def compiler_version() -> str:
    """Such as "13.0"."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([0-9.]+)", text)
    return found[1] if found else "unknown"
