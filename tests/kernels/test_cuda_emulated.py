"""The CUDA kernels in the emulator: against the float64 reference; memory, streams and failures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cuda
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError, FormulaError
from helpers import emulated
from helpers.formula_cases import cases, sortable, tolerance

pytestmark = pytest.mark.slow  # compiles the emulator
RMS = Formula("rms", axis="channels")


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def compare(w: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1, algorithm: str = "auto") -> None:
    (got,) = cuda.entropies([w], formula, axes=[axis], groups=[groups], algorithm=algorithm)
    want = reference.entropy(w, formula, axis=axis, groups=groups)
    assert got.dtype == torch.float64 and got.shape == want.shape
    allowed = tolerance(w, formula, axis, groups)
    assert float((got - want).abs().max()) <= allowed, (formula, axis, groups, algorithm, got, want, allowed)
    assert float(got.min()) >= 0


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_every_kind_of_weight(case: tuple[Tensor, int, int, Formula]) -> None:
    w, on, groups, formula = case
    both = sortable(w, formula) and formula.entropy != "distance"
    for algorithm in ("sorted", "pairwise") if both else ("pairwise",):
        compare(w, formula, axis=on, groups=groups, algorithm=algorithm)


def test_many_weights_in_one_call() -> None:
    many = [weight(8, 4, 3, 3), weight(6, 5, dtype=torch.bfloat16), weight(4, 3, 2, 2, 2), weight(12, 2, 3).double()]
    for formula in (RMS, Formula()):
        got = cuda.entropies(many, formula, axes=[0, 1, 0, 1], groups=[1, 1, 1, 3])
        assert [len(g) for g in got] == [8, 5, 4, 6]
        for w, axis, group, g in zip(many, [0, 1, 0, 1], [1, 1, 1, 3], got, strict=True):
            want = reference.entropy(w, formula, axis=axis, groups=group)
            assert float((g - want).abs().max()) <= tolerance(w, formula, axis, group)


def test_strides_are_followed_and_odd_ones_copied() -> None:
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
    """Records the operators that torch is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("formula", [RMS, Formula(), Formula("none", "softmax", "channels", 0.3)])
def test_a_call_allocates_through_torch_and_waits_for_nothing(formula: Formula) -> None:
    """As a CUDA graph needs it: of torch's operators views and `empty` alone, as no other is surely asynchronous.

    The kernels' own side is compiled against a runtime that has neither memory nor waiting (emulator.h).
    """
    weights = [weight(6, 20, 3, 3), weight(40, 30, 1, 1, dtype=torch.float16)]
    with Operators() as operators:
        cuda.entropies(weights, formula, axes=[0, 1], groups=[1, 1])
    assert "aten.empty.memory_format" in operators.seen
    assert operators.seen <= {"aten.empty.memory_format", "aten.split_with_sizes.default"}, operators.seen


def fresh(weights: list[Tensor], formula: Formula, **layout: Any) -> list[Tensor]:
    """The entropies of copies of the weights, whose call has not been prepared before."""
    return cuda.entropies([w.clone(memory_format=torch.preserve_format) for w in weights], formula, **layout)


def test_a_prepared_call_gives_the_same_bits_on_whatever_lies_there() -> None:
    weights, layout = (
        [weight(6, 20, 3, 3), weight(40, 30, 1, 1, dtype=torch.float16)],
        {"axes": [0, 1], "groups": [1, 2]},
    )
    for formula in (RMS, Formula(), Formula("none", "softmax", "channels", 0.3)):
        cuda._prepared.cache_clear()
        first = cuda.entropies(weights, formula, **layout)
        again = cuda.entropies(weights, formula, **layout)
        assert cuda._prepared.cache_info().hits == 1
        assert all(map(torch.equal, first, again)) and first[0].data_ptr() != again[0].data_ptr()
        for w in weights:
            w.normal_()
        changed = cuda.entropies(weights, formula, **layout)
        assert cuda._prepared.cache_info().hits == 2 and not torch.equal(changed[0], first[0])
        assert all(map(torch.equal, changed, fresh(weights, formula, **layout)))


