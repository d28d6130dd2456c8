"""The Triton kernels between filters in Triton's interpreter, looked at from inside: which tiles take the exact path,
how tensor cores may round, what is launched. Run by test_triton.py in a process of its own (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from fec_fast.scoring import reference
from fec_fast.scoring.backends import triton, triton_group, triton_launches, triton_table
from fec_fast.scoring.formula import Formula

FILTERS = Formula()


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def entropies(w: Tensor, formula: Formula = FILTERS) -> Tensor:
    triton._plans.clear()  # a plan made before a change of the modules would not have it
    return triton.entropies([w], formula, axes=[0], groups=[1])[0]


def error(w: Tensor, formula: Formula = FILTERS) -> float:
    """The largest error as a share of the tolerance."""
    difference = (entropies(w, formula) - reference.entropy(w, formula)).abs().max()
    return float(difference) / reference.tolerance(w.dtype, len(w))


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def watched(run: Callable[[str], bool] = lambda name: True) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """The launches: name and copies of the arguments. Kernels can be left out."""
    launches: list[tuple[str, tuple[Any, ...]]] = []
    call = triton_group.Launcher.__call__

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        name = self.kernel.__name__
        # A compiled kernel takes the constants by position, behind the arguments.
        assert list(self.constants) == list(self.kernel.arg_names)[len(arguments) :], name
        launches.append((name, tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)))
        if run(name):
            call(self, *arguments, **options)

    with replaced(triton_group.Launcher, "__call__", launch):
        yield launches


def exact_bands(w: Tensor, formula: Formula = FILTERS) -> set[tuple[int, int, int]]:
    """The bands of 32 rows that are made again by differences, as (row of tiles, column of tiles, band)."""
    with watched() as launches:
        entropies(w, formula)
    found = set()
    for name, arguments in launches:
        if name == "near_tiles":
            order, notes = arguments[1], arguments[7].view(-1, 3)  # two bands in a tile of 64, and its exponent
            for (_, i, j, _), note in zip(order.tolist(), notes.tolist(), strict=True):
                found |= {(i, j, band) for band in range(2) if note[band]}
    return found


def the_exact_path() -> None:
    """It is taken where points are near one another, there alone, and it is needed there."""
    for filters in (40, 64, 130):  # padded rows repeat the last filter, and must not count as near it
        assert exact_bands(weight(filters, 50, 3)) == set(), filters
    w = weight(130, 50, 3)
    w[40] = w[3]
    assert exact_bands(w) == {(0, 0, 0), (0, 0, 1)}
    w[129] = w[100] * 1.01
    assert exact_bands(w) == {(0, 0, 0), (0, 0, 1), (1, 2, 1)}
    w[40] = w[3] * 0.5  # parallel, and far from one another
    assert exact_bands(w) == {(1, 2, 1)}
    clusters = weight(8, 40, 3).repeat(8, 1, 1) + 1e-4 * weight(64, 40, 3, seed=1)
    for formula in (FILTERS, Formula("rms", axis="filters"), Formula(tau=2.0)):
        assert error(clusters, formula) < 0.5, formula
        with watched(lambda name: name != "near_tiles"):
            assert error(clusters, formula) > 2, formula


class TensorCore:
    """A model of a tensor core: products are exact, ``group`` of them and the sum so far are aligned to the largest of
    them, truncated to float32's digits and ``extra`` more, added, and truncated to float32.

    The parameters of V100, A100 and H100 are those of Khattak & Mikaitis, arXiv:2512.07004.
    """

    def __init__(self, group: int, extra: int) -> None:
        self.group, self.extra, self.calls = group, extra, 0

    def __call__(self, builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        self.calls += 1
        left, right = a.data.astype(np.float64), b.data.astype(np.float64)
        total = d.data.astype(np.float64)
        for first in range(0, left.shape[1], self.group):
            part = slice(first, first + self.group)
            products = left[:, part].T[:, :, None] * right[part, None, :]
            largest = np.maximum(np.abs(products).max(0), np.abs(total))
            digits = self.truncated(products, largest, 23 + self.extra).sum(0)
            total = digits + self.truncated(total, largest, 23 + self.extra)
            total = self.truncated(total, np.abs(total), 23)
        return interpreter.TensorHandle(total.astype(np.float32), d.dtype.scalar)

    @staticmethod
    def truncated(x: Any, largest: Any, digits: int) -> Any:
        unit = 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - digits)
        return np.trunc(x / unit) * unit


def rounding_of_tensor_cores() -> None:
    """With the rounding of three devices, at one sign and the smallest distances that are made by products."""
    spread = torch.rand((48, 256, 3, 3), generator=torch.Generator().manual_seed(1)) * 2 - 1
    one_sign = 0.5 * (1 + 0.34 * spread)
    assert exact_bands(one_sign) == set()  # so that the products are what is tested
    builder = interpreter.InterpreterBuilder
    small = triton_launches.tiling_of(torch.device("cpu"))
    hopper = triton_launches.Tiling(64, 64, 8, 3)
    for group, extra, tiling in ((4, 0, small), (8, 1, small), (16, 2, hopper)):
        core = TensorCore(group, extra)
        with (
            replaced(builder, "create_dot", lambda *arguments, core=core: core(*arguments)),
            replaced(triton_launches, "tiling_of", lambda device, tiling=tiling: tiling),
        ):
            for w, formula in ((one_sign, FILTERS), (one_sign, Formula(tau=3.0)), (weight(48, 256), FILTERS)):
                share = error(w, formula)
                assert share < 1, (group, extra, formula, share)
            assert core.calls > 100
            with replaced(triton_launches, "is_split", lambda dtype, formula: False):
                assert error(one_sign) > 1, "without lo the products must be too coarse"


def batches_and_groups() -> None:
    """With little room tiles are made in batches, twice, and layers in groups: the same bits."""
    weights = [weight(130, 20, 3), weight(70, 30), weight(20, 9, seed=2)]
    calls: Any = {"axes": [0] * 3, "groups": [1] * 3}
    for formula in (FILTERS, Formula(tau=2.0), Formula("none", "distance", "filters")):
        triton._plans.clear()
        want = triton.entropies(weights, formula, **calls)
        with replaced(triton_table, "WORKSPACE", 1 << 16), replaced(triton_launches, "WORKSPACE", 1 << 16):
            triton._plans.clear()
            with watched() as launches:
                got = triton.entropies(weights, formula, **calls)
        count = Counter(name for name, _ in launches)
        assert count["split_filters"] > 1 and count["multiply_tiles"] > 2 * count["split_filters"]
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True)), formula
    weights = [weight(25, 40, 3), weight(17, 30), weight(5, 9, seed=2)]
    for formula in (Formula("rms", axis="channels"), Formula("none", axis="channels")):
        triton._plans.clear()
        with watched() as together:
            want = triton.entropies(weights, formula, **calls)
        with replaced(triton_table, "WORKSPACE", 1 << 12):
            triton._plans.clear()
            with watched() as apart:
                got = triton.entropies(weights, formula, **calls)
        assert len(apart) > len(together), "the first layer has no room alone, the others have it together"
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True)), formula


def launches_of_a_model() -> dict[str, int]:
    """Launches do not grow with the number of layers, and a second call uses no torch operator but empty and views."""
    shapes = [(12, 3, 3, 3), (20, 12, 1, 1), (20, 20, 3, 3), (8, 100, 1, 1), (16, 8), (5, 70)]
    result = {}
    for name, formula in {
        "between filters": FILTERS,
        "sorted": Formula("rms", axis="channels"),
        "all pairs inside": Formula("none", axis="channels"),
    }.items():
        counts = set()
        for repeats in (1, 3):
            weights = [weight(*shape, seed=seed) for seed, shape in enumerate(shapes * repeats)]
            calls: Any = {"axes": [0] * len(weights), "groups": [1] * len(weights)}
            operators = Counter[str]()

            class Recorder(TorchDispatchMode):
                def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                    operators[str(func)] += 1  # noqa: B023
                    return func(*args, **(kwargs or {}))

            # The interpreter uses operators of torch itself, so the kernels are left out.
            nothing, same = (lambda name: False), (lambda tensor: tensor)
            with watched(nothing), replaced(Tensor, "clone", same):
                triton.entropies(weights, formula, **calls)
            with watched(nothing) as launches, replaced(Tensor, "clone", same), Recorder():
                triton.entropies(weights, formula, **calls)
            views = {"aten.split_with_sizes.default", "aten.slice.Tensor"}
            assert set(operators) <= views | {"aten.empty.memory_format"}, operators
            assert operators["aten.empty.memory_format"] <= 10
            counts.add(len(launches))
        assert len(counts) == 1, (name, counts)
        result[name] = counts.pop()
    return result


def a_plan_serves_other_values() -> None:
    """The table is made once for a list of weights; values may change, and so may the list."""
    made = 0
    build = triton.groups_of

    def counted(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        return build(*arguments)

    w = weight(9, 5, 3)
    with replaced(triton, "groups_of", counted):
        triton._plans.clear()
        for _ in range(3):
            (got,) = triton.entropies([w], FILTERS, axes=[0], groups=[1])
            assert float((got - reference.entropy(w, FILTERS)).abs().max()) < 1e-5
            w.mul_(0.5).add_(weight(9, 5, 3, seed=made))
        assert made == 1
        other = w.clone()
        for call in ((w, Formula(tau=1.0)), (other, FILTERS), (w[:4], FILTERS)):
            triton.entropies([call[0]], call[1], axes=[0], groups=[1])
        assert made == 4
        for filters in range(1, 40):
            triton.entropies([weight(filters, 2)], FILTERS, axes=[0], groups=[1])
        assert len(triton._plans) <= 16


warnings.simplefilter("ignore")  # numpy's, of infinite padding
the_exact_path()
rounding_of_tensor_cores()
batches_and_groups()
a_plan_serves_other_values()
print(json.dumps(launches_of_a_model()))
