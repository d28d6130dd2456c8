"""What runs a model leaves model, inputs, random generators and torch's switches as they were; also sixteen at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast.pruning.allocation import latency_budget
from fec_fast.utils import timing
from helpers.comparison import same_weights
from helpers.everything import Restless, of_model, of_process
from helpers.training import dot_loader

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network(training: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Restless().train(training)


@pytest.fixture(scope="module")
def result() -> fec_fast.PruneResult:
    return fec_fast.prune(network(), IMAGES, ratio=0.5, recover=None)


def writing_criterion(weight: Tensor) -> Tensor:
    """A criterion that keeps its intermediate results in what it is given."""
    return weight.pow_(2).flatten(1).sum(1)


CALLS: dict[str, Callable[[nn.Module, fec_fast.PruneResult, Tensor], Any]] = {
    "score_model": lambda model, result, images: fec_fast.score_model(model),
    "prune": lambda model, result, images: fec_fast.prune(model, images, ratio=0.5, recover=None),
    "prune, own criterion": lambda model, result, images: fec_fast.prune(
        model, images, criterion=writing_criterion, recover=None
    ),
    "prune, recovery": lambda model, result, images: fec_fast.prune(model, images, recover=images.repeat(8, 1, 1, 1)),
    "prune, latency": lambda model, result, images: refused(model, images),
    "couplings": lambda model, result, images: fec_fast.couplings(model, images),
    "explain": lambda model, result, images: fec_fast.explain(result.plan, "first", model),
    "verify_equivalence": lambda model, result, images: fec_fast.verify_equivalence(
        model, result.model, result.plan, images
    ),
    "latency": lambda model, result, images: result.latency(model, images, min_run_time=0.01),
    "measure_sensitivity": lambda model, result, images: fec_fast.measure_sensitivity(
        model, images, calibration=[(images, torch.zeros(len(images)).long())], progress=False
    ),
}


def refused(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(fec_fast.BudgetError, match="cannot be met"):
        fec_fast.prune(model, images, budget=fec_fast.Budget(latency_ms=1e-6), recover=None)


@pytest.fixture(params=["switches as torch has them", "switches of the user's"])
def switches(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether they are the user's: then the model is in training mode too."""
    backends: Any = torch.backends
    others = request.param != "switches as torch has them"
    try:
        if others:
            backends.mha.set_fastpath_enabled(False)
            backends.cuda.enable_flash_sdp(False)
            torch.set_flush_denormal(True)
            torch.use_deterministic_algorithms(True)
        yield others
    finally:
        backends.mha.set_fastpath_enabled(True)
        backends.cuda.enable_flash_sdp(True)
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_everything_as_it_was(
    name: str, result: fec_fast.PruneResult, switches: bool, brief_latency: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_budget, "_SECONDS_TO_REACH", 0.1)
    model, images = network(training=switches), IMAGES.clone()
    torch.manual_seed(9)
    before = of_model(model), of_model(result.model), of_process()
    CALLS[name](model, result, images)
    assert of_model(model) == before[0]
    assert of_model(result.model) == before[1]
    assert torch.equal(images, IMAGES)
    assert of_process() == before[2]


def test_the_checks_of_a_training_leave_the_loaders_batches_as_they_were() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(36, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.mul_(2).flatten(1))

    batches = [(images.clone(), labels) for images, labels in dot_loader(shuffle=False)]
    before = [images.clone() for images, _ in batches]
    with pytest.raises(fec_fast.InputError, match="val_loader"):
        fec_fast.finetune(Writing(), batches, val_loader=[(IMAGES, IMAGES)], epochs=1, progress=False)
    assert all(torch.equal(a, b) for (a, _), b in zip(batches, before, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=(pytest.mark.slow, pytest.mark.sweep))])
def test_sixteen_threads_at_once_do_what_one_does(brief_latency: None, rounds: int) -> None:
    """All on one model: its modes, buffers and counters, and torch's switches, are the same for all of them."""
    torch.manual_seed(0)
    model = Restless().train()
    alone = fec_fast.prune(model, IMAGES, ratio=0.5, criterion="l1", recover=None)
    before, process = of_model(model), of_process()
    barrier = threading.Barrier(16)

    def work(number: int) -> fec_fast.PruneResult:
        barrier.wait()
        result = fec_fast.prune(model, IMAGES, ratio=0.5, criterion="l1", verify=number < 4, recover=None)
        if number % 4 == 0:
            fec_fast.verify_equivalence(model, alone.model, alone.plan, IMAGES)
        elif number % 4 == 1:
            alone.latency(model, IMAGES, min_run_time=0.01)
        elif number % 4 == 2:
            fec_fast.score_model(model)
        return result

    for _ in range(rounds):
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(work, range(16)))
        assert of_model(model) == before
        assert of_process() == process
        for result in results:
            assert result.plan == alone.plan and same_weights(result.model, alone.model)
            assert all(module.training for module in result.model.modules())
    print(f"{rounds} times 16 threads: 0 changed, 0 other results")


@settings(max_examples=20)
@given(exponents=st.lists(st.integers(-24, -14), min_size=8, max_size=8), seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_do_not_depend_on_flush_to_zero(dtype: torch.dtype, exponents: list[int], seed: int) -> None:
    """Subnormal numbers among the weights: those of float16, and those of float32 and float64 after scaling down."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(exponents, dtype=torch.float64).exp2().view(8, 1, 1, 1)
    factor = {torch.float16: 1.0, torch.float64: 2.0**-1040}.get(dtype, 2.0**-115)
    weight = torch.randn(8, 8, 3, 3, generator=generator, dtype=torch.float64) * scale * factor
    layer = nn.Sequential(nn.Conv2d(8, 8, 3).to(dtype))
    with torch.no_grad():
        layer[0].weight.copy_(weight)
    for formula in (fec_fast.Formula(), fec_fast.Formula(axis="filters"), fec_fast.Formula(compress="none")):
        expected = fec_fast.score_model(layer, formula=formula)["0"]
        assert torch.set_flush_denormal(True)
        try:
            assert torch.equal(fec_fast.score_model(layer, formula=formula)["0"], expected)
            assert (torch.tensor([1e-40]) * 1.0).item() == 0.0
        finally:
            torch.set_flush_denormal(False)


def test_a_model_that_writes_to_its_input_is_timed_on_copies() -> None:
    images = IMAGES.clone()
    timing.fastest_call(network(), images, enough=1.0, max_seconds=0.1)
    assert torch.equal(images, IMAGES)
