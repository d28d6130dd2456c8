"""nvcc for the pages on the CUDA kernels: compilation, tools that read compiled files, and limits of devices."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from benchmarks.common import pages, tables
from benchmarks.common.environment import ROOT
from benchmarks.common.pages import DOCS, write_page

CUDA = ROOT / "csrc" / "cuda"
FILES = (
    "driver",
    "sorted/sorted_f32",
    "sorted/sorted_f64",
    "pairwise/pairwise_f32",
    "pairwise/pairwise_f64",
    "pairwise/products",
)
WARPGROUP_FILE = "pairwise/warpgroup_products"  # compiled for sm_90a alone
Job = tuple[Path, int | str, Path, list[str]]  # of compile_all
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
_DIGEST = "\nSHA-256 of this page and of all its sources: "


@dataclass(frozen=True)
class Device:
    """The limits of one multiprocessor (CUDA programming guide, technical specifications).

    Attributes:
        threads: The most resident threads.
        blocks: The most resident blocks.
        shared_kib: KiB of shared memory.
        registers: The number of 32-bit registers.
    """

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
    """The path of nvcc; ends the program if there is none."""
    path = shutil.which("nvcc")
    if path is None:
        sys.exit("not run: needs nvcc")
    return path


def tool(name: str) -> str:
    """The path of cuobjdump or nvdisasm: from the CUDA toolkit, or from the triton package."""
    path = shutil.which(name)
    if path is not None:
        return path
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not bundled.is_file():
        sys.exit(f"not run: needs {name} (of the CUDA toolkit, or of the triton package)")
    return str(bundled)


def compile_all(jobs: list[Job]) -> None:
    """Compiles files, two at a time.

    Args:
        jobs: Source, compute capability such as 90 or "90a", output, further options.
    """
    compiler = nvcc()

    def compile_one(job: Job) -> None:
        source, architecture, cubin, flags = job
        command = [compiler, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", *flags]
        subprocess.run([*command, "-cubin", str(source), "-o", str(cubin)], check=True)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, jobs))


def newest_virtual() -> str:
    """The newest virtual architecture of this nvcc, such as "compute_121"."""
    text = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return max(text.split(), key=lambda name: int(name.removeprefix("compute_")))


def ptx_entries(architecture: str, folder: Path) -> set[str]:
    """Compiles all sources to PTX for a virtual architecture; returns the mangled names of the kernels."""
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


def architectures_in(binary: Path) -> tuple[list[str], list[str]]:
    """The architectures of the machine code and of the PTX in a binary."""
    architectures = []
    for what, suffix in (("--list-elf", "cubin"), ("--list-ptx", "ptx")):
        text = subprocess.run([tool("cuobjdump"), what, str(binary)], capture_output=True, text=True).stdout
        names = re.findall(rf"sm_(\d+)[a-z]?\.{suffix}", text)
        architectures.append([f"sm_{number}" for number in sorted(set(names), key=int)])
    return architectures[0], architectures[1]


def default_architectures(folder: Path) -> tuple[list[str], list[str]]:
    """The architectures of machine code and PTX in a build with the default for machines without a GPU."""
    binary = folder / "driver.fatbin"
    command = [nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-arch=all-major", "-fatbin"]
    subprocess.run([*command, str(CUDA / "driver.cu"), "-o", str(binary)], check=True)
    return architectures_in(binary)


def compiler_version() -> str:
    """The version of nvcc, such as "13.0"."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([0-9.]+)", text)
    return release[1] if release else "unknown"


def digest(script: Path, text: str) -> str:
    """SHA-256 of a page and of what it depends on besides nvcc: the sources of kernels and probes, and their readers.

    Args:
        script: The module that writes the page.
        text: The page, without the digest.
    """
    here = Path(__file__)
    kernels = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    code = [*here.parent.glob("*.cu"), here, script, Path(pages.__file__), Path(tables.__file__)]
    names = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in kernels + code} | {"": text.encode()}
    return sha256("".join(f"{name} {sha256(names[name]).hexdigest()}\n" for name in sorted(names)).encode()).hexdigest()


def main(description: str | None, name: str, write: Callable[[Path, str], str]) -> None:
    """The command line of a page that nvcc determines: writes it, or with ``--check`` compares the committed one.

    It is compiled anew only where the page or its sources have changed: the same nvcc makes the same of the same.

    Args:
        description: For ``--help``.
        name: The name of the page in ``docs/``.
        write: From a folder for compiled files and the version of nvcc to the text of the page.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed page, do not write it")
    check = parser.parse_args().check
    version, page, script = compiler_version(), DOCS / name, Path(inspect.getfile(write))
    committed, _, found = (page.read_text() if page.exists() else "").partition(_DIGEST)
    of = re.search(r"nvcc ([0-9]+(?:\.[0-9]+)*)", committed)
    if check and (of is None or of[1] != version):
        print(f"not run: docs/{name} is of nvcc {of[1] if of else '(none)'}, this is {version}")
        return
    if check and found == f"`{digest(script, committed)}`.\n":
        print(f"docs/{name} is of these sources and of nvcc {version}: nothing to compile")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = write(Path(folder), version)
    if not check:
        write_page(name, f"{text}{_DIGEST}`{digest(script, text)}`.\n")
    elif text == committed:
        print(f"docs/{name} is what nvcc {version} compiles, of other sources: run the command without --check")
    else:
        sys.exit(f"docs/{name} differs from what nvcc compiles: run the command without --check")
