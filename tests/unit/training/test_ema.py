"""The moving average of the weights: its formula, and that it is what a training results in."""

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
