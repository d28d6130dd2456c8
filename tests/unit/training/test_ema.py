"""The moving average of the weights: its formula, and that it is what a training results in."""

import torch
from torch import Tensor

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
