"""The extension with its CUDA kernels compiled by g++ against the emulator, for the Python tests.

``module()`` builds it once and imports it; ``backend(monkeypatch)`` puts it behind
``fec_fast.scoring.backends.cuda``, whose
tensors are then the CPU's.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from fec_fast.scoring.backends import cuda

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "tests" / "kernels" / "cpp" / "emulator"
CUDA = ["driver", "sorted/sorted_f32", "sorted/sorted_f64", "pairwise/pairwise_f32", "pairwise/pairwise_f64"]


@functools.cache
def module() -> ModuleType:
    """Builds and imports it; skips the test where that cannot be."""
    if shutil.which("g++") is None or sysconfig.get_config_var("MACHDEP") != "linux":
        pytest.skip("the emulator needs g++ on Linux")
    if "x86_64" not in sysconfig.get_platform():
        pytest.skip("the emulator needs x86-64")
    pybind11 = pytest.importorskip("pybind11")
    folder = Path(tempfile.mkdtemp(prefix="fec-emulated-"))
    try:
        csrc = ROOT / "csrc"
        includes = [csrc, EMULATOR, pybind11.get_include(), sysconfig.get_path("include")]
        flags = ["-std=gnu++17", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-DFEC_EMULATOR", "-DFEC_WITH_CUDA"]
        flags += [f"-I{path}" for path in includes]
        sources = [csrc / "cuda" / f"{name}.cu" for name in CUDA]
        sources += [csrc / "bindings.cpp"]
        sources += [EMULATOR / f"{name}.cpp" for name in ("emulator", "tensor_cores", "no_cpu_kernels")]

        def build(source: Path) -> str:
            out = folder / f"{source.stem}.o"
            subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", out], check=True)
            return str(out)

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(build, sources))
        library = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        subprocess.run(["g++", "-shared", *objects, "-o", library], check=True)
        spec = importlib.util.spec_from_file_location("_native", library)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        shutil.rmtree(folder)


def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Makes the backend ``cuda`` run in the emulator, on CPU tensors, and returns its compiled module."""
    compiled: ModuleType = module().cuda
    monkeypatch.setattr(cuda, "compiled", lambda: compiled)
    monkeypatch.setattr(cuda, "stream_of", lambda device: (0, 0))
    return compiled
