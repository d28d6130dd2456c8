"""Installations with and without a C++ compiler: what is missing is said, and what is broken is not hidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.optional import skip_without

ROOT = Path(__file__).parents[2]
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "cmake", "csrc", "pyproject.toml", "python")

# What a user does first, in an installation of its own.
SCRIPT = """
import sys, warnings
import torch
from torch import nn

import fec_fast
from fec_fast.scoring import reference

assert fec_fast.__file__.startswith(sys.argv[1]), fec_fast.__file__
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for axis in ("channels", "filters"):
        formula = fec_fast.Formula("rms", axis=axis)
        scores = fec_fast.score_model(model, formula=formula)
        for name in scores:
            want = reference.entropy(model.get_submodule(name).weight, formula)
            assert torch.allclose(scores[name], want, rtol=0, atol=1e-6), (name, scores[name], want)
    result = fec_fast.prune(model, torch.randn(1, 3, 9, 9), ratio=0.5)
assert scores.backend == "torch" and result.model[0].out_channels == 4
texts = [str(one.message) for one in told if one.category is fec_fast.FecWarning and "kernels" in str(one.message)]
assert len(texts) == 1 and "apt install g++" in texts[0], texts

from typer.testing import CliRunner

from fec_fast.cli.app import app

said = CliRunner().invoke(app, ["doctor"]).stdout
lines = {line.split()[2]: line for line in said.splitlines() if line.split()[1:2] == ["backend"]}
assert lines["cpu"].startswith("missing") and "C++ compiler" in lines["cpu"], said
assert lines["torch"].startswith("note") and "in place of the compiled kernels" in lines["torch"], said
said = CliRunner().invoke(app, ["info"]).stdout
assert "cpu: not built (not in this installation" in said and "torch: usable" in said, said
"""


def installed(folder: Path, sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Installs the package from its sources, with the build tools of this environment: nothing is downloaded."""
    skip_without("scikit_build_core", "setuptools_scm", "pybind11")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", "-v", *options, str(sources)]
    kept = {name: value for name, value in os.environ.items() if name not in ("FEC_NATIVE", "FEC_CUDA", "PYTHONPATH")}
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment)


def copy_of_sources(folder: Path) -> Path:
    """The files of a source distribution, without compiled ones."""
    target = folder / "sources"
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("native", [None, "OFF"], ids=["no compiler", "FEC_NATIVE=OFF"])
def test_without_a_compiler_everything_works(tmp_path: Path, native: str | None) -> None:
    target = tmp_path / "installed"
    environment = {"CXX": "/nowhere/c++", "CC": "/nowhere/cc"} | ({} if native is None else {"FEC_NATIVE": native})
    done = installed(target, copy_of_sources(tmp_path), **environment)
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, output
    assert ("(CXX=/nowhere/c++): installed WITHOUT the compiled kernels" in output) == (native is None)
    assert not list(target.rglob("_native*.so"))
    tags = next(target.glob("*.dist-info/WHEEL")).read_text()
    assert ("py3-none-any" in tags) == (native == "OFF")
    if native is None:
        environment = os.environ | {"PYTHONPATH": str(target)}
        command = [sys.executable, "-c", SCRIPT, str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_kernels_that_do_not_compile_are_an_error(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs a C++ compiler")
    (sources / "csrc" / "cpu" / "dispatch.cpp").write_text("#error planted\n")
    done = installed(tmp_path / "installed", sources, FEC_CUDA="OFF", CMAKE_BUILD_PARALLEL_LEVEL="1")
    assert done.returncode != 0 and "planted" in done.stdout + done.stderr
    assert not (tmp_path / "installed" / "fec_fast").exists()


def configured(folder: Path, *options: str, **environment: str) -> tuple[bool, str]:
    """Whether CMake accepts the configuration, and what it says."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    kept = {name: value for name, value in os.environ.items() if name not in ("FEC_NATIVE", "FEC_CUDA", "CXX", "CC")}
    command = [cmake, "-S", str(ROOT), "-B", str(folder / "build"), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | environment)
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("environment", "options", "succeeds", "words"),
    [
        ({}, [], True, "installed WITHOUT the compiled kernels"),
        ({"FEC_NATIVE": "AUTO"}, [], True, "FEC_NATIVE=ON makes this an error"),
        ({"FEC_NATIVE": "ON"}, [], False, "no C++ compiler that works was found (CXX=/nowhere/c++), and FEC_NATIVE=ON"),
        ({"FEC_CUDA": "ON"}, [], False, "no C++ compiler that works was found"),
        ({}, ["-DFEC_TESTS=ON"], False, "no C++ compiler that works was found"),
        ({"FEC_NATIVE": "yes"}, [], False, "FEC_NATIVE=yes; one of AUTO, ON, OFF"),
    ],
)
def test_who_asks_for_the_kernels(
    tmp_path: Path, environment: dict[str, str], options: list[str], succeeds: bool, words: str
) -> None:
    done, said = configured(tmp_path, *options, CXX="/nowhere/c++", **environment)
    assert done == succeeds and words in said, said


def test_a_compiler_that_compiles_nothing_is_none(tmp_path: Path) -> None:
    """Such as the one of macOS before its tools are installed; with one that works, the same folder has the kernels."""
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done, said = configured(tmp_path, CXX=str(broken))
    assert done and "WITHOUT the compiled kernels" in said
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs a C++ compiler")
    done, said = configured(tmp_path, "-DFEC_TESTS=ON", FEC_CUDA="OFF")
    assert done and "WITHOUT" not in said and "built with FEC_CUDA=OFF" in said
