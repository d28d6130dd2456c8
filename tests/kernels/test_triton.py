"""The Triton kernels: interpreted and compiled ahead of time, in processes of their own; messages without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fec_fast.scoring import ops
from fec_fast.scoring.backends import triton
from fec_fast.scoring.backends.registry import backends
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError
from helpers.processes import run_python

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not triton.installed() or triton.is_too_old(), reason="needs triton 3.4")


def run(script: str, *arguments: str, **environment: str) -> str:
    done = run_python(HERE / script, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_every_kernel_in_the_interpreter() -> None:
    said = run("triton_interpreted.py", TRITON_INTERPRET="1")
    assert int(said.split()[0]) >= 90 and said.split()[1] == "comparisons"


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_compiled_ahead_of_time(architecture: str) -> None:
    report = json.loads(run("triton_compiled.py", "cuda", architecture, "32"))
    assert len(report) == 32
    for what, takes in report.items():
        # 48 KiB need no opt-in. Only the float64 scans, which run few programs, use more than 128 registers.
        assert takes["shared"] <= 48 << 10, (what, takes)
        assert takes["registers"] <= (232 if "scan_rows fp64" in what else 128), (what, takes)
        assert takes["stack"] <= (64 if "sort_rows fp64" in what else 0), (what, takes)  # float64 spills a little


@needs_triton
def test_compiled_for_an_amd_gpu() -> None:
    report = json.loads(run("triton_compiled.py", "hip", "gfx942", "64"))
    assert len(report) == 32 and all(takes["shared"] <= 64 << 10 for takes in report.values())


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_the_reason_is_given() -> None:
    info = backends()["triton"]
    assert info.built and not info.usable and "sees no GPU" in info.reason
    with pytest.raises(BackendError, match="the backend 'triton' cannot run"):
        ops.entropies([torch.ones(3, 3)], Formula(), axes=[0], groups=[1], backend="triton")


@pytest.mark.parametrize(("found", "old"), [("3.2.0", True), ("3.3.1+git", True), ("3.4.0", False), ("4.0", False)])
def test_versions_that_compute_wrongly_are_refused(monkeypatch: pytest.MonkeyPatch, found: str, old: bool) -> None:
    monkeypatch.setattr(triton, "installed_version", lambda: found)
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: True)
    assert ("computes these kernels wrongly" in triton.trouble()) == old


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed_version", lambda: None)
    info = backends()["triton"]
    assert not info.built and "pip install triton" in info.reason
