"""Rows: what a layer reads at an output position, times its weight, is its output there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fec_fast.recovery.layer_calls import LayerCall, LayerCallMode
from fec_fast.recovery.rows import (
    input_rows,
    output_dims,
    output_rows,
    spread_positions,
    weight_from_matrices,
    weight_matrices,
)
from fec_fast.utils.model_index import ModelIndex

LAYERS = {
    "strided, dilated, grouped": (
        lambda: nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2, dilation=2),
        (3, 6, 11, 9),
    ),
    "same": (lambda: nn.Conv2d(4, 5, (3, 5), padding="same"), (2, 4, 7, 8)),
    "reflected": (lambda: nn.Conv2d(4, 5, 3, padding="same", padding_mode="reflect"), (2, 4, 7, 8)),
    "without batch": (lambda: nn.Conv2d(4, 5, 3), (4, 7, 8)),
    "depthwise 3d": (lambda: nn.Conv3d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 6, 4)),
    "1d": (lambda: nn.Conv1d(4, 6, 5, padding=2, bias=False), (2, 4, 9)),
    "transposed": (
        lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (2, 6, 5, 6),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3), (2, 4, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(5, 7), (2, 3, 5)),
    "linear without batch": (lambda: nn.Linear(5, 7), (5,)),
}


class Seen(LayerCallMode):
    """Keeps the last call and its output."""

    call: LayerCall
    output: Tensor

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        self.call, self.output = call, output


@pytest.mark.parametrize("most", [10**6, 17])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_weight_are_the_outputs(name: str, most: int) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double()
    with torch.no_grad(), Seen(ModelIndex.of(layer)) as seen:
        layer(torch.randn(shape, dtype=torch.float64))
    call = seen.call
    assert call.layer == "weight" and call.name == "weight"
    dims = output_dims(call, seen.output)
    positions = spread_positions(dims, most, torch.arange(dims[0]) * 77)
    every = torch.Size(dims).numel()
    assert len(set(zip(positions.item.tolist(), positions.place.tolist(), strict=True))) == len(positions)
    assert len(positions) == every if most > every else len(positions) <= max(most, dims[0])
    matrices = weight_matrices(call, call.weight)
    assert torch.equal(weight_from_matrices(call, matrices), call.weight)
    products = (input_rows(call, positions) @ matrices).permute(1, 0, 2).reshape(len(positions), -1)
    if call.bias is not None:
        products = products + call.bias
    torch.testing.assert_close(products, output_rows(seen.output, positions, is_linear=call.is_linear))
    some = torch.tensor([2, 0])
    torch.testing.assert_close(products[:, some], output_rows(seen.output, positions, some, is_linear=call.is_linear))


def test_the_positions_of_an_image_depend_on_its_seed_alone() -> None:
    seeds = torch.tensor([5, 9, 123456789, 0, 2**40])
    whole = spread_positions((5, 8, 8), 50, seeds)
    for number, seed in enumerate(seeds):
        alone = spread_positions((1, 8, 8), 10, seed[None])
        assert torch.equal(whole.place[whole.item == number], alone.place)
    assert len(set(whole.place.tolist())) > 25  # spread over the image, not the same in every image


def test_many_items_are_thinned_out() -> None:
    positions = spread_positions((1000, 2), 100, torch.arange(1000))
    assert len(positions) == 100 and len(set(positions.item.tolist())) == 100
