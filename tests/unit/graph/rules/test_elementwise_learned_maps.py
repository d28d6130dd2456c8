"""Parameters that are maps (class tokens, position embeddings, tables) follow the channels that they meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fec_fast

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Patches as tokens, joined or summed with something that is learned, and a head over all of them."""

    def __init__(self, use: Callable[[Tokens, Tensor], Tensor]) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 5)
        self.token, self.tokens = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 3, 16))
        self.positions = nn.Parameter(torch.randn(1, 9, 16))
        self.pairs, self.numbered = nn.Parameter(torch.randn(2, 3, 16)), nn.Embedding(6, 16)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self, self.patches(x).flatten(2).transpose(1, 2)))


def numbers(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


LEARNED: dict[str, tuple[Callable[[Tokens, Tensor], Tensor], str]] = {
    "a token, repeated and joined": (lambda net, x: torch.cat([net.token.expand(len(x), -1, -1), x], 1), "token"),
    "tokens, repeated and joined": (lambda net, x: torch.cat([x, net.tokens.expand(len(x), -1, -1)], 1), "tokens"),
    "tokens, joined for each image": (
        lambda net, x: torch.stack([torch.cat([each, net.tokens[0]], 0) for each in x]),
        "tokens",
    ),
    "tokens, unbound, repeated and joined": (
        lambda net, x: torch.cat([each.expand(len(x), -1, -1) for each in net.pairs] + [x], 1),
        "pairs",
    ),
    "some positions": (lambda net, x: x + net.positions[:, : x.shape[1]], "positions"),
    "all positions": (lambda net, x: torch.cat([x, x, x[:, :1]], 1) + net.positions[:, :9], "positions"),
    "rows of an embedding": (lambda net, x: x + net.numbered(numbers(x)), "numbered.weight"),
    "rows of a table": (lambda net, x: x + net.numbered.weight[numbers(x)], "numbered.weight"),
    "rows, joined": (
        lambda net, x: torch.cat([net.numbered(numbers(x)).expand(len(x), -1, -1), x], 1),
        "numbered.weight",
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_for_each_channel_goes_with_it(name: str) -> None:
    torch.manual_seed(0)
    use, parameter = LEARNED[name]
    model = Tokens(use).eval()
    result = fec_fast.prune(model, X, ratio=0.5, recover=None)
    assert result.proof is not None and result.proof.difference < 1e-9 and "drawn weights" in result.proof.runs
    kept = result.plan.keep["patches.weight"]["0"]
    assert len(kept) == 8 and result.model.head.in_features == 8
    learned = dict(model.named_parameters())[parameter]
    assert torch.equal(dict(result.model.named_parameters())[parameter], learned[..., kept])
    if "numbered" in parameter and name == "rows of an embedding":
        assert result.model.numbered.embedding_dim == 8


def test_a_number_that_picks_channels_keeps_them() -> None:
    torch.manual_seed(0)
    model = Tokens(lambda net, x: x + net.positions[:, :4].transpose(1, 2)[:, torch.arange(16)].transpose(1, 2)).eval()
    with pytest.raises(fec_fast.LayerError, match="nothing to prune"):
        fec_fast.prune(model, X, ratio=0.5, recover=None)


def test_layers_without_inputs_or_filters_stay_as_they_are() -> None:
    torch.manual_seed(0)
    empty = [nn.Linear(12, 0), nn.Linear(0, 7)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 12), *empty, nn.Linear(7, 9), nn.Linear(9, 2)
    )
    result = fec_fast.prune(model.eval(), X, ratio=0.5, recover="data-free")
    assert [tuple(each.weight.shape) for each in result.model if isinstance(each, nn.Linear)] == [
        (12, 144),
        (0, 12),
        (7, 0),
        (5, 7),
        (2, 5),
    ]
    assert "has no elements" in result.plan.pinned["2"] and "has no elements" in result.plan.pinned["4"]
    assert result.after.macs < result.before.macs
