"""Small attention blocks, as known hybrid networks have them: each after its original, in a few lines.

All read and return 16 channels. Scales, numbers of heads and widths lie where the originals have them: in attributes,
in the shapes of tensors, or in the code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .divided import Network
from .networks import draw_norms

CHANNELS = 16


class ConvNorm(nn.Sequential):
    """A convolution with its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs))


class Heads(nn.Module):
    """Attention of separate projections; where the scale comes from, and how heads are joined, can be chosen."""

    def __init__(self, how: str = "attribute", heads: int = 4, width: int = 6, values: int = 6) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = heads, width, values
        self.how, self.scale = how, width**-0.5
        self.sizes = {"width": width}  # not looked into: like a number in the code
        self.q, self.k = nn.Linear(CHANNELS, heads * width), nn.Linear(CHANNELS, heads * width)
        self.v, self.proj = nn.Linear(CHANNELS, heads * values), nn.Linear(heads * values, CHANNELS)
        if how.startswith("table"):
            shape = (heads, 15) if how.endswith("first") else (15, heads)
            self.table = nn.Parameter(torch.rand(shape))
            position = torch.arange(64) % 8  # of 64 pixels
            self.register_buffer("index", position[:, None] - position[None, :] + 7)
        self.norm = nn.LayerNorm(width) if how == "norm" else nn.Identity()

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, width).transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Rotary embeddings: pairs of channels are turned by an angle for each position."""
        angles = torch.outer(torch.arange(x.shape[2]), torch.arange(1, self.sizes["width"] // 2 + 1).repeat(2))
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def bias(self, positions: int) -> Tensor:
        """A learned number for each head and distance of positions, as in Swin, or in LeViT (heads first)."""
        if self.how.endswith("first"):
            return self.table[:, self.index]
        return self.table[self.index.view(-1)].view(positions, positions, -1).permute(2, 0, 1).contiguous().unsqueeze(0)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.how.startswith("table"):
            return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + self.bias(q.shape[2])
        if self.how == "shape":
            return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if self.how == "tensor":
            return q @ k.transpose(-2, -1) / torch.sqrt(torch.tensor(q.shape[-1]))
        if self.how == "einsum":
            return torch.einsum("bhnd,bhmd->bhnm", q, k) * self.scale
        return (q * self.scale) @ k.transpose(-2, -1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k = (self.split(layer(tokens), self.key_dim) for layer in (self.q, self.k))
        if self.how == "code":
            q = q.reshape(batch, -1, height * width, self.sizes["width"])
        v = self.split(self.v(tokens), self.value_dim)
        q, k = self.norm(q), self.norm(k)
        if self.how == "rotation":
            q, k = self.rotated(q), self.rotated(k)
        if self.how == "channels":
            q = q.softmax(-1)
        if self.how.startswith("SDPA"):
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.how.endswith("scale") else None)
        else:
            y = self.scores(q, k).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(batch, height * width, -1))
        return x + y.transpose(1, 2).reshape(batch, -1, height, width)


class Fused(nn.Module):
    """One layer for queries, keys and values, as in Vision Transformers."""

    def __init__(self, how: str, heads: int = 2, width: int = 6) -> None:
        super().__init__()
        self.how, self.num_heads, self.head_dim, self.scale = how, heads, width, width**-0.5
        self.attn_dim = heads * width
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * heads * width), nn.Linear(heads * width, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.qkv(x.flatten(2).mT)
        if self.how == "five dimensions":
            q, k, v = qkv.reshape(batch, -1, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = qkv.chunk(3, -1)
            q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        y = (q @ k.mT * self.scale).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(batch, height * width, self.attn_dim))
        return x + y.mT.unflatten(-1, (height, width))


class PositionSensitive(nn.Module):
    """Of YOLO11: the values, with the width of the block's input, pass a depthwise convolution too."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, CHANNELS // heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = ConvNorm(CHANNELS, CHANNELS + 2 * self.key_dim * heads)
        self.proj, self.pe = ConvNorm(CHANNELS, CHANNELS), ConvNorm(CHANNELS, CHANNELS, 3, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.num_heads, self.key_dim * 2 + self.head_dim, height * width)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attention = ((q.mT @ k) * self.scale).softmax(-1)
        y = (v @ attention.mT).view(batch, channels, height, width)
        return x + self.proj(y + self.pe(v.reshape(batch, channels, height, width)))


