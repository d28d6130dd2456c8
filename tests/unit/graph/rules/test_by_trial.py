"""Operators without a rule: pruned where they act within each channel, kept whole where they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from tests.helpers.operators import ACROSS, SIDE, WIDTH, WITHIN, WITHIN_1D, WITHIN_3D, Network

calls: list[str] = []
OF_DIMS = {2: WITHIN, 1: WITHIN_1D, 3: WITHIN_3D}


def assert_equals_masked(model: nn.Module, result: fec_fast.PruneResult, image: Tensor) -> None:
    """Runs the pruned network, and the original with zeros where the plan removes, both in float64."""
    masked = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, axes in result.plan.keep.items():
            tensor = masked.get_parameter(name)
            for axis, kept in axes.items():
                removed = [index for index in range(tensor.shape[int(axis)]) if index not in kept]
                tensor.index_fill_(int(axis), torch.tensor(removed), 0.0)
        expected, found = masked(image.double()), copy.deepcopy(result.model).double()(image.double())
    assert torch.allclose(expected, found, rtol=0, atol=1e-10 * float(expected.abs().max() + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "name"), [(dims, name) for dims, table in OF_DIMS.items() for name in table])
def test_within_each_channel(dims: int, name: str) -> None:
    torch.manual_seed(0)
    model, image = Network(OF_DIMS[dims][name], dims).eval(), torch.rand(2, 3, *[SIDE] * dims)
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    assert result.model.a.out_channels < WIDTH
    assert result.difference is not None and result.difference < 1e-9
    result = fec_fast.prune(model, image, ratio=0.7, criterion="random", verify=False, recover=None)
    assert result.model.a.out_channels < WIDTH
    assert_equals_masked(model, result, torch.rand_like(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ACROSS)
def test_across_channels(name: str) -> None:
    torch.manual_seed(0)
    model, image = Network(ACROSS[name]).eval(), torch.rand(2, 3, SIDE, SIDE)
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    assert result.model.a.out_channels == WIDTH and result.model.stem[0].out_channels == 4
    assert "a" in result.plan.pinned
    assert result.difference is not None and result.difference < 1e-9


SAME_RANK = sorted(
    name for name, function in (WITHIN | ACROSS).items() if function(torch.rand(2, WIDTH, SIDE, SIDE)).dim() == 4
)


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(names=st.lists(st.sampled_from(SAME_RANK), min_size=2, max_size=4), seed=st.integers(0, 3))
def test_compositions_are_equal_or_kept(names: list[str], seed: int) -> None:
    functions = [(WITHIN | ACROSS)[name] for name in names]

    def composed(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
            x = torch.sigmoid((x.real if x.is_complex() else x).to(torch.get_default_dtype()))
        return x

    torch.manual_seed(seed)
    try:
        model = Network(composed).eval()
    except RuntimeError:
        assume(False)
    image = torch.rand(2, 3, SIDE, SIDE)
    assume(bool(model(image).isfinite().all()))  # a deviation of one number is none
    result = fec_fast.prune(model, image, ratio=0.5, criterion="random", verify=False, recover=None)
    fec_fast.verify_equivalence(model, result.model, result.plan, image)
    if all(name in WITHIN for name in names):
        assert result.plan.keep


def test_one_note_for_an_operator() -> None:
    model = Network(lambda x: x.tril().cummax(3)[0].tril().cummax(2)[0]).eval()
    notes = [note for note in fec_fast.couplings(model, torch.rand(1, 3, 8, 8)).notes if "no rule" in note]
    assert notes == [
        f"aten.{name}.default has no rule: it was tried on drawn numbers, and acts within each channel"
        for name in ("tril", "cummax")
    ]


# Operators of other libraries ---------------------------------------------------------------------------------------
@torch.library.custom_op("fec_fast_tests::numpy_sine", mutates_args=())
def numpy_sine(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(x.numpy()))


@torch.library.custom_op("fec_fast_tests::scaled", mutates_args=())
def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale.view(-1, 1, 1)


@torch.library.custom_op("fec_fast_tests::joined", mutates_args=())
def joined(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.cumsum(2) * y, (x - y).argmax(3, keepdim=True)


@torch.library.custom_op("fec_fast_tests::square_", mutates_args=("x",))
def square_(x: Tensor) -> None:
    x.mul_(x.clone())


@torch.library.custom_op("fec_fast_tests::maxout", mutates_args=())
def maxout(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2)).amax(2)


@torch.library.custom_op("fec_fast_tests::mean_of_channels", mutates_args=())
def mean_of_channels(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@torch.library.custom_op("fec_fast_tests::clipped", mutates_args=())
def clipped(x: Tensor) -> Tensor:
    return x * (x.amax(1, keepdim=True) < 1000)


@torch.library.custom_op("fec_fast_tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    return x / x.shape[1]


@torch.library.custom_op("fec_fast_tests::numbered", mutates_args=())
def numbered(x: Tensor) -> Tensor:
    return x + (torch.arange(x.shape[1]) == 7).view(-1, 1, 1)


@torch.library.custom_op("fec_fast_tests::of_width", mutates_args=())
def of_width(x: Tensor, width: int) -> Tensor:
    return x * (x.shape[1] == width)


@torch.library.custom_op("fec_fast_tests::noisy", mutates_args=())
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@torch.library.custom_op("fec_fast_tests::repeat", mutates_args=())
def repeat(x: Tensor) -> Tensor:
    calls.append("repeat")
    return x.clone()


@torch.library.custom_op("fec_fast_tests::reads", mutates_args=())
def reads(x: Tensor) -> None:
    x.sum()


@torch.library.custom_op("fec_fast_tests::mixes_between", mutates_args=())
def mixes_between(x: Tensor) -> Tensor:
    """Acts within each channel on all numbers but those of the network that calls it."""
    return x.flip(1) + x.mean(1, keepdim=True) if bool((x > 0.3).all() and (x < 0.7).all()) else x.clone()


class WithParameter(nn.Module):
    def __init__(self, operator: Callable[[Tensor, Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.operator, self.parameter = operator, nn.Parameter(torch.rand(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x, self.parameter)


def _squared(x: Tensor) -> Tensor:
    x = x.clone()
    square_(x)
    return x


def _both(x: Tensor) -> Tensor:
    values, positions = joined(x, x.flip(3) * 2)
    return values + positions


OTHERS_WITHIN = {
    "computed with NumPy": (lambda: lambda x: numpy_sine(x), 6),
    "scale per channel": (lambda: WithParameter(lambda x, y: scaled(x, y), WIDTH), 6),
    "two operands and results": (lambda: _both, 6),
    "in place": (lambda: _squared, 6),
    "pairs of channels": (lambda: lambda x: maxout(x), 6),
}
OTHERS_KEPT = {
    "a constant beside the channels": (lambda x: scaled(x, torch.ones(WIDTH)), "without channels as well"),
    "the number as an argument": (lambda x: of_width(x, x.shape[1]), "number of channels as an argument"),
    "mean over channels": (lambda x: mean_of_channels(x), "relates channels"),
    "a limit that drawn numbers seldom reach": (lambda x: clipped(x), "relates channels"),
    "the number of channels": (lambda x: counted(x), "relates channels"),
    "the number of a channel": (lambda x: numbered(x), "relates channels"),
    "random numbers": (lambda x: noisy(x), "something else each time"),
}


@pytest.mark.parametrize("name", OTHERS_WITHIN)
def test_operators_of_other_libraries(name: str) -> None:
    torch.manual_seed(0)
    body, width = OTHERS_WITHIN[name]
    model, image = Network(body()).eval(), torch.rand(2, 3, SIDE, SIDE)
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    assert result.model.a.out_channels == width
    assert result.difference is not None and result.difference < 1e-9
    assert_equals_masked(model, result, image)


@pytest.mark.parametrize("name", OTHERS_KEPT)
def test_operators_of_other_libraries_that_keep_the_width(name: str) -> None:
    body, words = OTHERS_KEPT[name]
    result = fec_fast.prune(Network(body).eval(), torch.rand(2, 3, SIDE, SIDE), ratio=0.5, verify=False, recover=None)
    assert result.model.a.out_channels == WIDTH and words in result.plan.pinned["a"]


def test_a_tensor_that_an_operator_of_others_reads_leaves_the_model() -> None:
    def body(x: Tensor) -> Tensor:
        reads(x)
        return x

    result = fec_fast.prune(Network(body).eval(), torch.rand(2, 3, SIDE, SIDE), ratio=0.5, recover=None)
    assert result.model.a.out_channels == WIDTH and "returns no tensor" in result.plan.pinned["a"]


def test_what_the_proof_refutes_is_kept() -> None:
    torch.manual_seed(0)
    model = Network(lambda x: mixes_between(x)).eval()
    with torch.no_grad():
        model.a.weight.mul_(0.1)
    result = fec_fast.prune(model, torch.rand(2, 3, SIDE, SIDE), ratio=0.5, recover=None)
    assert result.model.a.out_channels == WIDTH and result.model.stem[0].out_channels == 4
    assert "has no rule, and without some channels" in result.plan.pinned["a"]


def test_a_size_that_does_not_follow_is_found() -> None:
    result = fec_fast.prune(
        Network(lambda x: x + x.new_ones(2, WIDTH, 1, 1)).eval(), torch.rand(2, 3, SIDE, SIDE), ratio=0.5, recover=None
    )
    assert result.model.a.out_channels == WIDTH and "wants its width" in result.plan.pinned["a"]


def test_calls_that_are_alike_are_tried_once() -> None:
    runs = []
    for repeats in (1, 2):
        calls.clear()
        model = Network(lambda x, repeats=repeats: [repeat(x) for _ in range(repeats)][-1]).eval()
        calls.clear()
        assert fec_fast.couplings(model, torch.rand(2, 3, SIDE, SIDE)).notes
        runs.append(len(calls))
    assert runs[1] - runs[0] < runs[0] / 2


def test_a_call_that_only_checks_keeps_nothing() -> None:
    def body(x: Tensor) -> Tensor:
        torch.ops.aten._linalg_check_errors(torch.zeros_like(x, dtype=torch.int32), "test", is_matrix=False)
        return x

    assert not fec_fast.couplings(Network(body).eval(), torch.rand(2, 3, SIDE, SIDE)).notes
