"""Which weights are reported as left: those that read removed channels, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Positions(nn.Module):
    """A table of positions, a scale with a height, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(12, 5)
        self.positions = nn.Parameter(torch.randn(1, 16, 8, 8) / 10)
        self.tall = nn.Parameter(torch.rand(16, 8, 1))
        self.mix = nn.Parameter(torch.randn(12, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) + self.positions).relu() * self.tall
        return self.last(torch.einsum("bchw,dc->bd", x, self.mix).relu())


def test_a_product_that_loses_outputs_alone_is_not_reported_as_left() -> None:
    torch.manual_seed(0)
    model = Positions().eval()
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=None, ignore=["first"])
    assert list(result.plan.keep["mix"]) == ["0"]
    done = fec_fast.compensate(model, result.model, result.plan, IMAGES, progress=False)
    assert not done.left and [layer.layer for layer in done.layers] == ["last"]


def test_a_product_that_loses_inputs_is_reported_and_what_is_added_or_multiplied_is_not() -> None:
    torch.manual_seed(0)
    model = Positions().eval()
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=None)
    assert {"positions", "tall", "mix"} <= set(result.plan.keep)
    done = fec_fast.compensate(model, result.model, result.plan, IMAGES, progress=False)
    assert list(done.left) == ["mix"] and "no convolution or linear operation" in done.left["mix"]


def test_what_an_lstm_reads_is_reported() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.read = nn.Conv2d(3, 16, 3), nn.LSTM(16, 7, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.first(x).flatten(2).mT)[0]

    torch.manual_seed(0)
    model = Reading().eval()
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=None)
    with pytest.warns(UserWarning, match="nothing was recovered"):
        done = fec_fast.compensate(model, result.model, result.plan, IMAGES, progress=False)
    assert list(done.left) == ["read.weight_ih_l0"]


class Listed(nn.Module):
    """Three convolutions whose weights one container holds; the second is used otherwise too."""

    def __init__(self, container: type[nn.Module]) -> None:
        super().__init__()
        weights = [nn.Parameter(torch.randn(16, width, 3, 3) / 8) for width in (3, 16, 16)]
        by_name = {f"w{number}": weight for number, weight in enumerate(weights)}
        self.weights = container(weights if container is nn.ParameterList else by_name)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        held = self.weights
        first, second, third = held if isinstance(held, nn.ParameterList) else held.values()
        x = functional.conv2d(x, first, padding=1).relu()
        x = functional.conv2d(x, second, padding=1).relu()
        x = x + functional.conv2d(x, second * 1.0, padding=1)
        return self.last(functional.conv2d(x, third).relu().mean((2, 3)))


@pytest.mark.parametrize("container", [nn.ParameterList, nn.ParameterDict])
def test_every_parameter_of_a_container_is_a_layer_of_its_own(container: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Listed(container).eval()
    first, second, third = (f"weights.{name}" for name, _ in model.weights.named_parameters())
    result = fec_fast.prune(model, IMAGES[:2], ratio=0.5, recover=None)
    assert {"0", "1"} <= result.plan.keep[second].keys() and "1" in result.plan.keep[third]
    done = fec_fast.compensate(model, result.model, result.plan, IMAGES, progress=False)
    assert list(done.left) == [second] and "is used by 'mul' too" in done.left[second]
    assert [layer.layer for layer in done.layers] == [third, "last"]
