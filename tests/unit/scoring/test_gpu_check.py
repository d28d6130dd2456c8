"""The cross-check of a GPU's kernels: once for each kind of call, on a layer that the CPU can afford."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fec_fast.scoring import gpu_check as module
from fec_fast.scoring.formula import Formula
from fec_fast.scoring.gpu_check import cross_check
from fec_fast.utils.errors import BackendError


@pytest.fixture(autouse=True)
def _nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_checked", set())


class Call:
    """A call of a backend for weights of some shapes, and what the CPU was asked for."""

    def __init__(self, *shapes: tuple[int, ...], wrong_by: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.weights = [torch.ones(shape, dtype=dtype) for shape in shapes]
        self.results = [torch.full((shape[0],), 1.0, dtype=torch.float64) for shape in shapes]
        self.results[0][-1] += wrong_by
        self.asked: list[tuple[int, ...]] = []

    def check(self, formula: Formula | None = None, **more: Any) -> list[tuple[int, ...]]:
        """Cross-checks the call; returns the shapes that the CPU computed so far."""

        def on_cpu(weight: Tensor, axis: int, group: int) -> Tensor:
            assert (axis, group) == (0, 1)
            self.asked.append(tuple(weight.shape))
            return torch.ones(weight.shape[0], dtype=torch.float64)

        given: dict[str, Any] = {"algorithm": "auto", "backend": "triton"} | more
        axes, groups = [0] * len(self.weights), [1] * len(self.weights)
        cross_check(self.weights, self.results, formula or Formula(), axes, groups, on_cpu=on_cpu, **given)
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


def test_a_kind_of_call_is_checked_once() -> None:
    call = Call((4, 3, 3, 3))
    assert len(call.check()) == len(call.check()) == 1
    assert len(call.check(Formula(tau=0.1))) == 1
    for number, other in enumerate(({"backend": "cuda"}, {"algorithm": "pairwise"}, {"formula": Formula("rms")}), 2):
        assert len(call.check(**other)) == number  # type: ignore[arg-type]
    assert len(Call((4, 3, 3, 3), dtype=torch.float64).check()) == 1
    assert Call((4, 3, 3, 3)).check(Formula(entropy="distance")) == []


def test_the_layer_is_the_largest_that_the_cpu_can_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (4, 3, 3, 3), (16, 8, 3, 3), (64, 64, 3, 3)
    assert Call(*shapes).check() == [shapes[2]]
    monkeypatch.setattr(module, "MOST_WORK", 16 * 16 * 8 * 9)
    assert Call(*shapes).check(backend="cuda") == [shapes[1]]
    monkeypatch.setattr(module, "MOST_WORK", 1)
    assert Call(*shapes).check(algorithm="pairwise") == [shapes[0]]
