"""The extension with its CUDA kernels compiled by g++ against the emulator, for the Python tests.

``module()`` builds it once and imports it; ``backend(monkeypatch)`` puts it behind
``fec_fast.scoring.backends.cuda``, whose
tensors are then the CPU's.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.gpu.nvcc import FILES, WARPGROUP_FILE
from fec_fast.scoring.backends import cuda

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".pytest_cache" / "emulator"
EMULATOR = ROOT / "tests" / "kernels" / "cpp" / "emulator"


def digest(files: list[Path], *more: str) -> str:
    """Returns a checksum of the contents of files, in their order, and of strings."""
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256("\n".join([*sums, *more]).encode()).hexdigest()[:32]


def compile_extension(library: Path, flags: list[str], sources: list[Path]) -> None:
    """Compiles and links, and puts the result in its place at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compile_source(source: Path) -> str:
            out = Path(folder, f"{source.stem}.o")
            subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", out], check=True)
            return str(out)

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_source, sources))
        subprocess.run(["g++", "-shared", *objects, "-o", Path(folder, "library")], check=True)
        Path(folder, "library").rename(library)


@functools.cache
def module() -> ModuleType:
    """Compiles the extension and imports it; skips the test where that is not possible.

    The library stays in pytest's cache under a checksum of its sources, compiler and flags, so that further processes
    and runs find it.
    """
    if shutil.which("g++") is None or sysconfig.get_config_var("MACHDEP") != "linux":
        pytest.skip("the emulator needs g++ on Linux")
    if "x86_64" not in sysconfig.get_platform():
        pytest.skip("the emulator needs x86-64")
    import fcntl

    pybind11 = pytest.importorskip("pybind11")
    csrc = ROOT / "csrc"
    includes = [csrc, EMULATOR, pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=gnu++17", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-DFEC_EMULATOR", "-DFEC_WITH_CUDA"]
    flags.append("-DFEC_WITH_WGMMA")
    flags += [f"-I{path}" for path in includes]
    sources = [csrc / "cuda" / f"{name}.cu" for name in (*FILES, WARPGROUP_FILE)]
    sources += [csrc / "bindings.cpp"]
    sources += [EMULATOR / f"{name}.cpp" for name in ("emulator", "runtime", "tensor_cores", "no_cpu_kernels")]
    read = sorted(path for folder in (csrc, EMULATOR) for path in folder.rglob("*") if path.is_file())
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    key = digest(read, *flags, compiler, pybind11.__version__, sys.version)
    CACHE.mkdir(parents=True, exist_ok=True)
    library = CACHE / f"{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process compiles, the others wait
        if not library.exists():
            for stale in CACHE.glob("*.so"):
                stale.unlink()
            compile_extension(library, flags, sources)
    spec = importlib.util.spec_from_file_location("_native", library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Makes the backend ``cuda`` run in the emulator, on CPU tensors, and returns its compiled module."""
    compiled: ModuleType = module().cuda
    monkeypatch.setattr(cuda, "compiled", lambda: compiled)
    monkeypatch.setattr(cuda, "stream_of", lambda device: (0, 0))
    return compiled
