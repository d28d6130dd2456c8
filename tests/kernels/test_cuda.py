"""The CUDA backend without its kernels: reasons why it cannot run, and the choice of a backend."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fec_fast.scoring import ops
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.backends.registry import ResolvedBackend, backends, resolve
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError
from helpers import emulated

RMS = Formula("rms", axis="channels")


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_the_sources_contain_no_call_that_waits_or_allocates() -> None:
    root = emulated.ROOT / "csrc"
    sources = "".join(path.read_text() for path in (root / "cuda").rglob("*.*"))
    called = set(re.findall(r"\bcuda[A-Z]\w+(?=\()", sources)) - {"cudaGetErrorString", "cudaGetErrorName"}
    assert called == {
        "cudaGetDevice",
        "cudaSetDevice",
        "cudaGetDeviceCount",
        "cudaFuncGetAttributes",
        "cudaFuncSetAttribute",
        "cudaGetLastError",
    }


def test_nan_for_a_finite_weight_is_reported_as_a_bug() -> None:
    with pytest.raises(BackendError, match="please report"):
        ops._fetched([weight(2, 2)], torch.full((2,), math.nan), [2], "cuda")


class Elsewhere(Tensor):
    """A tensor whose ``device`` is a CUDA device."""

    where = "cuda:0"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(self.where)

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False


class ElsewhereStill(Elsewhere):
    where = "cuda:1"


def test_wrong_and_mixed_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, still = weight(4, 4), weight(4, 4).as_subclass(Elsewhere), weight(4, 4).as_subclass(ElsewhereStill)
    monkeypatch.setattr(ops, "resolve", lambda backend, device="cpu": ResolvedBackend("cuda", "cuda"))
    for wrong, words in (
        ([here], "weight 0 is on cpu, where the backend 'cuda' does not run"),
        ([there, here], "weight 1 is on cpu"),
        ([there, still, here], "weight 2 is on cpu"),
    ):
        with pytest.raises(BackendError, match=words):
            ops.entropies(wrong, RMS, axes=[0] * len(wrong), groups=[1] * len(wrong), backend="cuda")
    with pytest.raises(BackendError, match="does not run"):
        ops.entropies([here], RMS, axes=[0], groups=[1], backend="cuda")


def test_weights_on_several_devices_are_scored_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (Elsewhere, ElsewhereStill, None, Elsewhere, ElsewhereStill)
    plain = [weight(4 + i, 3) for i in range(len(kinds))]
    given = [each if kind is None else each.as_subclass(kind) for each, kind in zip(plain, kinds, strict=True)]
    calls: list[str] = []

    def on_device(call: Any) -> tuple[Tensor, list[int]]:
        calls.append(str(call.weights[0].device))
        assert {str(each.device) for each in call.weights} == {calls[-1]}
        found = ops._on_processor(
            replace(call, weights=[each.as_subclass(Tensor) for each in call.weights]), apart=False
        )
        return torch.cat(found), [len(values) for values in found]

    monkeypatch.setattr(ops, "_on_device", on_device)
    monkeypatch.setattr(ops, "cross_check", lambda *_: None)

    def on_gpus(backend: Any, device: str = "cpu") -> ResolvedBackend:
        return ResolvedBackend("cuda" if device == "cuda" else "cpu", "auto")

    monkeypatch.setattr(ops, "resolve", on_gpus)
    layout: dict[str, Any] = {"axes": [0, 1, 0, 1, 0], "groups": [1] * 5}
    wanted = ops.entropies(plain, RMS, **layout)
    assert not calls
    found = ops.entropies(given, RMS, **layout)
    assert calls == ["cuda:0", "cuda:1"]  # and those on the CPU by its own kernels
    assert all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True))
    with torch.no_grad():
        plain[3][0, 0] = math.nan
    with pytest.raises(ops.NonFiniteWeightError, match="layer 'd': its weight has nan") as error:
        ops.entropies(given, RMS, **layout, names=list("abcde"))
    assert (error.value.layer, error.value.position, error.value.index) == ("d", 3, (0, 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_reason_is_given() -> None:
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

    def described(name: str, usable: bool) -> Any:
        return lambda: package.BackendInfo(name, True, usable, "")

    assert resolve("auto", "cpu").name == "cpu"
    monkeypatch.setitem(package._BACKENDS, "cuda", described("cuda", False))
    monkeypatch.setitem(package._BACKENDS, "triton", described("triton", True))
    assert resolve("auto", "cuda").name == "triton"
    monkeypatch.setitem(package._BACKENDS, "cuda", described("cuda", True))
    assert resolve("auto", "cuda").name == "cuda" and resolve("auto", "cpu").name == "cpu"
