"""Accuracy of a model on a loader."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fec_fast.utils.errors import InputError
from fec_fast.utils.evaluation import evaluate
from helpers.training import dot_images


def test_evaluate_counts_and_restores_modes() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)

    model = Constant().train()
    assert evaluate(model, DataLoader(dot_images(), batch_size=7)) == pytest.approx(1 / 3)
    assert model.training
    with pytest.raises(InputError, match="empty"):
        evaluate(model, [])
