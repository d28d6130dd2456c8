"""Whether a build makes CUDA code, and for which GPUs: the ones that are there, else every major generation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def cmake() -> str:
    program = shutil.which("cmake")
    if program is None:
        pytest.skip("needs cmake")
    return program


def fake_nvidia_smi(folder: Path, shell: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{shell}\n")
    program.chmod(0o755)


def value_of(variable: str, script: str, folder: Path, nvidia_smi: str | None, **environment: str) -> str:
    """What a script of cmake/ sets a variable to, with an nvidia-smi of these lines of shell, or none."""
    if nvidia_smi is not None:
        fake_nvidia_smi(folder, nvidia_smi)
    ask = folder / "ask.cmake"
    devices = f'set(device_folder "{folder}/dev")'
    ask.write_text(f'{devices}\ninclude({ROOT}/cmake/{script}.cmake)\nmessage("{{${{{variable}}}}}")\n')
    kept = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    done = subprocess.run(
        [cmake(), "-P", str(ask)], capture_output=True, text=True, env=kept | {"PATH": str(folder)} | environment
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
    assert value_of("CMAKE_CUDA_ARCHITECTURES", "architectures", tmp_path, nvidia_smi) == f"{{{architectures}}}"


@pytest.mark.parametrize(
    ("architectures", "nvcc", "with_wgmma"),
    [
        ("90", "12.9", "TRUE"),
        ("all-major", "13.0", "TRUE"),
        ("80;90-real", "12.0", "TRUE"),
        ("native", "13.0", "TRUE"),
        ("90", "11.8", "FALSE"),
        ("86;89", "13.0", "FALSE"),
        ("100;120", "13.0", "FALSE"),
    ],
)
def test_wgmma_is_built_for_its_architecture(tmp_path: Path, architectures: str, nvcc: str, with_wgmma: str) -> None:
    given = {"ARCHITECTURES": architectures, "ARCHITECTURES_NATIVE": "90-real", "COMPILER_VERSION": nvcc}
    lines = [f'set(CMAKE_CUDA_{name} "{value}")' for name, value in given.items()]
    ask = tmp_path / "ask.cmake"
    ask.write_text("\n".join([*lines, f"include({ROOT}/cmake/wgmma.cmake)", 'message("${with_wgmma}")']))
    done = subprocess.run([cmake(), "-P", str(ask)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == with_wgmma


def test_a_request_by_the_environment_is_left_to_cmake(tmp_path: Path) -> None:
    assert value_of("CMAKE_CUDA_ARCHITECTURES", "architectures", tmp_path, "echo 9.0", CUDAARCHS="80") == "{}"


@pytest.mark.parametrize(
    ("devices", "nvidia_smi", "in_sight"),
    [
        (["nvidia0"], None, "TRUE"),
        (["nvidia3", "nvidiactl"], "exit 9", "TRUE"),
        (["nvidiactl", "nvidia-uvm", "nvidia-modeset"], None, "FALSE"),  # the driver without a GPU
        ([], "echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)'", "TRUE"),
        (["dxg"], "echo 'GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-0)'", "TRUE"),
        (["dxg"], "echo 'No devices found.'", "FALSE"),
        ([], "echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)'; exit 9", "FALSE"),
        ([], "echo 'No devices found.'", "FALSE"),
        ([], None, "FALSE"),
    ],
)
def test_a_gpu_in_sight(tmp_path: Path, devices: list[str], nvidia_smi: str | None, in_sight: str) -> None:
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    assert value_of("gpu_in_sight", "gpu", tmp_path, nvidia_smi) == f"{{{in_sight}}}"


@pytest.mark.parametrize(
    ("variable", "option", "succeeds", "words"),
    [
        (None, None, True, "no CUDA kernels: no NVIDIA GPU was found when it was built (rebuild with FEC_CUDA=ON pip"),
        ("", None, True, "no NVIDIA GPU was found"),
        ("AUTO", None, True, "no NVIDIA GPU was found"),
        ("OFF", None, True, "no CUDA kernels: it was built with FEC_CUDA=OFF"),
        ("ON", None, False, "FEC_CUDA=ON, but there is no CUDA compiler"),
        ("on", None, False, "FEC_CUDA=on; one of AUTO, ON, OFF"),
        ("ON", "OFF", True, "it was built with FEC_CUDA=OFF"),  # the option overrides the environment
        ("OFF", "ON", False, "FEC_CUDA=ON, but there is no CUDA compiler"),
        (None, "yes", False, "FEC_CUDA=yes; one of AUTO, ON, OFF"),
    ],
)
def test_who_asks_for_cuda(
    tmp_path: Path, variable: str | None, option: str | None, succeeds: bool, words: str
) -> None:
    """On a machine without a GPU and without nvcc."""
    fake_nvidia_smi(tmp_path, "exit 9")
    environment = {name: value for name, value in os.environ.items() if name != "FEC_CUDA"}
    environment |= {"CUDACXX": "/nowhere/nvcc", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment |= {} if variable is None else {"FEC_CUDA": variable}
    options = [f"-Ddevice_folder={tmp_path}/dev", *([] if option is None else [f"-DFEC_CUDA={option}"])]
    command = [cmake(), "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DFEC_TESTS=ON", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode == 0) == succeeds, done.stderr
    assert words in " ".join((done.stdout + done.stderr).split())


def test_the_environment_counts_in_a_build_folder_that_is_used_again(tmp_path: Path) -> None:
    """pip uses its build folder again: what an earlier run chose by default must not stick."""
    environment = {name: value for name, value in os.environ.items() if name != "FEC_CUDA"}
    command = [cmake(), "-S", str(ROOT), "-B", str(tmp_path), "-DFEC_TESTS=ON", f"-Ddevice_folder={tmp_path}"]
    for value, refused in (("OFF", False), ("ON", True), ("OFF", False)):
        environment |= {"FEC_CUDA": value, "CUDACXX": "/nowhere/nvcc"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode != 0) == refused, done.stderr
