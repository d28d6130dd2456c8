"""The moving average of the weights: its formula, and that it is what a training results in."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fec_fast.training.ema import ModelEma
from fec_fast.training.tasks.classification import Classification
from helpers.training import classifier, dot_loader, train


def test_average_is_the_formula_and_is_what_results() -> None:
    model = classifier()
    average = ModelEma(model, 0.5)
    wanted: list[Tensor] = []
    for step in range(6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        state = [value.double().clone() for value in model.state_dict().values() if value.is_floating_point()]
        pairs = zip(wanted, state, strict=True) if wanted else ()
        wanted = [decay * old + (1 - decay) * new for old, new in pairs] or state
    own = [value for value in average.model.state_dict().values() if value.is_floating_point()]
    assert all(torch.allclose(x.double(), y, atol=1e-5) for x, y in zip(own, wanted, strict=True))
    assert int(average.model[1].num_batches_tracked) == int(model[1].num_batches_tracked) == 6

    held_out = dot_loader(shuffle=False)
    result = train(classifier(), epochs=3, val_loader=held_out, ema_decay=0.9)
    assert result.history[-1].held_out == Classification().evaluate(result.model.eval(), held_out)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_an_entry_that_is_not_finite_is_the_models(per_tensor: bool) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(2))
    model.register_buffer("range", torch.tensor([1.0, math.inf]))
    average = ModelEma(model, 0.5, per_tensor=per_tensor)
    average.update()
    with torch.no_grad():
        model.range.copy_(torch.tensor([-math.inf, 3.0]))
        model.weight.add_(1)
    before = average.model.weight.detach().clone()
    average.update()
    assert torch.equal(average.model.mask, model.mask) and torch.equal(average.model.range, model.range)
    assert torch.allclose(average.model.weight, before + 1 - 2 / 11)  # finite entries are averaged: decay 2 / 11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_half_precision_follows_the_weights(dtype: torch.dtype) -> None:
    coarse, fine = nn.Linear(2, 2).to(dtype), nn.Linear(2, 2)
    fine.load_state_dict(coarse.float().state_dict())
    coarse.to(dtype)
    averages = ModelEma(coarse, 0.999), ModelEma(fine, 0.999)
    for step in range(3000):
        if step == 1500:
            with torch.no_grad():
                fine.weight.fill_(2.0)
                coarse.weight.fill_(2.0)
        if step == 2000:  # as a training does that is resumed
            averages[0].load_state_dict(copy.deepcopy(averages[0].state_dict()))
        for average in averages:
            average.update()
    assert averages[0].model.weight.dtype == dtype
    assert torch.equal(averages[0].model.weight, averages[1].model.weight.to(dtype))


def test_values_that_are_written_to_the_averaged_network_count() -> None:
    model = nn.Linear(2, 2).bfloat16()
    average = ModelEma(model, 0.9)
    average.update()
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.model.weight.zero_()
    average.update()  # decay 2 / 11
    assert torch.allclose(average.model.weight.float(), torch.tensor(9 / 11), atol=2e-3)


class Scaled(nn.Linear):
    """A layer with a number that training changes, and that is no tensor."""

    seen = 0

    def forward(self, input: Tensor) -> Tensor:
        self.seen += int(self.training)
        return super().forward(input)

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_extra_states_are_those_of_the_trained_network() -> None:
    model = nn.Sequential(nn.Flatten(), Scaled(36, 3))
    train(model, epochs=2, ema_decay=0.9)
    assert model[1].seen == 6
