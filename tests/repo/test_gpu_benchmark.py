"""``python -m benchmarks.gpu`` with the emulator in place of a device: its comparisons, its command, its table.

What is CUDA's own (events, streams, graphs) is a stand-in; a captured graph is the launches that were made, and a
replay makes them again, in a workspace of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import grams, throughput, timing
from benchmarks.gpu import parity as gpu_parity
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.page import table_of_throughput
from benchmarks.gpu.rows import Row, measure_rows
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.backends.registry import resolve
from fec_fast.scoring.formula import Formula
from helpers import emulated

pytestmark = pytest.mark.slow  # compiles the emulator


class Recorder:
    """The compiled module; between `begin` and `end` it remembers the launches."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.Error, self.has_wgmma_for = module, module.Error, module.has_wgmma_for
        self.taken: list[Callable[[], None]] | None = None

    def Call(self, rows: Any, **choice: Any) -> Any:  # noqa: N802  (the module's name for it)
        call = self.module.Call(rows, **choice)

        def launch(results: list[int], workspace: int, size: int, number: int, stream: int) -> None:
            call.launch(results, workspace, size, number, stream)
            if self.taken is not None:
                self.taken.append(lambda: again(results))

        def again(results: list[int]) -> None:
            workspace = torch.full((call.workspace_bytes() + 64,), 0xFF, dtype=torch.uint8)
            call.launch(results, workspace.data_ptr() + -workspace.data_ptr() % 64, call.workspace_bytes(), 0, 0)

        return SimpleNamespace(workspace_bytes=call.workspace_bytes, launch=launch)


class Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, on the emulator."""
    recorder = Recorder(emulated.backend(monkeypatch))
    monkeypatch.setattr(cuda, "compiled", lambda: recorder)
    package = sys.modules[resolve.__module__]
    monkeypatch.setitem(package._BACKENDS, "cuda", lambda: package.BackendInfo("cuda", True, True, ""))
    monkeypatch.setattr(ops, "_check_devices", lambda weights, backend: None)

    def operator(*arguments: Any) -> Any:
        """What the operator does for CUDA tensors, which the dispatcher would have to see."""
        call = ops._Arguments(*arguments)
        return cuda.entropies(call.weights, call.formula, **call.layout, apart=True)

    monkeypatch.setattr(torch.ops.fec_fast, "entropy", operator)
    resolved = package.resolve
    monkeypatch.setattr(ops, "resolve", lambda backend, device="cpu": resolved(backend, "cuda"))

    class Graph:
        def __init__(self) -> None:
            self.launches: list[Callable[[], None]] = []

        def replay(self) -> None:
            for launch in self.launches:
                launch()

    @contextlib.contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        recorder.taken = []
        yield
        graph.launches, recorder.taken = recorder.taken, None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    properties = SimpleNamespace(multi_processor_count=1, total_memory=2**30)
    for name, value in {
        "Event": Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "synchronize": lambda: None,
        "get_device_properties": lambda number: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_parity, "DEVICE", "cpu")
    return gpu_run


def test_every_comparison_is_made_and_holds(gpu: ModuleType) -> None:
    result = gpu_parity.parity(((4, 5, 3, 3), (30, 26, 1, 1)))
    assert result["failures"] == [] and result["backends"] == ["cuda"]
    assert result["checks"] > 800 and 0 < result["worst share of the tolerance"] < 1
    assert gpu_parity.graph() == []


def test_an_error_beyond_the_tolerance_is_reported(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "tolerance", lambda dtype, points: 1e-17)
    failures = gpu_parity.parity(((2, 3, 1, 1),))["failures"]
    assert any("cuda sorted [2, 3, 1, 1] axis 0 torch.float32 similarity" in failure for failure in failures)
    monkeypatch.setattr(Recorder, "Call", lambda self, rows, **choice: self.module.Call(rows, **choice))
    cuda._prepared.cache_clear()  # calls that were prepared before still record their launches
    assert "a replayed graph returns other entropies" in gpu_parity.graph()[0]  # nothing is launched again


def test_the_weights_of_a_network_are_compared(gpu: ModuleType, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    result = gpu_parity.network_parity("resnet50", "cuda")
    assert result["failures"] == [] and 0 < result["worst share of the tolerance"] < 1
    monkeypatch.setattr(reference, "tolerance", lambda dtype, points: 1e-17)
    failures = gpu_parity.network_parity("resnet50", "cuda")["failures"]
    assert len(failures) == 12 and "cuda resnet50 convolution 1 torch.float16" in failures[-1]


def test_wgmma_is_compared_and_timed_where_it_is(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only in its own rows: what multiplies there is seen in the calls that are prepared."""
    monkeypatch.delenv("FEC_FAST_TENSOR_CORES", raising=False)
    monkeypatch.setattr(gpu_parity, "WARPGROUPS", ((30, 26, 1, 1),))
    used: list[str] = []
    call = Recorder.Call

    def watched(self: Recorder, rows: Any, **choice: Any) -> Any:
        used.append(choice["tensor_cores"])
        return call(self, rows, **choice)

    monkeypatch.setattr(Recorder, "Call", watched)
    rows = {row.name: row for row in gpu_parity.parity_rows() if row.section == "wgmma"}
    assert set(rows) == {"shapes [30, 26, 1, 1]", "graphs", "weights of resnet50"}
    cuda._prepared.cache_clear()
    assert rows["graphs"].measure() == {"failures": []} and set(used) == {"wgmma"}
    used.clear()
    assert gpu_parity.graph() == [] and set(used) == {"mma"}
    timed = [name for name, _, _ in throughput.sides(throughput.Network("resnet50")) if "wgmma" in name]
    assert timed == [f"between filters, wgmma{suffix}" for suffix in throughput.DTYPES]
    assert [row.name for row in throughput.kernel_rows() if "wgmma" in row.name] == ["between filters, wgmma"] * 3
    monkeypatch.setattr(cuda, "_has_wgmma", lambda module, device: False)
    assert not any("wgmma" in row.section + row.name for row in gpu_parity.parity_rows())


