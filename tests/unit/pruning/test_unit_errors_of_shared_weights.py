"""Removal errors where one weight is used in several ways: every way reads its channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fec_fast.pruning.context import build_context

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's own, or a copy of it."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 4, 2, 1)
        self.copy = None if tied else nn.Parameter(self.encoder.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.encoder.weight if self.copy is None else self.copy
        return functional.conv_transpose2d(self.encoder(x).relu(), weight, stride=2, padding=1)


@pytest.mark.parametrize("criterion", ["reconstruction", "ablation"])
def test_a_tied_decoder_is_measured_as_one_with_a_weight_of_its_own(criterion: str) -> None:
    tied, untied = (
        build_context(Autoencoder(is_tied), IMAGES[:1], criterion, None, "both", (), IMAGES).scores[0]
        for is_tied in (True, False)
    )
    assert float(tied.min()) > 0
    assert torch.allclose(tied, untied, rtol=1e-6)


class Transposed(nn.Module):
    """A weight is used transposed, by a view, before or after it is used as it is."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.stem, self.layer = nn.Linear(12, 10), nn.Linear(10, 7)
        self.last = nn.Linear(7 if first else 10, 3)
        if first:
            self.stem = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)[:, :12]).relu()
        if self.first:
            return self.last(self.layer(functional.linear(x, self.layer.weight.t()).relu()).relu())
        return self.last(functional.linear(self.layer(x).relu(), self.layer.weight.t()).relu())


@pytest.mark.parametrize("first", [False, True])
def test_what_a_transposed_view_reads_has_an_error_and_a_note(first: bool) -> None:
    context = build_context(Transposed(first), IMAGES[:1], "reconstruction", None, "both", (), IMAGES)
    assert sorted(map(len, context.scores)) == [7, 10]
    assert all(float(scores.min()) > 0 for scores in context.scores)
    assert "the inputs of layer were not seen: taken to be uncorrelated" in context.notes


def test_a_copy_of_a_weight_whose_inputs_are_known_is_not_measured_blindly() -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.layer = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(self.stem(x).relu()).relu().flatten(2)
            return functional.conv1d(x, self.layer.weight.flatten(2))[:, :, 0].sum(1)

    context = build_context(Reshaped(), IMAGES[:1], "reconstruction", None, "both", (), IMAGES)
    assert not any("were not seen" in note for note in context.notes)
