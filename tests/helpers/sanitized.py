"""The Python tests of the kernels under the sanitizers of GCC: builds the extension with one, and runs pytest with it.

``python -m helpers.sanitized address`` (in ``tests``), or ``thread``; a folder to build in, and arguments for pytest in
place of ``SELECTION``, may follow. As a plugin of pytest (``-p helpers.sanitized``) this module puts the extension in
the place of the ordinary one.
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
    "thread": {"TSAN_OPTIONS": "halt_on_error=1"},
}
# Fast tests that start no process: another would not have the sanitizer's library.
SELECTION = [
    "tests/kernels/test_parity.py",
    "tests/reliability/test_removed_sets.py",
    "-k",
    "every_kind or equal_channels or known_value or too_large or number_of_threads or test_threads or test_instruction",
]
_VARIABLE = "FEC_SANITIZED_EXTENSION"
# Reads five numbers where there are four: the address sanitizer must end this process.
PLANTED = """
import helpers.sanitized
import torch
from fec_fast.scoring.backends import _native
weight, result = torch.rand(4), torch.zeros(5, dtype=torch.float64)
words = dict(compress="none", entropy="similarity", axis="filters", tau=0.0, tau_scale=1.0, threads=1)
_native.entropies([(weight.data_ptr(), "float32", False, 1, 5, 1, 1, 0, 1, 1, 1)], [result.data_ptr()], **words)
"""


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


def libraries(sanitizer: str) -> str:
    """What has to be loaded before everything else: the sanitizer, and the library whose exceptions it looks at."""
    names = [{"address": "libasan.so", "thread": "libtsan.so"}[sanitizer], "libstdc++.so"]
    ask = [["g++", f"-print-file-name={name}"] for name in names]
    answers = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() for command in ask]
    return " ".join(str(Path(answer).resolve()) for answer in answers)


def run(sanitizer: str, folder: Path, arguments: list[str]) -> int:
    """Runs pytest in a process of its own; returns its exit code."""
    environment = os.environ | OPTIONS[sanitizer] | {_VARIABLE: str(build(sanitizer, folder))}
    paths = [str(ROOT / "python"), str(ROOT / "tests"), str(ROOT)]
    environment |= {"LD_PRELOAD": libraries(sanitizer), "PYTHONPATH": os.pathsep.join(paths)}
    if sanitizer == "address":
        planted = subprocess.run([sys.executable, "-c", PLANTED], env=environment, capture_output=True, text=True)
        assert "heap-buffer-overflow" in planted.stderr, f"the sanitizer saw nothing: {planted.stderr[-2000:]}"
    pytest = [sys.executable, "-m", "pytest", "-p", "helpers.sanitized", "-n0", "-q", "--no-header"]
    return subprocess.run([*pytest, *(arguments or SELECTION)], env=environment, cwd=ROOT, check=False).returncode


def _replace_extension(file: str) -> None:
    assert "fec_fast" not in sys.modules, "the package has loaded the ordinary extension"
    name = "fec_fast.scoring.backends._native"
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
