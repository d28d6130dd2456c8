"""The CUDA backend: its kernels in the emulator against the float64 reference, and what it says when it cannot run."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.backends.registry import backends, resolve
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError, FormulaError
from helpers import emulated
from helpers.formula_cases import cases, sortable, tolerance

RMS = Formula("rms", axis="channels")


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def compare(w: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1, algorithm: str = "auto") -> None:
    (got,) = cuda.entropies([w], formula, axes=[axis], groups=[groups], algorithm=algorithm)
    want = reference.entropy(w, formula, axis=axis, groups=groups)
    assert got.dtype == torch.float64 and got.shape == want.shape
    allowed = tolerance(w, formula, axis, groups)
    assert float((got - want).abs().max()) <= allowed, (formula, axis, groups, algorithm, got, want, allowed)
    assert float(got.min()) >= 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_every_kind_of_weight(monkeypatch: pytest.MonkeyPatch, case: tuple[Tensor, int, int, Formula]) -> None:
    emulated.backend(monkeypatch)
    w, on, groups, formula = case
    both = sortable(w, formula) and formula.entropy != "distance"
    for algorithm in ("sorted", "pairwise") if both else ("pairwise",):
        compare(w, formula, axis=on, groups=groups, algorithm=algorithm)


def test_many_weights_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    many = [weight(8, 4, 3, 3), weight(6, 5, dtype=torch.bfloat16), weight(4, 3, 2, 2, 2), weight(12, 2, 3).double()]
    for formula in (RMS, Formula()):
        got = cuda.entropies(many, formula, axes=[0, 1, 0, 1], groups=[1, 1, 1, 3])
        assert [len(g) for g in got] == [8, 5, 4, 6]
        for w, axis, group, g in zip(many, [0, 1, 0, 1], [1, 1, 1, 3], got, strict=True):
            want = reference.entropy(w, formula, axis=axis, groups=group)
            assert float((g - want).abs().max()) <= tolerance(w, formula, axis, group)


def test_strides_are_followed_and_odd_ones_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    w = weight(6, 20, 3, 3)
    cut = torch.nn.functional.pad(w, (1, 1))[..., 1:-1]
    for strided in (
        w.to(memory_format=torch.channels_last),
        cut,
        w.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        assert not strided.is_contiguous()
        compare(strided, RMS)
        compare(strided, Formula())


class Operators(TorchDispatchMode):
    """Writes down what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("formula", [RMS, Formula(), Formula("none", "softmax", "channels", 0.3)])
def test_a_call_allocates_through_torch_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, formula: Formula
) -> None:
    """As a CUDA graph needs it: of torch's operators none but views and `empty`; no other is asynchronous for sure.

    The kernels' own side is compiled against a runtime that knows neither memory nor waiting (emulator.h).
    """
    emulated.backend(monkeypatch)
    weights = [weight(6, 20, 3, 3), weight(40, 30, 1, 1, dtype=torch.float16)]
    with Operators() as operators:
        cuda.entropies(weights, formula, axes=[0, 1], groups=[1, 1])
    assert "aten.empty.memory_format" in operators.seen
    assert operators.seen <= {"aten.empty.memory_format", "aten.detach.default"}, operators.seen


def test_the_sources_know_no_call_that_waits_or_allocates() -> None:
    root = emulated.ROOT / "csrc"
    sources = "".join(path.read_text() for path in (root / "cuda").rglob("*.*"))
    called = set(re.findall(r"\bcuda[A-Z]\w+(?=\()", sources)) - {"cudaGetErrorString", "cudaGetErrorName"}
    assert called == {
        "cudaGetDevice",
        "cudaSetDevice",
        "cudaGetDeviceCount",
        "cudaFuncGetAttributes",
        "cudaGetLastError",
    }


def test_nothing_and_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    assert cuda.entropies([], RMS, axes=[], groups=[]) == []
    empty = [torch.empty(0, 3, 3, 3), torch.empty(3, 0, 3, 3)]
    none, zeros = cuda.entropies(empty, RMS, axes=[0, 0], groups=[1, 1])
    assert none.shape == (0,) and torch.equal(zeros, torch.zeros(3, dtype=torch.float64))


