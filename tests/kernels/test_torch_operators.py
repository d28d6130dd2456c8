"""The backend of torch's operators against the float64 reference, and an installation that has no other."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import fec_fast
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cpu, extension, registry, torch_operators
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import BackendError, FecWarning, FormulaError, WeightError
from helpers.formula_cases import cases, sortable, tolerance

needs_kernels = pytest.mark.skipif(not cpu.built(), reason="needs the compiled kernels")


def compare(weight: Tensor, formula: Formula, axis: int = 0, groups: int = 1, algorithm: str = "auto") -> Tensor:
    (got,), bad = torch_operators.entropies([weight], formula, axes=[axis], groups=[groups], algorithm=algorithm)
    want = reference.entropy(weight, formula, axis=axis, groups=groups)
    allowed = tolerance(weight, formula, axis, groups)
    assert bad == -1 and got.dtype == torch.float64 and got.shape == want.shape
    assert float((got - want).abs().max()) <= allowed, (formula, axis, groups, got, want, allowed)
    assert float(got.min()) >= 0
    return got


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@settings(max_examples=150)
@given(cases())
def test_every_kind_of_weight(drawn: tuple[Tensor, int, int, Formula]) -> None:
    weight, on, groups, formula = drawn
    for algorithm in ("sorted", "pairwise") if sortable(weight, formula) else ("pairwise",):
        compare(weight, formula, on, groups, algorithm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("compress", ["rms", "absmean", "mean", "none"])
@pytest.mark.parametrize("entropy", ["similarity", "softmax", "distance"])
@pytest.mark.parametrize("axis", ["channels", "filters"])
def test_the_promised_tolerance(dtype: torch.dtype, compress: Any, entropy: Any, axis: Any) -> None:
    formula = Formula(compress, entropy, axis)
    for shape in ((40, 3, 7, 7), (24, 100, 3, 3), (150, 130, 1, 1)):
        weight = random(*shape, dtype=dtype) * 0.05
        (got,), _ = torch_operators.entropies([weight], formula, axes=[0], groups=[1])
        error = float((got - reference.entropy(weight, formula)).abs().max())
        assert error <= reference.tolerance(dtype, shape[1] if axis == "channels" else shape[0])


# Blocks of a few rows, kept or made again: what large layers take, on small ones.
@pytest.mark.parametrize("keep", [0, 1 << 25])
@pytest.mark.parametrize("axis", ["channels", "filters"])
@pytest.mark.parametrize("entropy", ["similarity", "distance"])
def test_blocks(keep: int, axis: Any, entropy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_operators, "_KEEP", keep)
    for block in (1, 100, 1000):
        monkeypatch.setattr(torch_operators, "_BLOCK", block)
        for weight in (random(23, 17, 3, 3), random(23, 17, 3, 3, dtype=torch.float64) + 10):
            compare(weight, Formula("none", entropy, axis), 1, 1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("compress", ["rms", "mean", "none"])
def test_the_sum_of_distances(compress: Any, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_operators, "_BLOCK", 300)  # two filters at a time
    formula = Formula(compress, axis="channels")
    for weight in (random(23, 17, 3, 3), random(23, 17, 3, 3, dtype=torch.bfloat16), random(5, 4) + 100):
        want = float(reference.distances(weight, formula, axis=axis).sum())
        assert torch_operators.sum_of_distances(weight, formula, axis) == pytest.approx(want, rel=1e-12)
        tiny = weight.double() * 2.0**-600  # its squares vanish
        assert torch_operators.sum_of_distances(tiny, formula, axis) == pytest.approx(want * 2.0**-600, rel=1e-12)
    assert torch_operators.sum_of_distances(torch.empty(0, 17, 3, 3), formula, 0) == 0
    weight[3, 2] = float("inf")
    assert not math.isfinite(torch_operators.sum_of_distances(weight, formula, axis))


def test_equal_channels_have_entropy_exactly_zero() -> None:
    weight = random(20, 49, 3, 3)
    weight[7] = weight[7, :1]
    for algorithm in ("sorted", "pairwise"):
        got = compare(weight, Formula("rms", axis="channels"), algorithm=algorithm)
        assert got[7] == 0 and float(got[:7].min()) > 0.1


@pytest.mark.parametrize("axis", ["channels", "filters"])
def test_subnormal_weights_where_torch_reads_them_as_zero(axis: Any) -> None:
    weight, formula = random(8, 6, 3, 3) * 1e-40, Formula("rms", axis=axis)
    want = compare(weight, formula)
    assert float(want.min()) > 0.1
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always reads subnormal numbers")
    try:
        got = compare(weight, formula)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got, want)


@pytest.mark.parametrize("axis", ["channels", "filters"])
def test_in_float64_close_points_keep_their_digits(axis: Any) -> None:
    """Distances from one product, which float32 weights get otherwise, have an error of 1e-8 of the points' length."""
    weight, formula = random(24, 8, 3, 3) * 1e-5, Formula("none", axis=axis)
    weight[0] = 1
    want = reference.entropy(weight, formula)
    (got,) = ops.entropies([weight], formula, axes=[0], groups=[1], backend="torch", in_float64=True)
    assert float((got - want).abs().max()) < 1e-13
    (rough,) = ops.entropies([weight], formula, axes=[0], groups=[1], backend="torch")
    assert axis == "channels" or float((rough - want).abs().max()) > 1e-13


