"""The cross-check of a GPU's kernels: once for each kind of call, on a layer that the CPU can afford."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fec_fast.scoring import gpu_check as module
from fec_fast.scoring import reference
from fec_fast.scoring.formula import Formula
from fec_fast.scoring.gpu_check import cross_check
from fec_fast.utils.errors import BackendError


@pytest.fixture(autouse=True)
def _nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_checked", set())


class Call:
    """A call of a backend for weights of some shapes, and what the CPU was asked for."""

    def __init__(
        self,
        *shapes: tuple[int, ...],
        wrong_by: float = 0.0,
        cpu_wrong_by: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        self.wrong_by, self.cpu_wrong_by = wrong_by, cpu_wrong_by
        self.asked: list[tuple[int, ...]] = []

    def check(self, formula: Formula | None = None, **more: Any) -> list[tuple[int, ...]]:
        """Cross-checks the call; returns the shapes that the CPU computed so far."""
        formula = formula or Formula()

        def on_cpu(weight: Tensor, axis: int, group: int) -> Tensor:
            self.asked.append(tuple(weight.shape))
            return reference.entropy(weight, formula, axis=axis, groups=group) + self.cpu_wrong_by

        given: dict[str, Any] = {"algorithm": "auto", "backend": "triton"} | more
        axes, groups = [0] * len(self.weights), [1] * len(self.weights)
        results = [reference.entropy(weight, formula) for weight in self.weights]
        results[0][-1] += self.wrong_by
        cross_check(self.weights, results, formula, axes, groups, on_cpu=on_cpu, **given)
        return self.asked


def test_wrong_kernels_are_an_error_in_every_call() -> None:
    call = Call((4, 3, 3, 3), wrong_by=0.01)
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"'triton' are wrong on cpu: for weight 0, \[4, 3, 3, 3\].*backend='cpu'"
        ):
            call.check()
    with pytest.raises(BackendError, match="nan"):
        Call((4, 3, 3, 3), wrong_by=float("nan")).check()


def test_rounding_is_none() -> None:
    assert Call((4, 3, 3, 3), wrong_by=1e-5).check() == [(4, 3, 3, 3)]


def test_the_reference_decides_where_the_cpu_is_off_too() -> None:
    """Such weights say nothing of the kernels: they are not believed for it, nor called wrong."""
    call = Call((4, 3, 3, 3), wrong_by=0.02, cpu_wrong_by=-0.01)
    assert len(call.check()) == 1 and len(call.check()) == 2
    assert len(Call((4, 3, 3, 3), cpu_wrong_by=0.01).check()) == 1
    with pytest.raises(BackendError, match=r"by 0\.2 nats"):
        Call((4, 3, 3, 3), wrong_by=0.2, cpu_wrong_by=-0.01).check()


def test_a_kind_of_call_is_checked_once() -> None:
    call = Call((4, 3, 3, 3))
    assert len(call.check()) == len(call.check()) == 1
    assert len(call.check(Formula(tau=0.1))) == 1
    others: list[dict[str, Any]] = [{"backend": "cuda"}, {"algorithm": "pairwise"}, {"formula": Formula("rms")}]
    for number, other in enumerate([*others, {"formula": Formula(entropy="distance")}], 2):
        assert len(call.check(**other)) == number
    assert len(Call((4, 3, 3, 3), dtype=torch.float64).check()) == 1


def test_the_layer_is_the_largest_that_the_cpu_can_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (4, 3, 3, 3), (16, 8, 3, 3), (64, 64, 3, 3)
    assert Call(*shapes).check() == [shapes[2]]
    monkeypatch.setattr(module, "MOST_WORK", 16 * 16 * 8 * 9)
    assert Call(*shapes).check(backend="cuda") == [shapes[1]]
    monkeypatch.setattr(module, "MOST_WORK", 1)
    assert Call(*shapes).check(algorithm="pairwise") == [shapes[0]]