def test_parity_has_rows_of_both_backends_and_both_sanitizers(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {name: SimpleNamespace(usable=True) for name in ("cuda", "triton")}
    monkeypatch.setattr(gpu_parity, "backends", lambda: usable)
    rows = [(row.section, row.name) for row in gpu_run.rows_of("parity", 2)]
    assert len(rows) == len(set(rows)) == len(gpu_parity.ALL) + 6
    for section in ("graphs", "weights of resnet50"):
        assert {(section, "cuda"), (section, "triton")} <= set(rows)
    assert rows[-2:] == [("compute-sanitizer", "memcheck"), ("compute-sanitizer", "racecheck")], "they take longest"


SANITIZER_RUNS = {
    "sound": (0, '{"failures": []}\n========= RACECHECK SUMMARY: 0 hazards\n', [], "RACECHECK SUMMARY: 0 hazards"),
    "wrong": (0, '{"failures": ["cuda [2]"]}\n= ERROR SUMMARY: 0 errors\n', ["under racecheck: cuda [2]"], "ERROR"),
    "hazard": (1, '{"failures": []}\n= RACECHECK SUMMARY: 1 hazard\n', ["racecheck failed (1)"], "1 hazard"),
    "crashed": (2, "cannot start\n", ["racecheck failed (2): cannot start"], ""),
}


@pytest.mark.parametrize("kind", SANITIZER_RUNS)
def test_what_compute_sanitizer_says(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    code, printed, failures, summary = SANITIZER_RUNS[kind]
    commands = []

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(stdout=printed, returncode=code)

    monkeypatch.setattr(gpu_parity.shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(gpu_parity.subprocess, "run", run)
    result = gpu_parity.sanitized("racecheck")
    assert result is not None and summary in result["summary"] and len(result["failures"]) == len(failures)
    assert all(found.startswith(wanted) for found, wanted in zip(result["failures"], failures, strict=True))
    assert commands[0][:3] == ["/somewhere/compute-sanitizer", "--tool", "racecheck"] and commands[0][-1] == "--small"


def test_compute_sanitizer_that_takes_too_long_or_is_missing(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_parity.subprocess, "run", too_long)
    monkeypatch.setattr(gpu_parity.shutil, "which", lambda name: f"/somewhere/{name}")
    assert gpu_parity.sanitized("memcheck") is None
    monkeypatch.setattr(gpu_parity.shutil, "which", lambda name: None)
    assert gpu_parity.sanitized("memcheck") == {"not run": "no compute-sanitizer on the PATH", "failures": []}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, shapes and Grams that the emulator has done in seconds."""
    models = pytest.importorskip("torchvision.models")

    def get_model(name: str, weights: None) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 6, 1))

    monkeypatch.setattr(models, "get_model", get_model)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(gpu_parity, "ALL", ((2, 3, 1, 1), (3, 2, 1, 1)))
    monkeypatch.setattr(gpu_parity, "has_wgmma", lambda: False)  # its rows have a test of their own
    monkeypatch.setattr(throughput, "_COPIED", 1 << 16)
    monkeypatch.setattr(throughput, "kernel_microseconds", lambda function: function() and {"kernel": 1.5})
    monkeypatch.setattr(grams, "SIZES", ((64, 8),))
    monkeypatch.setattr(gpu_parity, "sanitized", lambda check: {"summary": f"{check}: 0", "failures": []})


@pytest.fixture
def command(gpu: ModuleType, small: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> Any:
    """The command with calls in place of its processes; returns what it prints."""
    builds = []

    def run_part(part: str, runs: int, seconds: float, most: float) -> Any:
        assert seconds <= most
        with capsys.disabled():
            gpu.begin("Emulated GPU 1", dirty_too=True)
        return gpu.measure(part, "Emulated GPU 1", runs, seconds)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gpu", "--runs", "2", *arguments])
        gpu.main()
        return str(capsys.readouterr().out)

    here = {"machine": {}, "versions": {"torch": "1"}, "commit": "0123", "date": "2026-01-01"}
    monkeypatch.setattr(gpu, "environment", lambda *packages: here)
    monkeypatch.setattr(gpu, "run_number", lambda result, *packages: len(result.setdefault("runs", [here])) - 1)
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "device_name", lambda: "Emulated GPU 1")
    monkeypatch.setattr(gpu, "build", lambda: builds.append(1) or {"architecture": "none"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="1.0, 1 MHz\n", returncode=0))
    return SimpleNamespace(run=run, builds=builds, here=here, path=tmp_path / "gpu-emulated-gpu-1.json")


def test_the_command_writes_its_results(command: Any) -> None:
    printed = command.run()
    assert "no time was left" not in printed
    result = json.loads(command.path.read_text())
    assert list(result["parity"]["shapes"]) == ["[2, 3, 1, 1]", "[3, 2, 1, 1]"]
    assert result["parity"]["graphs"] == {"cuda": {"failures": []}}
    assert set(result["parity"]["compute-sanitizer"]) == {"memcheck", "racecheck"}
    assert set(result["throughput"]) == set(result["kernels"]) == {"resnet50", "resnet152", "wide_resnet101_2"}
    rows = set(result["throughput"]["resnet50"])
    for row in ("sorted, rms", "between filters"):
        assert {row, f"{row}, host"} <= rows
        for kind in (row, f"{row}, float16", f"{row}, bfloat16"):
            assert {kind, f"{kind}, as a CUDA graph"} <= rows
    for row in ("torch.cdist between filters, distances alone", "addmm, sqrt, exp between filters"):
        assert {row, f"{row}, as a CUDA graph"} <= rows
    assert {
        "addmm, sqrt, exp between filters, torch.compile, as a CUDA graph",
        "all weights in one tensor, copied",
    } <= rows
    assert {"score_model, rms, end to end", "score_model, between filters, end to end"} <= rows
    assert result["kernels"]["resnet50"]["between filters"] == {"kernel": 1.5}
    assert result["grams"]["card"]["copy bandwidth, GB/s"] > 0
    errors = {name: row["error"] for name, row in result["grams"]["64 x 8"].items()}
    assert errors["one product, float64"] == 0 and all(error < 1e-5 for error in errors.values()) and len(errors) == 4
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert lines[:2] == ["|  | resnet50 | resnet152 | wide_resnet101_2 |", "| --- | --- | --- | --- |"]
    assert len(lines) == 2 + len(rows) and all(line.count("|") == 5 for line in lines)
    assert result["gpu"]["multiprocessors"] == 1 and result["build"] == {"architecture": "none"}
    assert [path.name for path in command.path.parent.iterdir()] == ["gpu-emulated-gpu-1.json"]


def test_what_was_cut_off_goes_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_run.PARTS, "throughput", 0)
    printed = command.run()
    missing = printed.split("goes on with them:\n")[1].splitlines()
    assert "  resnet50: sorted, rms" in missing and len(missing) == len(set(missing))
    first = json.loads(command.path.read_text())
    assert "throughput" not in first and "grams" in first
    monkeypatch.setitem(gpu_run.PARTS, "throughput", 100)

    def again(*arguments: Any) -> None:
        raise AssertionError("what is there is measured again")

    monkeypatch.setattr(gpu_parity, "parity", again)
    monkeypatch.setattr(grams, "measured", again)
    assert "no time was left" not in command.run()
    second = json.loads(command.path.read_text())
    assert len(missing) == sum(map(len, second["throughput"].values()))
    assert second | {"throughput": None} == first | {"throughput": None} and command.builds == [1]


def test_a_row_is_written_before_the_next_is_begun(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.json", []

    def measure(value: int) -> int | None:
        seen.append(json.loads(path.read_text()) if path.exists() else {})
        return value or None

    table = [Row("s", str(i), lambda i=i: measure(i)) for i in (1, 0, 2)]
    assert measure_rows(path, "part", table, 100) == ["s: 0"], "a row without a result is left out"
    assert seen == [{}, {"part": {"s": {"1": 1}}}, {"part": {"s": {"1": 1}}}]
    assert measure_rows(path, "part", table, 0) == ["s: 0"] and len(seen) == 3


def test_another_commit_begins_anew(command: Any) -> None:
    command.run()
    command.here["commit"] = "4567"
    with pytest.raises(SystemExit, match=r"not timed, shapes \[2, 3, 1, 1\] was not compared: run --part parity first"):
        command.run("--part", "throughput")
    assert set(json.loads(command.path.read_text())) == {"device", "gpu", "run", "runs"}
    assert command.run("--part", "parity").splitlines()[-1] == "[]"
    command.run("--part", "grams")
    command.here["commit"] = "4567+dirty"
    command.run()
    command.run()
    assert command.builds == [1, 1, 1], "what is not committed may have changed"


def test_nothing_is_timed_that_is_wrong(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "tolerance", lambda dtype, points: 1e-17)
    with pytest.raises(SystemExit, match=r"not timed, these are wrong:\ncuda "):
        command.run()
    assert not {"throughput", "kernels", "grams"} & set(json.loads(command.path.read_text()))


def test_a_part_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_run.subprocess, "run", hang)
    assert gpu_run.run_part("kernels", 2, 30, 90) == ["the rest of kernels, which was stopped after 90 s"]
    failed = SimpleNamespace(stdout="reason", returncode=1)
    monkeypatch.setattr(gpu_run.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match="--part kernels --runs 2 --seconds 30 failed:\nreason"):
        gpu_run.run_part("kernels", 2, 30, 90)
    assert sum(gpu_run.PARTS.values()) < gpu_run._SECONDS < 540, "nine minutes"


def test_triton_has_every_row_that_cuda_has(gpu: ModuleType, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "usable", lambda: ["cuda", "triton"])
    monkeypatch.setattr(throughput.triton, "entropies", cuda.entropies)
    rows = [row for row in throughput.throughput_rows(2) if row.section == "resnet50"]
    names = [row.name for row in rows]
    of_triton = {name.removeprefix("Triton: ") for name in names if name.startswith("Triton: ")}
    assert {
        "sorted, rms, host",
        "between filters, bfloat16, as a CUDA graph",
        "brute force: pairwise, rms",
    } <= of_triton
    shared = {name for name in names if "torch." not in name and "memory" not in name and "weights" not in name}
    assert {name for name in shared if not name.startswith(("Triton: ", "addmm"))} == of_triton
    graph = next(row for row in rows if row.name == "Triton: between filters, as a CUDA graph")
    assert graph.measure() > 0


def test_the_rivals_compute_the_entropies(small: None) -> None:
    weights = [torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(0)), torch.randn(7, 9, 1, 1)]
    for weight, plain, made in zip(
        weights, throughput.plain_torch(weights), throughput.compiled_filters(weights)(), strict=True
    ):
        wanted = reference.entropy(weight, Formula()).float()
        torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-3)
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-3)
    wanted = reference.entropy(weights[0], Formula("rms", axis="channels", tau=0.01)).float()
    torch.testing.assert_close(throughput.compiled_pairs(weights)()[0], wanted, rtol=0, atol=1e-3)


def test_kernels_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [("void fec::cuda::(anonymous namespace)::product_tiles<float, 2>(fec::cuda::Range, int)", 50.0)]
    events += [("multiply_tiles", 100.0), ("fec::cuda::product_tiles<float, 2>(fec::cuda::Range)", 5.0), ("wait", 0.0)]
    profiler = SimpleNamespace(
        key_averages=lambda: [SimpleNamespace(key=key, device_time_total=time) for key, time in events]
    )
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: contextlib.nullcontext(profiler))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing.kernel_microseconds(lambda: None) == {"multiply_tiles": 20.0, "product_tiles<float, 2>": 11.0}


def test_the_table_of_a_run_that_was_cut_off_has_gaps() -> None:
    lines = table_of_throughput({"throughput": {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}}).strip().splitlines()
    assert lines[2:] == ["| x | 1 | 3 |", "| y | 2 |  |"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU: .* Nothing was run"):
        gpu_run.main()
