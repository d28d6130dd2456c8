"""The backend of a call is resolved once, and no further than it has to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.scoring import ops
from fec_fast.scoring.backends import cuda, registry, triton
from fec_fast.scoring.backends.registry import BackendInfo, ResolvedBackend, resolve
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each backend was asked whether it is usable."""
    counts: Counter[str] = Counter()

    def counting(name: str, describe: Callable[[], BackendInfo]) -> Callable[[], BackendInfo]:
        def counted() -> BackendInfo:
            counts[name] += 1
            return describe()

        return counted

    for name, describe in list(registry._BACKENDS.items()):
        monkeypatch.setitem(registry._BACKENDS, name, counting(name, describe))
    return counts


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_once_per_score_model(looked_up: Counter[str], backend: str) -> None:
    scores = fec_fast.score_model(network(), backend=backend)
    assert scores.backend == "cpu" and looked_up == {"cpu": 1}


@pytest.mark.parametrize(
    "options", [{}, {"ratios": "entropy", "budget": fec_fast.Budget(params=0.3)}], ids=["ratio", "budget"]
)
def test_once_per_prune(looked_up: Counter[str], options: dict) -> None:
    fec_fast.prune(network(), IMAGE, **options, recover=None)
    assert looked_up == {"cpu": 1}


def test_a_resolved_backend_is_not_looked_up_again(looked_up: Counter[str]) -> None:
    backend = resolve("auto")
    assert backend == ResolvedBackend("cpu", "auto") and looked_up == {"cpu": 1}
    assert resolve(backend, "cuda") is backend
    ops.entropies([torch.randn(4, 3)], Formula(), axes=[0], groups=[1], backend=backend)
    assert looked_up == {"cpu": 1}


def test_the_search_ends_at_the_first_usable_backend(looked_up: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "trouble", lambda: "")
    monkeypatch.setattr(cuda, "describe", lambda: "")
    assert resolve("auto", "cuda") == ResolvedBackend("cuda", "auto")
    assert looked_up == {"cuda": 1}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A CUDA that is initialised, with its current device and the process."""
    now = {"device": 0, "process": 100}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now["device"])
    monkeypatch.setattr(registry.os, "getpid", lambda: now["process"])
    monkeypatch.setattr(registry, "_found_usable", set())
    return now


def test_a_usable_gpu_is_looked_at_once(
    looked_up: Counter[str], device: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "trouble", lambda: "")
    monkeypatch.setattr(cuda, "describe", lambda: "")
    for _ in range(3):
        assert resolve("auto", "cuda").name == "cuda" and resolve("cuda").name == "cuda"
    assert looked_up == {"cuda": 1}
    device["device"] = 1
    assert resolve("cuda").name == "cuda" and looked_up == {"cuda": 2}  # the build may have no code for that one
    device["process"] = 101
    assert resolve("cuda").name == "cuda" and looked_up == {"cuda": 3}  # CUDA does not survive a fork
    device.update(device=0, process=100)
    assert resolve("cuda").name == "cuda" and looked_up == {"cuda": 3}
    assert fec_fast.backends()["cuda"].usable and looked_up["cuda"] == 4  # a list of the backends is always fresh


def test_a_gpu_that_is_not_usable_is_looked_at_again(
    looked_up: Counter[str], device: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "trouble", lambda: "the driver is asleep")
    for times in (1, 2):
        with pytest.raises(BackendError, match="asleep"):
            resolve("cuda")
        assert looked_up == {"cuda": times}
    monkeypatch.setattr(cuda, "trouble", lambda: "")
    monkeypatch.setattr(cuda, "describe", lambda: "")
    assert resolve("cuda").name == "cuda"


def test_triton_metadata_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def version(package: str) -> str:
        reads.append(package)
        return "3.9.0"

    monkeypatch.setattr(triton, "version", version)
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: object())
    triton.installed_version.cache_clear()
    try:
        for _ in range(3):
            fec_fast.backends()
    finally:
        triton.installed_version.cache_clear()
    assert reads == ["triton"]


def test_unknown_names_have_a_hint() -> None:
    with pytest.raises(BackendError, match="'abacus'.*known: 'auto', 'cpu', 'cuda', 'triton', 'torch'"):
        resolve("abacus")


def test_a_build_without_cuda_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "compiled", lambda: None)
    monkeypatch.setattr(cuda.extension.native, "cuda_left_out", "no GPU was in sight: build with FEC_CUDA=ON")
    info = fec_fast.backends()["cuda"]
    assert not info.built and info.reason == "built without CUDA kernels: no GPU was in sight: build with FEC_CUDA=ON"
