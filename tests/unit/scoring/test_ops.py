"""The operator ``torch.ops.fec_fast.entropy``, and the function that calls it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fec_fast.scoring import gpu_check, ops, reference
from fec_fast.scoring.backends import cpu
from fec_fast.scoring.backends.registry import ResolvedBackend, backends, resolve
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import ArgumentError, BackendError, FormulaError, WeightError

RMS = Formula("rms", axis="channels")


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_opcheck() -> None:
    for tau in (None, 0.5):
        formula = ("rms", "similarity", "channels", tau, 1.0)
        arguments = ([weight(4, 6, 3, 3), weight(6, 2)], [0, 1], [1, 2], *formula, "auto")
        torch.library.opcheck(torch.ops.fec_fast.entropy, arguments)


def test_compiled_around_without_a_graph_break() -> None:
    def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        arguments = ([0, 0], [1, 1], "rms", "similarity", "channels", None, 1.0, "auto")
        found = torch.ops.fec_fast.entropy([a * 2, b], *arguments)
        return found[0].sum() + found[1].sum()

    weights = weight(8, 6, 3, 3), weight(5, 7)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert float(compiled(*weights)) == float(total(*weights))


class Scores(torch.utils.data.Dataset[float]):
    """A dataset that scores a weight in the worker."""

    def __init__(self, w: torch.Tensor) -> None:
        self.w = w

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> float:
        assert torch.get_num_threads() == 1  # the kernels use as many: a worker has one
        return float(ops.entropies([self.w], RMS, axes=[0], groups=[1])[0].sum())


def test_in_a_data_loader_worker() -> None:
    """The worker is forked after the parent has run the kernels on several threads; it must use one."""
    w = weight(64, 70, 3, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        wanted = float(ops.entropies([w], RMS, axes=[0], groups=[1])[0].sum())
        found = list(torch.utils.data.DataLoader(Scores(w), num_workers=1, batch_size=None, timeout=60))
    finally:
        torch.set_num_threads(before)
    assert found == [wanted, wanted]


def test_memory_that_is_used_again_is_read_as_what_it_now_is() -> None:
    memory = weight(2304)
    for _ in range(2):
        for w, axis, groups in (
            (memory.view(16, 16, 3, 3), 0, 1),
            (memory.view(16, 16, 3, 3), 1, 4),
            (memory.view(16, 3, 3, 16).permute(0, 3, 1, 2), 0, 1),
            (memory.view(48, 48), 0, 1),
            (memory.view(torch.float64)[:1024].view(32, 32), 0, 1),
        ):
            for formula in (RMS, Formula()):
                (got,) = ops.entropies([w], formula, axes=[axis], groups=[groups])
                (copied,) = ops.entropies([w.clone()], formula, axes=[axis], groups=[groups])
                want = reference.entropy(w, formula, axis=axis, groups=groups)
                points = w.shape[1 - axis] if formula is RMS else got.numel()
                assert torch.equal(got, copied)
                assert float((got - want).abs().max()) <= reference.tolerance(w.dtype, points)
        memory.normal_()


def test_fake_shapes() -> None:
    arguments = ([0, 1], [1, 2], "rms", "similarity", "channels", None, 1.0, "auto")
    real = [weight(4, 6, 3, 3), weight(6, 5)]
    fake = torch.ops.fec_fast.entropy([w.to("meta") for w in real], *arguments)
    assert [f.shape for f in fake] == [r.shape for r in torch.ops.fec_fast.entropy(real, *arguments)]
    assert all(f.dtype == torch.float64 for f in fake)


def test_many_weights_in_one_call() -> None:
    weights = [weight(8, 4, 3, 3), weight(6, 5, dtype=torch.bfloat16), weight(4, 3, 2, 2, 2), weight(12, 2, 3)]
    axes, groups = [0, 1, 0, 1], [1, 1, 1, 3]
    for formula in (RMS, Formula()):
        got = ops.entropies(weights, formula, axes=axes, groups=groups, backend="auto")
        assert [len(g) for g in got] == [8, 5, 4, 6]
        for w, axis, group, g in zip(weights, axes, groups, got, strict=True):
            assert torch.allclose(g, reference.entropy(w, formula, axis=axis, groups=group), rtol=0, atol=1e-5)


def test_nothing_and_empty() -> None:
    assert ops.entropies([], RMS, axes=[], groups=[]) == []
    (none,) = ops.entropies([torch.empty(0, 3, 3, 3)], RMS, axes=[0], groups=[1])
    assert none.shape == (0,)


def test_the_weight_is_not_touched() -> None:
    w = weight(8, 4, 3, 3).requires_grad_()
    before, version = w.detach().clone(), w._version
    (got,) = ops.entropies([w], RMS, axes=[0], groups=[1])
    assert torch.equal(w.detach(), before) and w._version == version and w.grad is None and not got.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(dtype: torch.dtype, value: float) -> None:
    bad = weight(5, 4, 3, 3, dtype=dtype)
    bad[4, 3, 2, 2] = value
    bad[2, 1, 0, 2] = value
    for strided in (bad, bad.to(memory_format=torch.channels_last), torch.nn.functional.pad(bad, (1, 1))[..., 1:-1]):
        with pytest.raises(WeightError, match="weight 1 has") as caught:
            ops.entropies([weight(2, 2), strided], RMS, axes=[0, 0], groups=[1, 1])
        assert caught.value.index == (2, 1, 0, 2) and caught.value.layer is None
        with pytest.raises(WeightError, match=r"layer 'b': its weight has .* at \[2, 1, 0, 2\]") as caught:
            ops.entropies([weight(2, 2), strided], RMS, axes=[0, 0], groups=[1, 1], names=["a", "b"])
        assert caught.value.index == (2, 1, 0, 2) and caught.value.layer == "b"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.empty(3, 3, device="meta"), "meta"),
        (torch.ones(3, 3, dtype=torch.int8), "int8"),
        (torch.ones(3), "two dimensions"),
        (torch.ones(3, 3).to_sparse(), "sparse"),
        (torch.ones(5, 3), "2 groups"),
    ],
)
def test_unreadable_weights(bad: torch.Tensor, words: str) -> None:
    with pytest.raises(WeightError, match=f"^weight 0 .*{words}") as caught:
        ops.entropies([bad], RMS, axes=[1], groups=[2])
    assert caught.value.layer is None
    with pytest.raises(WeightError, match=f"^layer 'head': its weight .*{words}") as caught:
        ops.entropies([bad], RMS, axes=[1], groups=[2], names=["head"])
    assert (caught.value.layer, caught.value.index) == ("head", None)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"axes": [0, 0]}, ArgumentError, "2 axes"),
        ({"names": ["a", "b"]}, ArgumentError, "2 names"),
        ({"axes": [2]}, ArgumentError, "axis 2"),
        ({"algorithm": "sort"}, FormulaError, "sorted"),
        ({"algorithm": "sorted", "formula": Formula()}, FormulaError, "channel axis"),
        ({"backend": "cuda"}, BackendError, "the backend 'cuda' cannot run|weight 0 is on cpu"),
        ({"backend": "cpuu"}, BackendError, "'cpu'"),
        ({"weights": ["w"]}, ArgumentError, "str"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"weights": [weight(3, 3, 3, 3)], "formula": RMS, "axes": [0], "groups": [1]} | change
    weights, formula = arguments.pop("weights"), arguments.pop("formula")
    with pytest.raises(error, match=words):
        ops.entropies(weights, formula, **arguments)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 30), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    st.sampled_from(["rms", "absmean", "mean", "none"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([0, 1]),
    st.sampled_from([None, 0.7]),
)
def test_both_axes_add_up(
    shape: tuple[int, ...], compress: Any, dtype: torch.dtype, axis: int, tau: float | None
) -> None:
    w = weight(*shape, dtype=dtype)
    formula, where = Formula(compress, axis="both", tau=tau), {"axes": [axis], "groups": [1]}
    (got,) = ops.entropies([w], formula, **where)
    (channels,) = ops.entropies([w], Formula(compress, axis="channels", tau=tau), **where)
    (filters,) = ops.entropies([w], Formula(axis="filters", tau=tau), **where)
    assert torch.equal(got, channels + filters)
    want = reference.entropy(w, formula, axis=axis)
    allowed = sum(reference.tolerance(dtype, points) for points in shape[:2])
    assert float((got - want).abs().max()) <= allowed
    arguments = ([axis], [1], compress, "similarity", "both", tau, 1.0, "auto")
    assert torch.equal(torch.ops.fec_fast.entropy([w], *arguments)[0], got)


def test_both_axes_are_not_sorted() -> None:
    w = weight(4, 3)
    with pytest.raises(FormulaError, match="use 'auto'"):
        ops.entropies([w], Formula("rms", axis="both"), axes=[0], groups=[1], algorithm="sorted")
    w[2, 1] = math.inf
    with pytest.raises(ops.NonFiniteWeightError, match=r"inf at \[2, 1\]"):
        ops.entropies([w], Formula("rms", axis="both"), axes=[0], groups=[1])


def test_backends() -> None:
    known = backends()
    assert list(known) == ["cpu", "cuda", "triton", "torch"]
    assert known["cpu"].usable and all(info.reason for info in known.values())
    assert resolve("auto") == ResolvedBackend("cpu", "auto")


def test_a_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEC_FAST_INSTRUCTION_SET", "baseline")
    assert backends()["cpu"].reason.startswith("runs on baseline, as FEC_FAST_INSTRUCTION_SET=baseline asks")
    w = weight(20, 70, 3, 3)
    (got,) = ops.entropies([w], RMS, axes=[0], groups=[1])
    (wanted,), _ = cpu.entropies([w], RMS, axes=[0], groups=[1], instruction_set="baseline")
    assert torch.equal(got, wanted)
    monkeypatch.setenv("FEC_FAST_INSTRUCTION_SET", "mmx")
    with pytest.raises(BackendError, match="FEC_FAST_INSTRUCTION_SET=mmx"):
        ops.entropies([w], RMS, axes=[0], groups=[1])


def test_the_instruction_set_that_was_timed_as_the_fastest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEC_FAST_INSTRUCTION_SET", raising=False)
    name, seconds = cpu.chosen()
    assert cpu.instruction_sets()[name] and cpu.chosen() == (name, seconds)  # timed once
    assert not seconds or seconds[name] <= 1.05 * min(seconds.values())  # a wider set has a margin
    assert all(f"{other} takes" in backends()["cpu"].reason for other in seconds if other != name)
    assert backends()["cpu"].reason.startswith(f"runs on {name}")
    w = weight(20, 70, 3, 3)
    (got,) = ops.entropies([w], RMS, axes=[0], groups=[1])
    (wanted,), _ = cpu.entropies([w], RMS, axes=[0], groups=[1], instruction_set=name)
    assert torch.equal(got, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_weights_on_a_gpu(backend: str) -> None:
    if not backends()[backend].usable:
        pytest.skip(backends()[backend].reason)
    w = weight(8, 4, 3, 3)
    (got,) = ops.entropies([w.cuda()], RMS, axes=[0], groups=[1], backend=backend)
    assert torch.allclose(got, reference.entropy(w, RMS), rtol=0, atol=reference.tolerance(w.dtype, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_warning_reports_that_weights_on_a_gpu_are_scored_on_the_cpu() -> None:
    w = weight(8, 4, 3, 3)
    with pytest.warns(UserWarning, match="copied to the CPU") as caught:
        got = ops.entropies([w.cuda(), w.cuda()], RMS, axes=[0, 0], groups=[1, 1], backend="cpu")
    assert len(caught) == 1
    assert torch.equal(got[0], ops.entropies([w], RMS, axes=[0], groups=[1])[0])


def test_results_of_a_gpu_are_compared_with_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(6, 3, 3, 3), torch.randn(4, 6, 1, 1)]
    call: Any = {"axes": [0, 0], "groups": [1, 1]}
    right = torch.cat(ops.entropies(weights, Formula(), **call))
    given = right.clone()
    monkeypatch.setattr(gpu_check, "_checked", set())
    monkeypatch.setattr(ops, "_check_devices", lambda weights, backend: None)
    monkeypatch.setattr(ops, "_on_device", lambda call: (given, [6, 4]))
    on_gpu = ResolvedBackend("triton", "triton")
    given[5] += 0.01
    with pytest.raises(BackendError, match="'triton' are wrong on cpu"):
        ops.entropies(weights, Formula(), **call, backend=on_gpu)
    given.copy_(right)
    assert torch.equal(torch.cat(ops.entropies(weights, Formula(), **call, backend=on_gpu)), right)