def test_what_cannot_be_scored() -> None:
    weights = [random(4, 3), random(4, 3)]
    weights[1][2, 1] = float("inf")
    assert torch_operators.entropies(weights, Formula(), axes=[0, 0], groups=[1, 1]) == ([], 1)
    with pytest.raises(WeightError, match=r"weight 1 has inf at \[2, 1\]"):
        ops.entropies(weights, Formula(), axes=[0, 0], groups=[1, 1], backend="torch")
    with pytest.raises(FormulaError, match="sorted"):
        torch_operators.entropies([random(4, 3)], Formula(), axes=[0], groups=[1], algorithm="sorted")
    (none,), _ = torch_operators.entropies([torch.empty(0, 3, 3)], Formula(), axes=[0], groups=[1])
    assert none.shape == (0,)


def network() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()


@needs_kernels
@pytest.mark.parametrize("axis", ["channels", "filters", "both"])
def test_the_backend_by_name(axis: Any) -> None:
    model, formula = network(), Formula("rms", axis=axis)
    scores = fec_fast.score_model(model, formula=formula, backend="torch")
    fast = fec_fast.score_model(model, formula=formula, backend="cpu")
    assert (scores.backend, fast.backend) == ("torch", "cpu") and list(scores) == list(fast)
    for name in scores:
        assert torch.allclose(scores[name], fast[name], rtol=0, atol=2e-5)
    weights, layout = [model[0].weight, model[3].weight], ([0, 0], [1, 1])
    (found, _) = torch.ops.fec_fast.entropy(
        weights, *layout, "rms", "similarity", "channels", None, 1.0, "auto", "torch"
    )
    assert torch.equal(found, ops.entropies(weights, Formula("rms", axis="channels"), axes=[0, 0], groups=[1, 1],
                                            backend="torch")[0])  # fmt: skip


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "native", None)
    monkeypatch.setattr(registry, "_told", [])


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_the_first_use_warns_once() -> None:
    with pytest.warns(FecWarning, match="without its compiled kernels.*C\\+\\+ compiler") as told:
        scores = fec_fast.score_model(network())
        fec_fast.score_model(network())
        fec_fast.prune(network(), torch.randn(1, 3, 12, 12), ratio=0.5, recover=None)
    assert len([one for one in told if "compiled kernels" in str(one.message)]) == 1
    assert told[0].filename == __file__
    assert scores.backend == "torch"
    with pytest.raises(BackendError, match="'cpu' cannot run: not in this installation"):
        fec_fast.score_model(network(), backend="cpu")
    found = fec_fast.backends()
    assert not found["cpu"].built and not found["cuda"].built and found["torch"].usable
    assert "in place of the compiled kernels" in found["torch"].reason


@needs_kernels
def test_without_kernels_the_same_filters_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    plans = []
    for native in (extension.native, None):
        monkeypatch.setattr(extension, "native", native)
        monkeypatch.setattr(registry, "_told", [True])
        options: list[dict[str, Any]] = [{"ratio": 0.5}, {"criterion": "fec", "budget": fec_fast.Budget(params=0.4)}]
        plans.append([fec_fast.prune(network(), image, **given, recover=None).plan.keep for given in options])
    assert plans[0] == plans[1]


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_the_operator() -> None:
    weight = random(6, 5, 3, 3)
    arguments = ([0], [1], "none", "similarity", "filters", None, 1.0, "auto")
    with pytest.warns(FecWarning, match="compiled kernels"):
        (got,) = torch.ops.fec_fast.entropy([weight], *arguments)
    assert torch.allclose(got, reference.entropy(weight, Formula()), rtol=0, atol=1e-6)
    with pytest.raises(BackendError, match="not in this installation"):
        torch.ops.fec_fast.entropy([weight], *arguments, "cpu")


def test_an_extension_that_cannot_be_loaded_is_an_error(tmp_path: Any) -> None:
    """Only an extension that is not there has a replacement: one that is broken must not pass for it."""
    script = (
        "import sys, importlib.machinery as m, importlib.util as u, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / '_native.py').write_text('raise ImportError(\"libgomp.so.1: no such file\")')\n"
        "import torch\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'fec_fast.scoring.backends._native':\n"
        "            return u.spec_from_file_location(name, folder / '_native.py')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import fec_fast\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0 and "libgomp.so.1: no such file" in done.stderr


@needs_kernels
def test_with_kernels_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fec_fast.score_model(network()).backend == "cpu"
    assert "in place" not in fec_fast.backends()["torch"].reason