class Area(nn.Module):
    """Of YOLO12: the scale is computed from the width of a head, and positions are divided into areas."""

    def __init__(self, area: int, heads: int = 4) -> None:
        super().__init__()
        self.area, self.num_heads, self.head_dim = area, heads, CHANNELS // heads
        self.qkv, self.proj = ConvNorm(CHANNELS, 3 * CHANNELS), ConvNorm(CHANNELS, CHANNELS)
        self.pe = ConvNorm(CHANNELS, CHANNELS, 3, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        number = height * width
        qkv = self.qkv(x).flatten(2).transpose(1, 2)
        images, positions = batch * self.area, number // self.area
        qkv = qkv.reshape(images, positions, channels * 3)
        q, k, v = (
            qkv.view(images, positions, self.num_heads, self.head_dim * 3)
            .permute(0, 2, 3, 1)
            .split([self.head_dim, self.head_dim, self.head_dim], dim=2)
        )
        attention = ((q.mT @ k) * self.head_dim**-0.5).softmax(-1)
        y, v = ((each.permute(0, 3, 1, 2)).reshape(batch, number, channels) for each in (v @ attention.mT, v))
        y, v = (each.reshape(batch, height, width, channels).permute(0, 3, 1, 2) for each in (y, v))
        return x + self.proj(y + self.pe(v.contiguous()))


class Bottleneck(nn.Module):
    """Of BoTNet: batch and heads are one dimension."""

    def __init__(self, heads: int = 2, width: int = 6, values: int = 8) -> None:
        super().__init__()
        self.num_heads, self.dim_head_qk, self.dim_head_v = heads, width, values
        self.dim_out_qk, self.dim_out_v, self.scale = heads * width, heads * values, width**-0.5
        self.qkv = nn.Conv2d(CHANNELS, 2 * heads * width + heads * values, 1, bias=False)
        self.out = nn.Conv2d(heads * values, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self.qkv(x).split([self.dim_out_qk, self.dim_out_qk, self.dim_out_v], dim=1)
        q = q.reshape(batch * self.num_heads, self.dim_head_qk, -1).transpose(-1, -2)
        k = k.reshape(batch * self.num_heads, self.dim_head_qk, -1)
        v = v.reshape(batch * self.num_heads, self.dim_head_v, -1).transpose(-1, -2)
        y = (q @ k * self.scale).softmax(-1) @ v
        return x + self.out(y.transpose(-1, -2).reshape(batch, self.dim_out_v, height, width))


class Convolutional(nn.Module):
    """Of CvT: projections of depthwise and pointwise convolutions, keys and values at half the resolution."""

    def __init__(self, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.to_q = nn.Sequential(ConvNorm(CHANNELS, CHANNELS, 3, CHANNELS), nn.Conv2d(CHANNELS, heads * width, 1))
        self.to_kv = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(CHANNELS, 2 * heads * width, 1))
        self.to_out = nn.Conv2d(heads * width, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self.to_q(x), *self.to_kv(x).chunk(2, 1)
        q, k, v = (each.reshape(batch * self.heads, -1, each.shape[2] * each.shape[3]).mT for each in (q, k, v))
        y = (torch.bmm(q, k.mT) * self.scale).softmax(-1) @ v
        return x + self.to_out(y.mT.reshape(batch, -1, height, width))


class NonLocal(nn.Module):
    """The embedded Gaussian block of Wang et al., and its dot-product form, which divides by the positions."""

    def __init__(self, softmax: bool, inner: int = 10, values: int = 12) -> None:
        super().__init__()
        self.theta, self.phi = nn.Conv2d(CHANNELS, inner, 1), nn.Conv2d(CHANNELS, inner, 1)
        self.g, self.out, self.softmax = nn.Conv2d(CHANNELS, values, 1), ConvNorm(values, CHANNELS), softmax

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        scores = torch.matmul(theta.transpose(1, 2), phi)
        scores = scores.softmax(-1) if self.softmax else scores / scores.shape[-1]
        y = torch.matmul(scores, g.transpose(1, 2)).transpose(1, 2)
        return x + self.out(y.reshape(x.shape[0], -1, *x.shape[2:]))


class GlobalContext(nn.Module):
    """Of GCNet: all positions are pooled by a softmax of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.transform = nn.Conv2d(CHANNELS, 1, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mask(x).flatten(2).softmax(-1).unsqueeze(-1)
        context = torch.matmul(x.flatten(2).unsqueeze(1), weights)
        return x + self.transform(context.view(x.shape[0], -1, 1, 1))


class Linear(nn.Module):
    """Of EfficientViT: keys and values are multiplied first, each with each."""

    def __init__(self, width: int = 4, values: int = 12) -> None:
        super().__init__()
        self.q, self.k = nn.Conv2d(CHANNELS, width, 1), nn.Conv2d(CHANNELS, width, 1)
        self.v, self.proj = nn.Conv2d(CHANNELS, values, 1), nn.Conv2d(values, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        y = torch.matmul(torch.matmul(v, F.relu(k).mT), F.relu(q)) / q.shape[-1]
        return x + self.proj(y.unflatten(-1, x.shape[2:]))


class Separable(nn.Module):
    """Of MobileViTv2: one channel of scores pools the keys, and the result scales the values."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed_dim = width
        self.qkv, self.out = nn.Conv2d(CHANNELS, 1 + 2 * width, 1), nn.Conv2d(width, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = torch.split(self.qkv(x), [1, self.embed_dim, self.embed_dim], dim=1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        return x + self.out(F.relu(value) * context.expand_as(value))


class CrossCovariance(nn.Module):
    """Of XCiT: scores relate channels to channels, and their softmax runs over channels."""

    def __init__(self, heads: int = 2, width: int = 6) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width, heads * width
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * heads * width), nn.Linear(heads * width, CHANNELS)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.qkv(x.flatten(2).mT).reshape(batch, -1, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
        y = scores.softmax(-1) @ v
        y = self.proj(y.permute(0, 3, 1, 2).reshape(batch, height * width, self.attn_dim))
        return x + y.mT.unflatten(-1, (height, width))


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        y = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + y.mT.unflatten(-1, x.shape[2:])


# For each block how to make it.
BLOCKS: dict[str, Any] = {
    "scale in an attribute": Heads,
    "scale by einsum": lambda: Heads("einsum"),
    "other width of values": lambda: Heads(values=8),
    "SDPA with a scale": lambda: Heads("SDPA, scale"),
    "SDPA": lambda: Heads("SDPA"),
    "scale from the shape": lambda: Heads("shape"),
    "norm of heads": lambda: Heads("norm"),
    "rotation of heads": lambda: Heads("rotation"),
    "table of positions": lambda: Heads("table"),
    "table of positions, heads first": lambda: Heads("table, heads first"),
    "fused, five dimensions": lambda: Fused("five dimensions"),
    "fused, chunk": lambda: Fused("chunk"),
    "YOLO11": PositionSensitive,
    "YOLO11, one number twice": lambda: PositionSensitive(4),
    "YOLO12": lambda: Area(1),
    "YOLO12, four areas": lambda: Area(4),
    "BoTNet": Bottleneck,
    "CvT": Convolutional,
    "non-local": lambda: NonLocal(True),
    "non-local, dot product": lambda: NonLocal(False),
    "GCNet": GlobalContext,
    "EfficientViT": Linear,
    "MobileViTv2": Separable,
    "XCiT": CrossCovariance,
    "MultiheadAttention": TorchAttention,
    "scale from a tensor": lambda: Heads("tensor"),
    "softmax over channels": lambda: Heads("channels"),
    "number in the code": lambda: Heads("code"),
}


def attention_network(name: str) -> Network:
    """The network of :data:`BLOCKS` with that block; its weights are random, and no batch norm is the identity."""
    network = Network(BLOCKS[name](), CHANNELS)
    draw_norms(network)
    return network.eval()
