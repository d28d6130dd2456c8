"""The Python tests of the kernels under the sanitizers of GCC: builds the extension with one, and runs pytest with it.

``python -m helpers.sanitized address`` (in ``tests``), or ``thread``; a folder to build in, and arguments for pytest, may
follow. Without them the fast tests of tests/kernels/test_parity.py run, and those of the removed sets that need no other
process. As a plugin of pytest (``-p helpers.sanitized``) this module puts the extension in the place of the ordinary one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Under the thread sanitizer the kernels run on std::threads, which it sees, and not on OpenMP's, which it does not.
FLAGS = {
    "address": ["-DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=undefined"],
    "thread": ["-DFEC_OPENMP=OFF", "-DCMAKE_CXX_FLAGS=-fsanitize=thread"],
}
# Python and torch keep memory to their end, and were not compiled for these tools.
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": f"halt_on_error=1 suppressions={ROOT / 'tests/kernels/cpp/foreign.tsan'}"},
}
SELECTION = [
    "tests/kernels/test_parity.py",
    "tests/reliability/test_removed_sets.py",
    "-k",
    "every_kind or equal_channels or known_value or too_large or number_of_threads or test_threads or test_instruction",
]
_VARIABLE = "FEC_SANITIZED_EXTENSION"


def build(sanitizer: str, folder: Path) -> Path:
    """Builds the extension, if it is not there, and returns its file."""
    import pybind11

    python = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    options = ["-DFEC_TESTS=ON", "-DFEC_CUDA=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", *FLAGS[sanitizer], *python]
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert cmake is not None, "needs cmake"
    subprocess.run([cmake, "-S", ROOT, "-B", folder, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", folder, "--target", "_native"], check=True, stdout=subprocess.DEVNULL)
    (extension,) = folder.glob("_native*.so")
    return extension


def library(sanitizer: str) -> str:
    """The sanitizer's library, which has to be loaded before everything else."""
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    return subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()


def run(sanitizer: str, folder: Path, arguments: list[str]) -> int:
    """Runs pytest in a process of its own; returns its exit code."""
    environment = os.environ | OPTIONS[sanitizer] | {_VARIABLE: str(build(sanitizer, folder))}
    paths = [str(ROOT / "python"), str(ROOT / "tests"), str(ROOT)]
    environment |= {"LD_PRELOAD": library(sanitizer), "PYTHONPATH": os.pathsep.join(paths)}
    pytest = [sys.executable, "-m", "pytest", "-p", "helpers.sanitized", "-n0", "-q", "--no-header"]
    return subprocess.run([*pytest, *(arguments or SELECTION)], env=environment, cwd=ROOT, check=False).returncode


def _replace_extension(file: str) -> None:
    import fec_fast.scoring.backends as package

    name = f"{package.__name__}._native"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


if __name__ == "__main__":
    chosen = sys.argv[1]
    where = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / ".pytest_cache" / f"sanitized-{chosen}"
    sys.exit(run(chosen, where.absolute(), sys.argv[3:]))
elif _VARIABLE in os.environ:
    _replace_extension(os.environ[_VARIABLE])