def test_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    for value in (math.nan, math.inf):
        bad = weight(5, 4, 3, 3)
        bad[2, 1, 0, 2] = value
        for formula in (RMS, Formula(), Formula("rms", axis="channels", tau=1.0)):
            results = cuda.entropies([weight(2, 2), bad], formula, axes=[0, 0], groups=[1, 1])
            assert not bool(results[0].isnan().any()) and bool(results[1].isnan().any())
            with pytest.raises(ops.NonFiniteWeightError, match=r"weight 1 has .* at \[2, 1, 0, 2\]"):
                ops._fetched([weight(2, 2), bad], results, "cuda")


def test_nan_for_a_finite_weight_is_our_fault() -> None:
    with pytest.raises(BackendError, match="please report"):
        ops._fetched([weight(2, 2)], [torch.full((2,), math.nan)], "cuda")


def test_sorted_cannot_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    with pytest.raises(FormulaError, match="distance"):
        formula = Formula("rms", "distance", "channels")
        cuda.entropies([weight(4, 4)], formula, axes=[0], groups=[1], algorithm="sorted")


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    empty = torch.empty

    def refuse(*size: Any, **options: Any) -> Tensor:
        if options.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(BackendError, match=r"no room on cpu for the \d+ MiB"):
        cuda.entropies([weight(4, 4)], RMS, axes=[0], groups=[1])


def test_a_launch_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)
    monkeypatch.setattr(cuda, "stream_of", lambda device: (7, 0))  # the emulator has one device
    with pytest.raises(
        BackendError, match="could not be launched on cpu: choosing the device: .*cudaErrorInvalidDevice"
    ):
        cuda.entropies([weight(4, 4)], RMS, axes=[0], groups=[1])


class Elsewhere(Tensor):
    """A tensor that says it is on a CUDA device."""

    where = "cuda:0"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(self.where)


class ElsewhereStill(Elsewhere):
    where = "cuda:1"


def test_wrong_and_mixed_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, still = weight(4, 4), weight(4, 4).as_subclass(Elsewhere), weight(4, 4).as_subclass(ElsewhereStill)
    monkeypatch.setattr(ops, "resolve", lambda backend, device="cpu": "cuda")
    for wrong, words in (
        ([here], "weight 0 is on cpu, where the backend 'cuda' does not run"),
        ([there, here], "weight 1 is on cpu"),
        ([there, still], "weight 1 is on cuda:1, weight 0 on cuda:0"),
    ):
        with pytest.raises(BackendError, match=words):
            ops._check_devices(wrong, "cuda")
    with pytest.raises(BackendError, match="does not run"):
        ops.entropies([here], RMS, axes=[0], groups=[1], backend="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_said_why() -> None:
    info = backends()["cuda"]
    built = cuda.compiled() is not None
    assert info.built == built and not info.usable
    assert (
        ("no CUDA driver" in info.reason or "no CUDA device" in info.reason)
        if built
        else info.reason.startswith("built without CUDA kernels: ")
    )
    with pytest.raises(BackendError, match="the backend 'cuda' cannot run"):
        ops.entropies([weight(3, 3)], RMS, axes=[0], groups=[1], backend="cuda")
    assert resolve("auto", "cuda").name == "cpu"


def test_auto_prefers_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    package = sys.modules[resolve.__module__]

    def usable(name: str) -> Any:
        return lambda: package.BackendInfo(name, True, True, "")

    assert resolve("auto", "cpu").name == "cpu"
    monkeypatch.setitem(package._BACKENDS, "triton", usable("triton"))
    assert resolve("auto", "cuda").name == "triton"
    monkeypatch.setitem(package._BACKENDS, "cuda", usable("cuda"))
    assert resolve("auto", "cuda").name == "cuda" and resolve("auto", "cpu").name == "cpu"
