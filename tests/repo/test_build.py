"""For which GPUs a build makes code: the ones that are there, else every major generation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chosen(folder: Path, nvidia_smi: str | None, **environment: str) -> str:
    """What cmake/architectures.cmake sets, with an nvidia-smi of these lines of shell, or none."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    if nvidia_smi is not None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        program.chmod(0o755)
    script = folder / "ask.cmake"
    script.write_text(f'include({ROOT}/cmake/architectures.cmake)\nmessage("{{${{CMAKE_CUDA_ARCHITECTURES}}}}")\n')
    kept = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    done = subprocess.run(
        [cmake, "-P", str(script)], capture_output=True, text=True, env=kept | {"PATH": str(folder)} | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()  # STATUS goes to the standard output


@pytest.mark.parametrize(
    ("nvidia_smi", "architectures"),
    [
        ("echo 9.0", "90"),
        ("echo 8.6; echo 9.0; echo 8.6", "86;90"),
        ("echo 12.0", "120"),
        ("echo 6.1; echo 8.6", "86"),
        ("echo 6.1", "all-major"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "all-major"),
        ("echo 'No devices were found'", "all-major"),
        ("exit 0", "all-major"),
        (None, "all-major"),
    ],
)
def test_architectures_are_those_of_the_gpus_here(tmp_path: Path, nvidia_smi: str | None, architectures: str) -> None:
    assert chosen(tmp_path, nvidia_smi) == f"{{{architectures}}}"


def test_what_is_asked_for_is_left_to_cmake(tmp_path: Path) -> None:
    assert chosen(tmp_path, "echo 9.0", CUDAARCHS="80") == "{}"
