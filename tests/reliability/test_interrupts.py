"""Ctrl-C at random moments: the model is as it was or whole, the process too, and no Ctrl-C is swallowed.

The fast part presses it a few times per call; `pytest -m sweep tests/reliability` 400 times. The seconds until a call
returns are printed (`-s`), not compared.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.vision import networks, weights
from helpers.everything import Restless, of_model, of_process
from helpers.interruptions import press_at_random, report
from helpers.training import dot_loader, dropout_classifier

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROUNDS = [6, pytest.param(400, marks=(pytest.mark.slow, pytest.mark.sweep))]
Round = tuple[Callable[[], Any], Callable[[], None]]


def leaves(call: Callable[[], Any], *models: nn.Module, inputs: Any = IMAGES) -> Round:
    """A round of a call that must leave models, inputs and process as they were."""
    before = [of_model(model) for model in models], inputs.clone(), of_process()

    def check() -> None:
        assert [of_model(model) for model in models] == before[0]
        assert torch.equal(inputs, before[1])
        now = of_process()
        now["Ctrl-C"] = before[2]["Ctrl-C"]  # set by the test itself
        assert now == before[2]

    return call, check


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return Restless().train()


@pytest.fixture(scope="module")
def result(original: nn.Module) -> fec_fast.PruneResult:
    return fec_fast.prune(original, IMAGES, ratio=0.5, criterion="l1", recover=None)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_scoring(rounds: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(256, 512, 3), nn.Conv2d(512, 512, 3))
    formula = fec_fast.Formula(axis="filters")

    def make() -> Round:
        return leaves(lambda: fec_fast.score_model(model, formula=formula), model)

    report("score_model", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_pruning(original: nn.Module, rounds: int) -> None:
    def make() -> Round:
        return leaves(lambda: fec_fast.prune(original, IMAGES, ratio=0.5, criterion="l1", recover=None), original)

    report("prune", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_verifying(original: nn.Module, result: fec_fast.PruneResult, rounds: int) -> None:
    def make() -> Round:
        def verify() -> None:
            fec_fast.verify_equivalence(original, result.model, result.plan, IMAGES)

        return leaves(verify, original, result.model)

    report("verify_equivalence", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_latency(original: nn.Module, result: fec_fast.PruneResult, rounds: int) -> None:
    def make() -> Round:
        return leaves(lambda: result.latency(original, IMAGES, min_run_time=0.02), original, result.model)

    report("latency", press_at_random(make, rounds))


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("rounds", ROUNDS)
def test_recovery(rounds: int, images: bool) -> None:
    torch.manual_seed(0)
    model = networks.resnet_digits().eval()
    pictures = torch.randn(40, 1, 8, 8)
    pruned = fec_fast.prune(model, pictures, ratio=0.5, criterion="l1", recover=None)
    whole = copy.deepcopy(pruned.model)
    calibration = pictures if images else None
    fec_fast.compensate(model, whole, pruned.plan, calibration, example_inputs=pictures)

    def make() -> Round:
        target = copy.deepcopy(pruned.model)
        before, untouched = of_model(target), of_model(model)

        def compensate() -> None:
            fec_fast.compensate(model, target, pruned.plan, calibration, example_inputs=pictures)

        def check() -> None:
            assert of_model(model) == untouched
            if of_model(target) != before:
                assert_equal(target, whole)

        return compensate, check

    report(f"compensate {'with' if images else 'without'} images", press_at_random(make, rounds))


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    """Asserts that all tensors of two models are equal, bit for bit."""
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(name == name_ and torch.equal(tensor, tensor_) for (name, tensor), (name_, tensor_) in pairs)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_recalibration(rounds: int) -> None:
    torch.manual_seed(0)
    images = [torch.randn(16, 1, 8, 8) for _ in range(4)]
    model = networks.resnet_digits().train()
    whole = copy.deepcopy(model)
    fec_fast.recalibrate(whole, images)

    def make() -> Round:
        target = copy.deepcopy(model)
        before = of_model(target)

        def check() -> None:
            if of_model(target) != before:
                assert_equal(target, whole)
                assert all(module.training for module in target.modules())

        return lambda: fec_fast.recalibrate(target, images), check

    report("recalibrate", press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", ["apply_plan", "load", "load_weights"])
def test_changes_in_place(
    original: nn.Module, result: fec_fast.PruneResult, tmp_path: Path, name: str, rounds: int
) -> None:
    folder = fec_fast.save(result, tmp_path / "saved")
    trained = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    calls: dict[str, Callable[[nn.Module], Any]] = {
        "apply_plan": lambda model: fec_fast.apply_plan(model, result.plan),
        "load": lambda model: fec_fast.load(model, folder),
        "load_weights": lambda model: weights.load_weights(model, tmp_path / "weights.pth"),
    }
    whole = copy.deepcopy(original)
    calls[name](whole)

    def make() -> Round:
        model = copy.deepcopy(original)
        before = of_model(model)

        def check() -> None:
            if of_model(model) != before:
                assert_equal(model, whole)
                assert [module.training for module in model.modules()] == [True] * len(list(model.modules()))

        return lambda: calls[name](model), check

    report(name, press_at_random(make, rounds))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_training(tmp_path: Path, rounds: int) -> None:
    """A training that is interrupted anywhere, and resumed, gives the same bits as one that was not."""
    held_out = dot_loader(shuffle=False)

    def train(model: nn.Module, folder: Path | None) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "nothing to resume")
            fec_fast.finetune(
                model,
                dot_loader(),
                val_loader=held_out,
                epochs=3,
                checkpoint=folder,
                resume=folder is not None,
                progress=False,
            )

    whole = dropout_classifier()
    train(whole, None)
    number = 0

    def make() -> Round:
        nonlocal number
        number += 1
        folder, model = tmp_path / str(number), dropout_classifier()
        own = set(vars(model))

        def check() -> None:
            assert set(vars(model)) == own and not any(map(lambda m: m._forward_hooks, model.modules()))
            assert all(parameter.grad is None for parameter in model.parameters())
            assert all(module.training for module in model.modules())
            resumed = dropout_classifier()
            train(resumed, folder)
            assert_equal(resumed, whole)

        return lambda: train(model, folder), check

    report("finetune", press_at_random(make, rounds))
