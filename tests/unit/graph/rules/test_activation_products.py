"""Products of activations: attention loses the width inside heads or whole heads, exactly, or keeps what it must."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from helpers.attention import CHANNELS, Bottleneck, Convolutional, Fused, Heads, attention_network
from helpers.divided import Network
from helpers.networks import widths

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# For each block the attributes that change: before and after.
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "scale in an attribute": {"key_dim": (6, 3), "value_dim": (6, 3)},
    "scale by einsum": {"key_dim": (6, 3), "value_dim": (6, 3)},
    "other width of values": {"key_dim": (6, 3), "value_dim": (8, 4)},
    "SDPA with a scale": {"key_dim": (6, 3), "value_dim": (6, 3)},
    "SDPA": {"num_heads": (4, 2)},
    "scale from the shape": {"num_heads": (4, 2)},
    "softmax over channels": {"num_heads": (4, 2)},
    "norm of heads": {"num_heads": (4, 2)},
    "rotation of heads": {"num_heads": (4, 2)},
    "table of positions": {"num_heads": (4, 2)},
    "table of positions, heads first": {"num_heads": (4, 2)},
    "fused, five dimensions": {"head_dim": (6, 3), "attn_dim": (12, 6)},
    "fused, chunk": {"head_dim": (6, 3), "attn_dim": (12, 6)},
    "YOLO11": {"head_dim": (8, 4), "key_dim": (4, 2)},
    "YOLO11, one number twice": {"head_dim": (4, 2), "key_dim": (2, 1)},
    "YOLO12": {"num_heads": (4, 2)},
    "YOLO12, four areas": {"num_heads": (4, 2)},
    "BoTNet": {"dim_out_qk": (12, 6), "dim_out_v": (16, 8), "dim_head_qk": (6, 3), "dim_head_v": (8, 4)},
    "CvT": {},
    "non-local": {},
    "non-local, dot product": {},
    "MobileViTv2": {"embed_dim": (12, 6)},
    "XCiT": {"num_heads": (2, 1), "attn_dim": (12, 6)},
}


@pytest.mark.parametrize("name", SIZES)
def test_known_blocks_lose_half_of_every_layer_exactly(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = attention_network(name)
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert set(result.plan.pinned) == {"head"}
    before, after = widths(model), widths(result.model)
    assert all(before[layer] / 2 <= after[layer] <= before[layer] / 2 + 1.5 for layer in before)  # 7 per head become 4
    expected = {attribute: {"before": first, "after": last} for attribute, (first, last) in SIZES[name].items()}
    assert result.plan.sizes == ({"block": expected} if expected else {})

    fec_fast.save(result, tmp_path / "pruned")
    loaded = fec_fast.load(attention_network(name), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), result.model(IMAGE))
    result.model.train()(IMAGE).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.model.parameters())


def test_torchs_own_attention_loses_whole_heads_with_its_input() -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(attention_network("MultiheadAttention"), IMAGE, ratio=0.4, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    attention = result.model.block.attention
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (12, 3, 4)
    assert result.model.stem.out_channels == 12 and attention.in_proj_weight.shape == (36, 12)


# What a product of activations keeps, and why.
KEPT = {
    "scale from a tensor": (["q", "k"], "computes [6] from its width"),
    "number in the code": (["q", "k"], "cuts its channels at fixed positions of the model's code"),
    "EfficientViT": (["k"], "multiplied with each channel of another tensor"),
    "GCNet": (["mask"], "its single channel scales many channels"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_go_is_kept_with_a_reason(name: str) -> None:
    layers, reason = KEPT[name]
    torch.manual_seed(0)
    model = attention_network(name)
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    before, after = widths(model), widths(result.model)
    for layer in (f"block.{layer}" for layer in layers):
        assert after[layer] == before[layer] and reason in result.plan.pinned[layer]
    assert after["stem"] < before["stem"]


def test_a_scale_from_a_tensor_is_seen_without_the_proof() -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(attention_network("scale from a tensor"), IMAGE, ratio=0.5, verify=False, recover=None)
    assert len(result.model.block.q.weight) == 24


class Scaled(nn.Module):
    """Divides a sum over channels by their number, which is computed in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * (x.sum(1, keepdim=True) / x.shape[1]))


def test_a_number_that_is_computed_from_a_width_keeps_it() -> None:
    result = fec_fast.prune(Scaled().eval(), IMAGE, ratio=0.5, verify=False, recover=None)
    assert result.model.first.out_channels == 8
    assert "computes [8] from its width" in result.plan.pinned["first"]


def randomised(block: nn.Module) -> Network:
    model = Network(block, CHANNELS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


@settings(max_examples=20)
@given(
    how=st.sampled_from(["attribute", "einsum", "shape", "SDPA", "SDPA, scale", "norm", "BoTNet", "CvT", "fused"]),
    heads=st.integers(1, 5),
    width=st.integers(2, 7),
    values=st.integers(2, 7),
    images=st.integers(1, 3),
    ratio=st.floats(0.1, 0.8),
    seed=st.integers(0, 2**16),
)
def test_any_number_of_heads_of_any_width(
    how: str, heads: int, width: int, values: int, images: int, ratio: float, seed: int
) -> None:
    torch.manual_seed(seed)
    block: Any
    if how == "BoTNet":
        block = Bottleneck(heads, width, values)
    elif how == "CvT":
        block = Convolutional(heads, width)
    elif how == "fused":
        block = Fused("five dimensions", heads, width)
    else:
        block = Heads(how, heads, width, values)
    model, image = randomised(block), torch.randn(images, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = fec_fast.prune(model, image, ratio=ratio, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    after = widths(result.model)
    if how in ("attribute", "einsum", "SDPA, scale"):
        left = result.plan.sizes.get("block", {}).get("num_heads", {}).get("after", heads)  # a whole head may go
        assert after["block.q"] == after["block.k"] and after["block.q"] % left == 0


@settings(max_examples=20)
@given(
    how=st.sampled_from(["attribute", "einsum", "SDPA, scale"]),
    heads=st.integers(1, 5),
    width=st.integers(3, 7),  # with one channel left PyTorch's own code goes another way, and the width is kept
    values=st.integers(3, 10),
    images=st.integers(1, 3),
)
@example(how="attribute", heads=3, width=3, values=3, images=3)  # as many heads as channels in each
@example(how="attribute", heads=2, width=3, values=6, images=1)  # all heads of the keys are as wide as one of values
def test_no_width_is_kept_because_its_number_means_something_else_too(
    how: str, heads: int, width: int, values: int, images: int
) -> None:
    model = randomised(Heads(how, heads, width, values))
    result = fec_fast.prune(model, torch.randn(images, 3, 6, 6), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    before, after = widths(model), widths(result.model)
    assert set(result.plan.pinned) == {"head"}
    assert all(after[f"block.{layer}"] < before[f"block.{layer}"] for layer in "qkv")


def test_modules_with_norms_over_their_stream_lose_heads_with_it() -> None:
    """With norms over the kept channels, a transformer that shapes to the width of its input narrows as a whole."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(x.flatten(2).mT)
            return x + self.attention(tokens, tokens, tokens)[0].mT.unflatten(-1, x.shape[2:])

    torch.manual_seed(0)
    model = Network(Encoder(), CHANNELS).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = fec_fast.prune(model, IMAGE, ratio=0.5, norms="renormalise", recover=None)
        assert result.model.block.attention.num_heads == 2 and result.model.stem.out_channels == 8
        kept = fec_fast.couplings(model, IMAGE)
    assert all("attention" not in of_set.name for of_set in kept.sets)
