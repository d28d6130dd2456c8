"""The Triton kernels: interpreted and compiled ahead of time, in processes of their own; messages without a GPU."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import triton_resources
from fec_fast.scoring import ops
from fec_fast.scoring.backends import triton
from fec_fast.scoring.backends.registry import backends
from fec_fast.scoring.backends.triton_group import Launcher
from fec_fast.scoring.backends.triton_table import FIELDS
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
    assert int(said.split()[0]) >= 150 and said.split()[1] == "comparisons"


@pytest.mark.slow
@needs_triton
def test_products_and_launches_in_the_interpreter() -> None:
    launches = json.loads(run("triton_products.py", TRITON_INTERPRET="1").splitlines()[-1])
    # Sorted: two kernels for each of two sizes, and the one for tau. All pairs: five, and these for layers of one tap.
    assert launches == {"between filters": 6, "sorted": 5, "all pairs inside": 10}


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("architecture", ["80", "90", "120"])
def test_compiled_ahead_of_time(architecture: str) -> None:
    report = json.loads(run("triton_compiled.py", "cuda", architecture, "32"))
    assert report["float32 sums"] == [1, 1]  # the compiler could give all sums to the tensor cores, which truncate
    assert len(report["resources"]) == len(triton_resources.FREQUENT)
    assert report["vector accesses"] == []
    for what, takes in report["resources"].items():
        assert takes["shared"] <= triton_resources.SHARED[int(architecture)], (what, takes)
        assert takes["stack"] <= 16, (what, takes)  # the kernels that run most do not spill, but for a register or two


@pytest.mark.slow
@needs_triton
def test_compiled_for_an_amd_gpu() -> None:
    report = json.loads(run("triton_compiled.py", "hip", "gfx942", "64"))
    assert report["float32 sums"] == [1, 1] and len(report["resources"]) == len(triton_resources.FREQUENT)
    assert all(takes["shared"] <= 64 << 10 for takes in report["resources"].values())


def test_the_kernels_read_the_columns_that_the_table_has() -> None:
    """The functions of triton_parts stand in the order of the table's fields and read one column each, or say more."""
    source = (Path(triton.__file__).parent / "triton_parts.py").read_text()
    columns = {
        int(number)
        for number in re.findall(r"tl\.load\(entry(?: \+ (\d+))?\)", source.replace("(entry)", "(entry + 0)"))
    }
    assert columns == set(range(len(FIELDS)))
    assert f"table + layer * {len(FIELDS)}\n" in source
    for name, read in {
        "filters": "filters_of",
        "channels": "channels_of",
        "taps": "taps_of",
        "stride_channel": "channel_stride_of",
        "stride_tap": "tap_stride_of",
        "coordinates": "coordinates_of",
        "flat": "is_flat",
        "first_filter": "first_filter_of",
        "first_number": "first_number_of",
        "width": "width_of",
        "first_tile": "first_tile_of",
        "first_sum": "first_sum_of",
        "sums": "sums_of",
    }.items():
        body = source.split(f"def {read}(entry):")[1].split("@triton.jit")[0]
        assert f"tl.load(entry + {FIELDS.index(name)})" in body, name


def test_a_compiled_kernel_is_launched_without_a_lookup() -> None:
    """As Triton's tutorials do it: ``kernel[grid](*arguments, *constants)``, with what the first launch returned."""
    calls: list[Any] = []

    class Compiled:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments: calls.append(("compiled", grid, arguments))

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **options: Any) -> Compiled:
                calls.append(("looked up", grid, arguments, options))
                return Compiled()

            return launch

    launch = Launcher(Kernel(), 7, {"TILE": 64, "STEP": 32}, num_warps=8)
    launch("table", "halves")
    launch("table", "others")
    launch("table", "others", programs=3)
    assert calls == [
        ("looked up", (7,), ("table", "halves"), {"TILE": 64, "STEP": 32, "num_warps": 8}),
        ("compiled", (7, 1, 1), ("table", "others", 64, 32)),
        ("compiled", (3, 1, 1), ("table", "others", 64, 32)),
    ]


@needs_triton
def test_a_capture_needs_a_call_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph cannot hold the copy of a new table; the remedy is given, and nothing was made."""
    weight = SimpleNamespace(
        device=torch.device("cuda"), shape=(2, 2), dtype=torch.float32, data_ptr=lambda: 1, stride=lambda: (2, 1)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    before = len(triton._plans)
    with pytest.raises(BackendError, match="call once with the same weights and formula, then capture"):
        triton.entropies([weight], Formula(), axes=[0], groups=[1])  # type: ignore[list-item]
    assert len(triton._plans) == before


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
