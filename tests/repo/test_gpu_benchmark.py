"""``python -m benchmarks.gpu`` with the emulator in place of a device: its comparisons, its command, its table.

What is CUDA's own (events, streams, graphs) is a stand-in; a captured graph is the launches that were made, and a
replay makes them again, in a workspace of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import parity as gpu_parity
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.page import table_of_throughput
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.backends.registry import resolve
from helpers import emulated

pytestmark = pytest.mark.slow  # compiles the emulator


class Recorder:
    """The compiled module; between `begin` and `end` it remembers the launches."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.Error = module, module.Error
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


def test_an_error_beyond_the_tolerance_is_reported(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "tolerance", lambda dtype, points: 1e-17)
    failures = gpu_parity.parity(((2, 3, 1, 1),))["failures"]
    assert any("cuda sorted [2, 3, 1, 1] axis 0 torch.float32 similarity" in failure for failure in failures)
    monkeypatch.setattr(Recorder, "Call", lambda self, rows, **choice: self.module.Call(rows, **choice))
    cuda._prepared.cache_clear()  # calls that were prepared before still record their launches
    assert "a replayed graph returns other entropies" in gpu_parity.graph()[0]  # nothing is launched again


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> None:
    """Runs the command with calls in place of its processes."""

    def run_part(*command: str, under: list[str] | None = None) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gpu", *command])
        gpu.main()
        printed = str(capsys.readouterr().out)
        if under:
            kind = "ERROR" if "memcheck" in under else "RACECHECK"
            printed = f"========= COMPUTE-SANITIZER\n{printed}========= {kind} SUMMARY: 0 errors\n"
        return printed

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "device_name", lambda: "Emulated GPU 1")
    monkeypatch.setattr(gpu, "build", lambda: {"architecture": "none"})
    monkeypatch.setattr(gpu_parity, "ALL", ((2, 3, 1, 1),))
    monkeypatch.setattr(gpu_parity, "SMALL", ((2, 3, 1, 1),))
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


def test_the_command_writes_its_results(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = pytest.importorskip("torchvision.models")

    def small(name: str, weights: None) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 6, 1))

    monkeypatch.setattr(models, "get_model", small)
    monkeypatch.setattr(torch, "compile", lambda **options: lambda function: function)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="1.0, 1 MHz\n", returncode=0))
    run(gpu, monkeypatch, capsys, "--runs", "2")
    result = json.loads((tmp_path / "gpu-emulated-gpu-1.json").read_text())
    assert set(result["compute-sanitizer"]) == {"memcheck", "racecheck"}
    assert result["compute-sanitizer"]["racecheck"] == "RACECHECK SUMMARY: 0 errors"
    assert set(result["throughput"]) == {"resnet50", "resnet152", "wide_resnet101_2"}
    wanted = ("memory floor", "sorted, rms", "CUDA graph", "brute force", "between filters", "cdist", "torch.compile")
    wanted += ("between filters, as a CUDA graph", "float16", "bfloat16", "score_model, rms, end to end")
    for row in wanted:
        assert any(row in side for side in result["throughput"]["resnet50"]), row
    lines = table_of_throughput(result).splitlines()[:-1]
    assert lines[:2] == ["|  | resnet50 | resnet152 | wide_resnet101_2 |", "| --- | --- | --- | --- |"]
    assert len(lines) == 2 + len(result["throughput"]["resnet50"]) and all(line.count("|") == 5 for line in lines)
    assert result["parity"]["failures"] == [] and result["gpu"]["multiprocessors"] == 1
    assert set(result["runs"][result["run"]]) == {"machine", "versions", "commit", "date"}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-emulated-gpu-1.json"]


def test_nothing_is_timed_that_is_wrong(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(reference, "tolerance", lambda dtype, points: 1e-17)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "describe_gpu", dict)
    with pytest.raises(SystemExit, match=r"not timed, these are wrong:\ncuda "):
        run(gpu, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU: .* Nothing was run"):
        gpu_run.main()
