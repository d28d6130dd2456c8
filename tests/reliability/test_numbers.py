"""Properties of the entropies on numbers that are hard to compute with, by the float64 reference and its tolerance.

The fast part tries some examples of each; ``pytest -m sweep -s tests/reliability/test_numbers.py`` 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast.scoring import ops, reference
from fec_fast.scoring.backends import cpu
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import WeightError
from helpers.formula_cases import sortable
from helpers.hard_numbers import Case, cases, is_normal, maximum

EXAMPLES = [120, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.sweep))]
SETS = [name for name, usable in cpu.instruction_sets().items() if usable]
Property = Callable[[st.DataObject, Case], None]
PROPERTIES: dict[str, Property] = {}


def holds(check: Property) -> Property:
    PROPERTIES[check.__name__] = check
    return check


def entropies(case: Case, weight: Tensor | None = None, **options: Any) -> Tensor:
    (got,), bad = cpu.entropies(
        [case.weight if weight is None else weight], case.formula, axes=[case.axis], groups=[case.groups], **options
    )
    assert bad == -1
    return got


def near(case: Case, left: Tensor, right: Tensor, times: float = 1, dtype: torch.dtype | None = None) -> None:
    allowed = times * case.allowed(dtype)
    assert left.shape == right.shape and float((left - right).abs().max()) <= allowed, (case, left, right, allowed)


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@holds
def equals_the_reference(data: st.DataObject, case: Case) -> None:
    algorithms = ["sorted", "pairwise"] if sortable(case.weight, case.formula) else ["pairwise"]
    choice = {"algorithm": data.draw(st.sampled_from(algorithms)), "instruction_set": data.draw(st.sampled_from(SETS))}
    want = reference.entropy(case.weight, case.formula, axis=case.axis, groups=case.groups)
    near(case, entropies(case, **choice), want)
    near(case, entropies(case, in_float64=True, **choice), want, dtype=torch.float64)


@holds
def lies_between_zero_and_its_maximum(data: st.DataObject, case: Case) -> None:
    got = entropies(case, instruction_set=data.draw(st.sampled_from(SETS)))
    assert float(got.min()) >= 0 and float(got.max()) <= maximum(case.points)
    # By a tau of the caller's, softmax gives equal points the same probability: their entropy is the maximum.
    measured = case.formula.tau is None or case.formula.entropy != "softmax"
    if measured and bool((case.weight == case.weight.flatten()[0]).all()):
        assert not got.any()


@holds
def does_not_depend_on_the_scale(data: st.DataObject, case: Case) -> None:
    power = data.draw(st.integers(-20, 20))
    scaled = case.weight * 2.0**power
    assume(torch.equal(scaled * 2.0**-power, case.weight))  # no bit was lost
    tau = None if case.formula.tau is None else case.formula.tau * 2.0**power
    changed = case._replace(weight=scaled, formula=replace(case.formula, tau=tau))
    if is_normal(case.weight) and is_normal(scaled):
        assert torch.equal(entropies(case), entropies(changed))
    else:
        near(case, entropies(case), entropies(changed), times=2)


@holds
def does_not_depend_on_the_sign(data: st.DataObject, case: Case) -> None:
    near(case, entropies(case), entropies(case, -case.weight), times=2)
    zeros = torch.where(case.weight == 0, torch.full_like(case.weight, -0.0), case.weight)
    assert torch.equal(entropies(case), entropies(case, zeros))
    assert torch.equal(entropies(case), entropies(case, torch.where(case.weight == 0, 0.0, case.weight)))


@holds
def moves_with_a_permutation(data: st.DataObject, case: Case) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    filters = reference.filters_of(case.weight, axis=case.axis, groups=case.groups).to(case.weight.dtype)
    plain = Case(filters.contiguous(), 0, 1, case.formula)
    rows, channels, taps = (torch.randperm(size, generator=generator) for size in filters.shape)
    near(plain, entropies(plain)[rows], entropies(plain, filters[rows][:, channels][:, :, taps].contiguous()), times=2)


@holds
def copies_have_one_entropy(data: st.DataObject, case: Case) -> None:
    filters = reference.filters_of(case.weight, axis=case.axis, groups=case.groups).to(case.weight.dtype)
    row = data.draw(st.integers(0, len(filters) - 1))
    twice = Case(torch.cat([filters, filters[row : row + 1]]), 0, 1, case.formula)
    got = entropies(twice, instruction_set=data.draw(st.sampled_from(SETS)))
    near(twice, got[row : row + 1], got[-1:], times=2)
    twice.weight[row] = twice.weight[row, :1]  # all channels alike
    if case.formula.axis == "channels" and case.formula.entropy == "similarity":
        assert entropies(twice)[row] == 0


@holds
def does_not_depend_on_the_dtype(data: st.DataObject, case: Case) -> None:
    wide = case.weight.float() if case.weight.dtype in (torch.float16, torch.bfloat16) else case.weight
    assert torch.equal(entropies(case), entropies(case, wide))
    near(case, entropies(case), entropies(case, case.weight.double()))
    near(case, entropies(case, in_float64=True), entropies(case, case.weight.double()), dtype=torch.float64)


@holds
def does_not_depend_on_the_layout(data: st.DataObject, case: Case) -> None:
    order = data.draw(st.permutations(range(case.weight.dim())))
    inverse = [order.index(dim) for dim in range(case.weight.dim())]
    moved = case.weight.permute(order).contiguous().permute(inverse)
    larger = torch.full([size + 2 for size in case.weight.shape], math.nan, dtype=case.weight.dtype)
    inside = larger[tuple(slice(1, 1 + size) for size in case.weight.shape)].copy_(case.weight)
    every_second = torch.stack([case.weight, torch.full_like(case.weight, math.inf)], -1)[..., 0]
    for weight in (moved, inside, every_second):
        near(case, entropies(case), entropies(case, weight), times=2)


@holds
def the_second_axis_is_the_first_of_the_transposed(data: st.DataObject, case: Case) -> None:
    filters = reference.filters_of(case.weight, axis=1, groups=case.groups).to(case.weight.dtype)
    near(case._replace(axis=1), entropies(case._replace(axis=1)), entropies(Case(filters, 0, 1, case.formula)), times=2)


@holds
def does_not_depend_on_threads_nor_on_other_weights(data: st.DataObject, case: Case) -> None:
    """To the last bit."""
    torch.set_num_threads(1)
    expected = entropies(case)
    others = [torch.randn(data.draw(st.integers(1, 40)), 3, 2), torch.randn(4, 5).half(), torch.randn(300, 70)]
    for threads in (2, 3, 7, 16):
        torch.set_num_threads(threads)
        assert torch.equal(entropies(case), expected)
        together = data.draw(st.permutations([case.weight, *others]))
        at = next(i for i, weight in enumerate(together) if weight is case.weight)
        axes, groups = [0] * 4, [1] * 4
        axes[at], groups[at] = case.axis, case.groups
        got, bad = cpu.entropies(together, case.formula, axes=axes, groups=groups)
        assert bad == -1 and torch.equal(got[at], expected)


@holds
def does_not_depend_on_flush_to_zero(data: st.DataObject, case: Case) -> None:
    choice = {"instruction_set": data.draw(st.sampled_from(SETS)), "in_float64": data.draw(st.booleans())}
    torch.set_num_threads(data.draw(st.sampled_from([1, 3])))
    expected = entropies(case, **choice)
    if torch.set_flush_denormal(True):
        try:
            got = entropies(case, **choice)
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(got, expected)


@holds
def relates_the_formulas(data: st.DataObject, case: Case) -> None:
    formula, one_tap = case.formula, case.weight.flatten(2)[:, :, :1] if case.weight.dim() > 2 else case.weight
    single = case._replace(weight=one_tap.contiguous())
    rms, absolute = (replace(formula, compress=word) for word in ("rms", "absmean"))
    assert torch.equal(entropies(single._replace(formula=rms)), entropies(single._replace(formula=absolute)))
    mean, none = (replace(formula, compress=word) for word in ("mean", "none"))
    near(single._replace(formula=none), *(entropies(single._replace(formula=each)) for each in (mean, none)), times=2)
    if formula.tau is not None:
        joined = case._replace(formula=replace(formula, tau=formula.tau * formula.tau_scale, tau_scale=1.0))
        near(case, entropies(case), entropies(joined), times=2)
    if formula.entropy == "similarity":  # the larger tau, the more alike
        coarse = case._replace(formula=replace(formula, tau_scale=2 * formula.tau_scale))
        assert bool((entropies(coarse) <= entropies(case) + case.allowed() + coarse.allowed()).all())
    both = replace(formula, axis="both")
    (got,) = ops.entropies([case.weight], both, axes=[case.axis], groups=[case.groups])
    assert torch.equal(got, sum(entropies(case._replace(formula=part)) for part in both.parts()))


@holds
def names_the_layer_of_a_number_that_is_not_finite(data: st.DataObject, case: Case) -> None:
    weights = [torch.randn(3, 4), case.weight.clone(), torch.randn(5, 2, 2)]
    value = data.draw(st.sampled_from([math.nan, -math.nan, math.inf, -math.inf]))
    at = tuple(data.draw(st.integers(0, size - 1)) for size in case.weight.shape)
    weights[1][at] = value
    axes, groups = [0, case.axis, 1], [1, case.groups, 1]
    for name in SETS:
        _, bad = cpu.entropies(weights, case.formula, axes=axes, groups=groups, instruction_set=name)
        assert bad == 1
    with pytest.raises(WeightError, match="body.conv") as caught:
        ops.entropies(weights, case.formula, axes=axes, groups=groups, names=["stem", "body.conv", "head"])
    assert caught.value.layer == "body.conv" and caught.value.index == at


@pytest.mark.parametrize("number", EXAMPLES)
@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str, number: int) -> None:
    options = settings(max_examples=number, suppress_health_check=list(HealthCheck))
    options(given(st.data(), cases())(PROPERTIES[name]))()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_a_number_that_is_not_finite(dtype: torch.dtype, value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).to(dtype)
    model[2].weight.data[3, 1, 2, 0] = value
    for call in (
        lambda: fec_fast.score_model(model),
        lambda: fec_fast.prune(model, torch.zeros(1, 3, 8, 8, dtype=dtype), ratio=0.5, recover=None),
    ):
        with pytest.raises(WeightError, match=r"\b2\.weight|\b'?2'?\b") as caught:
            call()
        assert caught.value.layer == "2" and caught.value.index == (3, 1, 2, 0)


def test_one_filter_or_one_channel() -> None:
    shapes: Sequence[tuple[int, ...]] = [(1, 1), (1, 7), (7, 1), (1, 1, 3, 3), (1, 5, 3, 3), (5, 1, 3, 3)]
    for shape in shapes:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for axis, entropy in [(a, e) for a in ("channels", "filters") for e in ("similarity", "softmax", "distance")]:
            case = Case(weight, 0, 1, Formula("rms", entropy, axis))  # type: ignore[arg-type]
            if case.points == 1:
                assert not entropies(case).any()