@pytest.mark.parametrize("formula", [RMS, Formula(), Formula("none", "softmax", "channels", 0.3)])
def test_a_model_larger_than_the_workspace_is_processed_in_batches(
    monkeypatch: pytest.MonkeyPatch, formula: Formula
) -> None:
    """Layers that have no room together, layers that have none alone, one without elements: the same bits."""
    weights = [
        weight(6, 20, 3, 3),
        weight(70, 130),
        torch.empty(3, 0),
        weight(9, 33, dtype=torch.float16),
        weight(5, 7),
    ]
    layout: dict[str, Any] = {"axes": [0, 0, 0, 1, 0], "groups": [1] * 5}

    def sizes(*positions: int) -> list[int]:
        cuda._prepared.cache_clear()
        chosen = [weights[i] for i in positions], formula, [layout["axes"][i] for i in positions], [1] * len(positions)
        return [batch.workspace_bytes for batch in cuda._prepared_for(*chosen, "auto")[0].batches]

    whole = fresh(weights, formula, **layout)
    assert len(sizes(*range(5))) == 1
    largest = max(sizes(i)[0] for i in range(5))
    for limit in (largest, largest // 2, 1):
        monkeypatch.setattr(cuda, "WORKSPACE", limit)
        found = sizes(*range(5))
        assert len(found) == 5 if limit == 1 else len(found) > 1
        assert max(found) == largest, "a weight alone has the workspace that it needs"
        for apart in (False, True):
            got = cuda.entropies(weights, formula, apart=apart, **layout)
            assert all(map(torch.equal, got, whole)), (limit, apart)
    cuda._prepared.cache_clear()


def test_memory_that_is_used_again_is_read_as_what_it_now_is() -> None:
    """Weights at one address that differ in shape, dtype, strides, axis, groups or formula are different calls."""
    memory = weight(2304)
    cases: list[tuple[Tensor, int, int, Formula]] = [
        (memory.view(16, 16, 3, 3), 0, 1, RMS),
        (memory.view(16, 16, 3, 3), 0, 1, Formula("absmean", axis="channels")),
        (memory.view(16, 16, 3, 3), 0, 1, Formula()),
        (memory.view(16, 16, 3, 3), 1, 1, RMS),
        (memory.view(16, 16, 3, 3), 1, 4, RMS),
        (memory.view(16, 3, 3, 16).permute(0, 3, 1, 2), 0, 1, RMS),
        (memory.view(48, 48), 0, 1, RMS),
        (memory[:48].view(3, 16), 0, 1, RMS),
        (memory.view(torch.float64)[:1024].view(32, 32), 0, 1, RMS),
        (memory.view(torch.bfloat16)[1:4608:2].view(48, 48), 0, 1, RMS),
    ]
    sound = [case for case in cases if bool(torch.isfinite(case[0]).all())]
    assert len(sound) == len(cases) and len({case[0].data_ptr() for case in cases}) == 2
    for _ in range(2):  # with room for all, and with some already gone
        for w, axis, groups, formula in cases:
            layout = {"axes": [axis], "groups": [groups]}
            (got,) = cuda.entropies([w], formula, **layout)
            want = reference.entropy(w, formula, axis=axis, groups=groups)
            assert float((got - want).abs().max()) <= tolerance(w, formula, axis, groups), (w.shape, w.dtype, axis)
            assert torch.equal(got, fresh([w], formula, **layout)[0])
    assert cuda._prepared.cache_info().currsize <= 8


def test_weights_that_are_copied_are_not_kept() -> None:
    cut = torch.nn.functional.pad(weight(6, 20, 3, 3), (1, 1))[..., 1:-1]
    for _ in range(3):
        (got,) = cuda.entropies([cut], RMS, axes=[0], groups=[1])
        assert torch.equal(got, fresh([cut.contiguous()], RMS, axes=[0], groups=[1])[0])
        cut.normal_()


def test_the_environment_names_what_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """By wgmma: other bits, the same entropies; what is not there is an error, at each call and in the description."""
    w, formula = weight(70, 90), Formula()
    monkeypatch.delenv("FEC_FAST_TENSOR_CORES", raising=False)
    (usual,) = cuda.entropies([w], formula, axes=[0], groups=[1])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "the emulator")
    for named, product in (("", "mma"), ("mma", "mma"), ("wgmma", "wgmma")):
        monkeypatch.setenv("FEC_FAST_TENSOR_CORES", named)
        compare(w, formula)
        (got,) = cuda.entropies([w], formula, axes=[0], groups=[1])
        assert torch.equal(got, usual) == (product == "mma")
        assert cuda.describe() == f"runs on the emulator; multiplies between filters by {product}"
    monkeypatch.setattr(cuda, "_has_wgmma", lambda module, device: False)
    for named, words in (("wgmma", r"the build has no wgmma; unset it"), ("tf32", "one of: mma, wgmma")):
        monkeypatch.setenv("FEC_FAST_TENSOR_CORES", named)
        with pytest.raises(BackendError, match=f"FEC_FAST_TENSOR_CORES={named}.*{words}"):
            cuda.entropies([w], formula, axes=[0], groups=[1])
        assert f"every call is an error: FEC_FAST_TENSOR_CORES={named}" in cuda.describe()


def test_an_error_is_raised_at_every_call() -> None:
    for _ in range(2):
        with pytest.raises(FormulaError, match="distance"):
            cuda.entropies(
                [weight(4, 4)], Formula("rms", "distance", "channels"), axes=[0], groups=[1], algorithm="sorted"
            )


def test_nothing_and_empty() -> None:
    assert cuda.entropies([], RMS, axes=[], groups=[]) == []
    empty = [torch.empty(0, 3, 3, 3), torch.empty(3, 0, 3, 3)]
    none, zeros = cuda.entropies(empty, RMS, axes=[0, 0], groups=[1, 1])
    assert none.shape == (0,) and torch.equal(zeros, torch.zeros(3, dtype=torch.float64))


def test_not_finite() -> None:
    for value in (math.nan, math.inf):
        bad = weight(5, 4, 3, 3)
        bad[2, 1, 0, 2] = value
        for formula in (RMS, Formula(), Formula("rms", axis="channels", tau=1.0)):
            results = cuda.entropies([weight(2, 2), bad], formula, axes=[0, 0], groups=[1, 1])
            assert not bool(results[0].isnan().any()) and bool(results[1].isnan().any())
            with pytest.raises(ops.NonFiniteWeightError, match=r"weight 1 has .* at \[2, 1, 0, 2\]"):
                ops._fetched([weight(2, 2), bad], torch.cat(results), [2, 5], "cuda")


def test_sorted_cannot_do_everything() -> None:
    with pytest.raises(FormulaError, match="distance"):
        formula = Formula("rms", "distance", "channels")
        cuda.entropies([weight(4, 4)], formula, axes=[0], groups=[1], algorithm="sorted")


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def refuse(*size: Any, **options: Any) -> Tensor:
        if options.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(BackendError, match=r"no room on cpu for the \d+ MiB"):
        cuda.entropies([weight(4, 4)], RMS, axes=[0], groups=[1])


def test_a_launch_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "stream_of", lambda device: (7, 0))  # the emulator has one device
    with pytest.raises(
        BackendError, match="could not be launched on cpu: choosing the device: .*cudaErrorInvalidDevice"
    ):
        cuda.entropies([weight(4, 4)], RMS, axes=[0], groups=[1])
