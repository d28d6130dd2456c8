"""The same channels are removed whatever computes the scores: backend, instruction set, threads, layers in one call.

Compared is more than what is removed: the order of all units of every coupled set. The networks of
:mod:`helpers.removals` have layers whose scores are mathematically equal, and numbers from subnormal to the largest.
The fast part takes a few of them; ``pytest -m sweep -s tests/reliability/test_removed_sets.py`` 10,000.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fec_fast.scoring.backends import cpu, cuda, triton
from fec_fast.scoring.formula import Formula
from helpers import emulated
from helpers.processes import run_python
from helpers.removals import Case, Decision, by_reference, decide, drawn_case, layers_outside_of_first_set, one_by_one

CASES = [16, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.sweep))]
FEWER = [3, pytest.param(400, marks=(pytest.mark.slow, pytest.mark.sweep))]
SCRIPT = """
import json, sys
from helpers.removals import by_triton, decide, drawn_case
options = [by_triton] if sys.argv[1] == "triton" else []
print(json.dumps([decide(drawn_case(seed), *options) for seed in range(int(sys.argv[2]))]))
"""


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def wanted(number: int) -> list[Decision]:
    """The decisions for the first cases as they are by default, on one thread."""
    return [decide(drawn_case(seed)) for seed in range(number)]


def compare(number: int, decided: Callable[..., Decision] = decide) -> None:
    """Compares decisions of another kind, or under other settings, with those by default."""
    different = [seed for seed, expected in enumerate(wanted(number)) if decided(drawn_case(seed)) != expected]
    assert different == []


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("instruction_set", cpu.instruction_sets())
def test_instruction_sets(instruction_set: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu.instruction_sets()[instruction_set]:
        pytest.skip(f"this processor has no {instruction_set}")
    wanted(number)
    monkeypatch.setenv("FEC_FAST_INSTRUCTION_SET", instruction_set)
    compare(number)


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("threads", [2, 3, 7, 16])
def test_threads(threads: int, number: int) -> None:
    wanted(number)
    torch.set_num_threads(threads)
    compare(number)


@pytest.mark.parametrize("number", CASES)
def test_layers_in_calls_of_their_own(number: int) -> None:
    compare(number, functools.partial(decide, entropies=one_by_one))


@pytest.mark.parametrize("number", CASES)
def test_other_layers_ignored(number: int) -> None:
    """What is removed from a coupled set does not depend on whether other sets may lose channels, too."""
    wanted(number)
    compared = 0
    for seed in range(number):
        case = drawn_case(seed)
        ignore = layers_outside_of_first_set(case)
        if ignore:
            assert decide(case, ignore=ignore).order[0] == wanted(number)[seed].order[0], f"seed {seed}"
            compared += 1
    assert compared > number / 4


@pytest.mark.parametrize("number", CASES)
def test_the_reference(number: int) -> None:
    compare(number, functools.partial(decide, entropies=by_reference))


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_flush_to_zero(threads: int, number: int) -> None:
    wanted(number)
    torch.set_num_threads(threads)

    def decided(case: Case) -> Decision:  # the case was drawn before: what is drawn has subnormal numbers
        assert torch.set_flush_denormal(True)
        try:
            return decide(case)
        finally:
            torch.set_flush_denormal(False)

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush subnormal numbers to zero")
    compare(number, decided)


@pytest.mark.slow
@pytest.mark.parametrize("number", FEWER)
def test_cuda_in_the_emulator(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.backend(monkeypatch)

    def entropies(weights: list[Tensor], formula: Formula, *, axes: Any, groups: Any, **_: Any) -> list[Tensor]:
        return cuda.entropies([weight.detach().double() for weight in weights], formula, axes=axes, groups=groups)

    compare(number, functools.partial(decide, entropies=entropies))


def decided_by(way: str, number: int, **environment: str) -> None:
    """Compares with the decisions of another process."""
    done = run_python("-c", SCRIPT, way, str(number), timeout=36_000, **environment)
    assert done.returncode == 0, done.stderr
    found = [Decision(*decision) for decision in json.loads(done.stdout.splitlines()[-1])]
    assert [seed for seed in range(number) if found[seed] != wanted(number)[seed]] == []


@pytest.mark.slow
@pytest.mark.skipif(not triton.installed() or triton.is_too_old(), reason="needs triton 3.4")
@pytest.mark.parametrize("number", FEWER)
def test_triton_in_the_interpreter(number: int) -> None:
    decided_by("triton", number, TRITON_INTERPRET="1")


@pytest.mark.parametrize("number", CASES)
def test_torch_and_numpy_without_vectors(number: int) -> None:
    """They choose instruction sets too, when they are imported: for norms, exponentials and logarithms."""
    names = "AVX512_ICL AVX512_CNL AVX512_CLX AVX512_SKX AVX512CD AVX512F X86_V4 AVX2 FMA3 X86_V3"
    plain = {
        "ATEN_CPU_CAPABILITY": "default",
        "FEC_FAST_INSTRUCTION_SET": "baseline",
        "NPY_DISABLE_CPU_FEATURES": names,
    }
    decided_by("cpu", number, **plain)
