"""Several rounds of pruning and training as one plan."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import Budget
from fec_fast.vision import networks
from helpers.states import relative_error

DIGIT = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def shake(model: nn.Module, number: int) -> None:
    """Stands in for training: every weight changes."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("policy", ["uniform", "entropy", "global"])
def test_rounds_meet_the_budget_and_load_from_the_original_class(policy: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = networks.resnet_digits().eval()
    before = copy.deepcopy(model.state_dict())
    sizes = []

    def train(network: nn.Module, number: int) -> None:
        sizes.append(sum(parameter.numel() for parameter in network.parameters()))
        assert len(sizes) == number
        shake(network, number)

    result = fec_fast.prune_iteratively(
        model, DIGIT, budget=Budget(params=0.875), train=train, rounds=3, ratios=policy, criterion="l1", recover=None
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sizes[-1] == result.after.parameters and result.before.parameters == whole
    for size, share in zip(sizes, (0.5, 0.75, 0.875), strict=True):
        assert share <= 1 - size / whole + 1e-9 <= 1.01 * share
    assert {record["round"] for record in result.plan.sets} == {1, 2, 3}
    assert result.difference is not None and result.difference < 1e-9
    fec_fast.save(result.model, result.plan, tmp_path / "pruned")
    fresh = fec_fast.load(networks.resnet_digits().eval(), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(fresh(DIGIT), result.model.eval()(DIGIT))


def test_every_round_recovers_before_its_training() -> None:
    torch.manual_seed(0)
    model = networks.resnet_digits().eval()
    images = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):  # batch norms with statistics of their own
        model.train()(images)
    model.eval()
    wanted = model(images).detach()

    def errors(**options: Any) -> list[float]:
        found = []

        def train(network: nn.Module, number: int) -> None:
            with torch.no_grad():
                found.append(relative_error(wanted, network.eval()(images)))

        budget = Budget(params=0.6)
        fec_fast.prune_iteratively(model, DIGIT, budget=budget, train=train, rounds=2, criterion="l1", **options)
        return found

    recovered, plain = errors(recover=[images]), errors(recover=None)
    assert len(recovered) == 2 and all(ours < 0.5 * theirs for ours, theirs in zip(recovered, plain, strict=True))


def test_one_round_is_prune() -> None:
    torch.manual_seed(0)
    model = networks.vgg_digits().eval()
    once = fec_fast.prune_iteratively(
        model,
        DIGIT,
        budget=Budget(macs=0.6),
        train=lambda network, number: None,
        rounds=1,
        criterion="l1",
        recover=None,
    )
    plain = fec_fast.prune(model, DIGIT, budget=Budget(macs=0.6), criterion="l1", recover=None)
    assert once.plan.keep == plain.plan.keep


def reshape(model: nn.Module, number: int) -> None:
    model.classifier = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"ratio": 0.5}, fec_fast.RatioError, "rounds"),
        ({"ratios": {"features.0": 0.5}}, fec_fast.RatioError, "one round"),
        ({"rounds": 0}, fec_fast.ArgumentError, "rounds=0"),
        ({"train": 3}, fec_fast.ArgumentError, "int"),
        ({"budget": 0.5}, fec_fast.ArgumentError, "0.5"),
        ({"train": reshape}, fec_fast.TrainingError, "shapes of the network in round 1"),
    ],
)
def test_contradictions(options: dict[str, Any], kind: type, words: str) -> None:
    given: dict[str, Any] = {"budget": Budget(params=0.5), "train": shake, **options}
    with pytest.raises(kind, match=words):
        fec_fast.prune_iteratively(networks.vgg_digits(), DIGIT, **given, recover=None)


def test_a_network_that_train_returns_is_not_lost_without_a_word() -> None:
    model = networks.resnet_digits().eval()
    options: dict[str, Any] = {"budget": Budget(params=0.5), "rounds": 2, "criterion": "l1", "recover": None}
    with pytest.raises(fec_fast.TrainingError, match="returned another network in round 1: .*load_state_dict"):
        fec_fast.prune_iteratively(model, DIGIT, train=lambda network, number: copy.deepcopy(network), **options)
    for wrapped in (lambda network, number: network, lambda network, number: nn.DataParallel(network)):
        assert fec_fast.prune_iteratively(model, DIGIT, train=wrapped, **options).plan.sets


def test_a_round_after_one_that_removed_too_much_trains_alone() -> None:
    trained: list[int] = []
    convolutions = [nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.warns(UserWarning, match="round 2 of 3 removes nothing"):
        result = fec_fast.prune_iteratively(
            model,
            DIGIT,
            budget=Budget(params=0.3),
            train=lambda network, number: trained.append(number),
            rounds=3,
            round_to=32,
            criterion="l1",
            recover=None,
        )
    assert trained == [1, 2, 3] and result.after.parameters <= 0.7 * result.before.parameters
