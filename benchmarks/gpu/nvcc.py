"""Building the CUDA sources for the tables: nvcc, the tools that read what it made, and what a device has room for."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CUDA = ROOT / "csrc" / "cuda"
FILES = ("driver", "sorted/sorted_f32", "sorted/sorted_f64", "pairwise/pairwise_f32", "pairwise/pairwise_f64")
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


def newest_virtual() -> str:
    """The newest virtual architecture that this nvcc makes PTX for, such as "compute_121"."""
    text = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return max(text.split(), key=lambda name: int(name.removeprefix("compute_")))


def ptx_entries(architecture: str, folder: Path) -> set[str]:
    """Makes PTX of all sources for a virtual architecture; the mangled names of the kernels in it."""
    entries: set[str] = set()
    for file in FILES:
        path = folder / f"{Path(file).name}.ptx"
        command = [nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch={architecture}", "-ptx"]
        subprocess.run([*command, str(CUDA / f"{file}.cu"), "-o", str(path)], check=True)
        text = path.read_text()
        if f".target {architecture.replace('compute', 'sm')}" not in text:
            sys.exit(f"{path.name} is not for {architecture}")
        entries |= set(re.findall(r"\.entry (\w+)", text))
    return entries


def held_by(binary: Path) -> tuple[list[str], list[str]]:
    """The architectures of a binary's machine code and of its PTX."""
    found = []
    for what, suffix in (("--list-elf", "cubin"), ("--list-ptx", "ptx")):
        text = subprocess.run([tool("cuobjdump"), what, str(binary)], capture_output=True, text=True).stdout
        names = re.findall(rf"sm_(\d+)[a-z]?\.{suffix}", text)
        found.append([f"sm_{number}" for number in sorted(set(names), key=int)])
    return found[0], found[1]


def all_major(folder: Path) -> tuple[list[str], list[str]]:
    """What the default of a build without a GPU puts into the binary: machine code and PTX, for one of the sources."""
    binary = folder / "driver.fatbin"
    command = [nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-arch=all-major", "-fatbin"]
    subprocess.run([*command, str(CUDA / "driver.cu"), "-o", str(binary)], check=True)
    return held_by(binary)


def compiler_version() -> str:
    """Such as "13.0"."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([0-9.]+)", text)
    return found[1] if found else "unknown"


def keep_page(description: str | None, page: Path, write: Callable[[Path, str], str]) -> None:
    """The command line of a table: writes a page, or with ``--check`` compares the committed one.

    Args:
        description: Of the command.
        page: The page.
        write: From a folder for what is built and nvcc's version to the page's text.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed page, do not write it")
    check = parser.parse_args().check
    version, name = compiler_version(), f"{page.parent.name}/{page.name}"
    committed = re.search(r"nvcc ([0-9.]+)", page.read_text()) if page.exists() else None
    if check and (committed is None or committed[1] != version):
        print(f"not run: the page is of nvcc {committed[1] if committed else '(none)'}, this is {version}")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = write(Path(folder), version)
    if not check:
        page.write_text(text)
    elif text != page.read_text():
        sys.exit(f"{name} is not what nvcc makes: run python {sys.argv[0]}")
    else:
        print(f"{name} is what nvcc {version} makes")
