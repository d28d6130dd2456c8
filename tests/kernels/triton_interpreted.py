"""Every Triton kernel in Triton's interpreter, against the float64 reference. Run by test_triton.py in a process of its
own: the interpreter is chosen (TRITON_INTERPRET=1) when a kernel is defined. Prints how many comparisons it made.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.backends import triton
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import FormulaError

checks = 0


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(w: Tensor, formula: Formula, axis: int = 0, groups: int = 1, algorithm: str = "auto") -> None:
    global checks
    (got,) = triton.entropies([w], formula, axes=[axis], groups=[groups], algorithm=algorithm)
    want = reference.entropy(w, formula, axis=axis, groups=groups)
    points = w.numel() // max(1, w.shape[2:].numel()) // len(want) if formula.axis == "channels" else len(want)
    error, allowed = float((got - want).abs().max()), reference.tolerance(w.dtype, points)
    assert error <= allowed, (list(w.shape), w.dtype, formula, axis, groups, algorithm, error, allowed)
    checks += 1


def every_formula() -> None:
    words: Any = (("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance"), ("channels", "filters"))
    dtypes = itertools.cycle([torch.float32, torch.bfloat16, torch.float64, torch.float16])
    for compress, entropy, axis in itertools.product(*words):
        formula = Formula(compress, entropy, axis)
        compare(weight(3, 5, 2, 2, dtype=next(dtypes)), formula)
        compare(weight(4, 3, 2, dtype=next(dtypes)), formula, axis=1, groups=2)
        compare(weight(5, 7, 1, 1, dtype=next(dtypes)), Formula(compress, entropy, axis, 0.5, 2.0))
        next(dtypes)


def edges() -> None:
    for channels in (1, 2, 15, 16, 17, 31, 33, 64, 127, 129, 300):
        for entropy in ("similarity", "softmax"):
            compare(weight(2, channels), Formula("rms", entropy, "channels"), algorithm="sorted")
    for channels in (31, 33, 65):
        compare(weight(2, channels), Formula("rms", axis="channels"), algorithm="pairwise")
        compare(weight(channels, 3), Formula())
    last = weight(3, 4, 2, 3).to(memory_format=torch.channels_last)
    for formula in (Formula(), Formula("rms", axis="channels"), Formula("none", axis="channels")):
        compare(last, formula)


def corners() -> None:
    rms = Formula("rms", axis="channels")
    alike = weight(3, 33)
    alike[1] = alike[1, :1]
    for algorithm in ("sorted", "pairwise"):
        (got,) = triton.entropies([alike], rms, axes=[0], groups=[1], algorithm=algorithm)
        assert got[1] == 0 and got[0] > 0.1
    for formula in (rms, Formula(), Formula("none", "softmax", "filters")):
        (got,) = triton.entropies([torch.ones(4, 5, 2, 2)], formula, axes=[0], groups=[1])
        assert torch.equal(got, torch.zeros(4, dtype=torch.float64))
    for value in (math.nan, math.inf):
        bad = weight(3, 4)
        bad[1, 2] = value
        good, wrong = triton.entropies([weight(3, 4), bad], rms, axes=[0, 0], groups=[1, 1])
        assert bool(wrong.isnan().all()) and not bool(good.isnan().any())
    for power in (-110, 100):
        for formula in (rms, Formula()):
            w = weight(4, 6, 3)
            a, b = triton.entropies([w, w * 2.0**power], formula, axes=[0, 0], groups=[1, 1])
            assert torch.equal(a, b)
    empty, zeros = triton.entropies([torch.empty(0, 3, 3, 3), torch.empty(3, 0, 3)], rms, axes=[0, 0], groups=[1, 1])
    assert empty.shape == (0,) and torch.equal(zeros, torch.zeros(3, dtype=torch.float64))
    try:
        triton.entropies([weight(3, 4)], Formula(), axes=[0], groups=[1], algorithm="sorted")
    except FormulaError as error:
        assert "channel axis" in str(error)
    else:
        raise AssertionError("sorted did what it cannot")


every_formula()
edges()
corners()
print(checks, "comparisons")
