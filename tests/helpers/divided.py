"""Small blocks that divide their channels, as known networks do: each after its original, in a few lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import draw_norms


class Network(nn.Module):
    """A stem of 16 channels, a block, and a head of 3 outputs; the head reads as many channels as the block has."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = block
        self.head = nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.silu(self.stem(x))))


class ConvNorm(nn.Sequential):
    """A convolution with its batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Of YOLO: two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(channels, channels, 3), ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Of YOLOv8: one half goes on through a row of blocks, and everything is joined."""

    def __init__(self, split: bool, kind: type[nn.Module] = Bottleneck, blocks: int = 2) -> None:
        super().__init__()
        self.c = 12
        self.cv1, self.cv2 = ConvNorm(16, 2 * self.c), ConvNorm((2 + blocks) * self.c, 16)
        self.m = nn.ModuleList(kind(self.c) for _ in range(blocks))
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        parts = list(y.split((self.c, self.c), 1) if self.split else y.chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class C3k(nn.Module):
    """Of YOLO11: two branches, of which one has bottlenecks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(channels, channels // 2), ConvNorm(channels, channels // 2)
        self.m = nn.Sequential(Bottleneck(channels // 2), Bottleneck(channels // 2))
        self.cv3 = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SimpleGate(nn.Module):
    """Of NAFNet: the product of both halves."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return left * right


class NAFBlock(nn.Module):
    """Of NAFNet, without its layer norms: two gated branches with learned scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(16, 32, 1), ConvNorm(32, 32, 3, 32), nn.Conv2d(16, 16, 1)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1))
        self.conv4, self.conv5 = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 1)
        self.gate = SimpleGate()
        self.beta, self.gamma = nn.Parameter(torch.rand(1, 16, 1, 1)), nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.conv2(self.conv1(x)))
        x = x + self.beta * self.conv3(y * self.attention(y))
        return x + self.gamma * self.conv5(self.gate(self.conv4(x)))


class Res2Net(nn.Module):
    """Of Res2Net and ECAPA-TDNN: each part is joined to the result of the part before."""

    def __init__(self, how: str, scale: int = 4) -> None:
        super().__init__()
        self.width, self.scale, self.how = 24 // scale, scale, how
        self.conv1, self.conv3 = ConvNorm(16, 24), ConvNorm(24, 16)
        self.convs = nn.ModuleList(ConvNorm(self.width, self.width, 3) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.how == "chunk":
            parts = y.chunk(self.scale, 1)
        elif self.how == "split":
            parts = torch.split(y, self.width, 1)
        elif self.how == "sections":
            parts = y.tensor_split(self.scale, 1)
        else:
            parts = tuple(y[:, i * self.width : (i + 1) * self.width] for i in range(self.scale))
        done = [parts[0]]
        for convolution, part in zip(self.convs, parts[1:], strict=True):
            done.append(convolution(part if len(done) == 1 else part + done[-1]))
        return x + self.conv3(torch.cat(done, 1))


class SelectiveKernel(nn.Module):
    """Of SKNet: both halves of the attention choose between two branches."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.paths, self.channels, self.split = 2, 20, split
        self.branches = nn.ModuleList(ConvNorm(8 if split else 16, 20, kernel) for kernel in (3, 5))
        self.squeeze, self.excite = ConvNorm(20, 8), nn.Conv2d(8, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        inputs = torch.split(x, x.shape[1] // self.paths, 1) if self.split else [x, x]
        results = [branch(each) for branch, each in zip(self.branches, inputs, strict=True)]
        stacked = torch.stack(results, 1)
        attention = self.excite(self.squeeze(stacked.sum(1).mean((2, 3), keepdim=True)))
        attention = attention.view(x.shape[0], self.paths, -1, 1, 1).softmax(1)
        return (stacked * attention).sum(1)


class SplitAttention(nn.Module):
    """Of ResNeSt: a grouped convolution makes several maps per channel, and attention over them adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.radix = 2
        self.conv, self.fc1, self.fc2 = ConvNorm(16, 32, 3, 2), ConvNorm(16, 8), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, *size = x.shape
        x = x.reshape(batch, self.radix, channels // self.radix, *size)
        attention = self.fc2(self.fc1(x.sum(1).mean((2, 3), keepdim=True)))
        attention = attention.view(batch, self.radix, -1).softmax(1).reshape(batch, -1)
        return (x * attention.view(batch, self.radix, channels // self.radix, 1, 1)).sum(1)


class Gated(nn.Module):
    """A gated convolution (GLU), as in Conformer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(16, 40, 1), ConvNorm(20, 20, 3, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(F.glu(self.conv(x), dim=1))


class MaxFeatureMap(nn.Module):
    """Of LightCNN: the larger of both halves, whose size is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 20
        self.filter = nn.Conv2d(16, 2 * self.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.filter(x), self.out_channels, 1)
        return torch.max(left, right)


class Maxout(nn.Module):
    """The largest of several channels, by a reshape that puts the pieces before or behind."""

    def __init__(self, pieces_first: bool) -> None:
        super().__init__()
        self.pieces, self.pieces_first, self.conv = 3, pieces_first, nn.Conv2d(16, 30, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, *size = x.shape
        if self.pieces_first:
            return x.view(batch, self.pieces, channels // self.pieces, *size).amax(1)
        return x.view(batch, channels // self.pieces, self.pieces, *size).max(2).values


class PartialConvolution(nn.Module):
    """Of FasterNet: a convolution of the first quarter, which is an attribute, and the rest as it is."""

    def __init__(self, slices: bool) -> None:
        super().__init__()
        self.dim_conv3, self.dim_untouched, self.slices = 6, 18, slices
        self.expand, self.partial = ConvNorm(16, 24), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.slices:
            return torch.cat([self.partial(x[:, : self.dim_conv3]), x[:, self.dim_conv3 :]], 1)
        first, rest = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return torch.cat([self.partial(first), rest], 1)


class DualPath(nn.Module):
    """Of DPN: the first channels are added, the others are joined; where they part is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.num_1x1_c = 16
        self.project, self.conv = ConvNorm(16, 24), ConvNorm(16, 28)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = self.project(x), self.conv(x)
        added = shortcut[:, : self.num_1x1_c] + x[:, : self.num_1x1_c]
        return torch.cat([added, shortcut[:, self.num_1x1_c :], x[:, self.num_1x1_c :]], 1)


class SingleHead(nn.Module):
    """Of SHViT, without its attention: one size is an attribute, the other the difference of two."""

    def __init__(self) -> None:
        super().__init__()
        self.pdim, self.dim = 7, 24
        self.expand, self.inner = ConvNorm(16, 24), nn.Conv2d(7, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(self.expand(x), [self.pdim, self.dim - self.pdim], dim=1)
        return torch.cat([self.inner(first), rest], 1)


class Inception(nn.Module):
    """Of InceptionNeXt: depthwise convolutions of parts whose sizes are a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.split_indexes = (15, 4, 4, 4)
        self.expand = ConvNorm(16, 27)
        self.parts = nn.ModuleList(ConvNorm(4, 4, kernel, 4) for kernel in (3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        identity, *others = torch.split(self.expand(x), self.split_indexes, dim=1)
        return torch.cat([identity, *(part(each) for part, each in zip(self.parts, others, strict=True))], 1)


class Mixed(nn.ModuleDict):
    """Of MixNet: convolutions of different kernels, the sizes of their inputs in a list."""

    def __init__(self) -> None:
        super().__init__({"0": nn.Conv2d(7, 8, 1), "1": nn.Conv2d(5, 8, 3, padding=1), "2": nn.Conv2d(4, 9, 1)})
        self.splits = [7, 5, 4]

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, 1)
        return torch.cat([layer(part) for layer, part in zip(self.values(), parts, strict=True)], 1)


class Shuffled(nn.Module):
    """Of ShuffleNet: half of the channels pass a branch, then the halves are interleaved."""

    def __init__(self, shuffle: str) -> None:
        super().__init__()
        self.shuffle, self.groups, self.channels = shuffle, 2, 16
        self.branch, self.interleave = ConvNorm(8, 8, 3), nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        if self.shuffle == "module":
            return self.interleave(x)
        batch, channels, *size = x.shape
        if self.shuffle == "attribute":
            channels = self.channels
        x = x.view(batch, self.groups, channels // self.groups, *size)
        return x.transpose(1, 2).contiguous().view(batch, -1 if self.shuffle == "open" else channels, *size)


class Generator(nn.Module):
    """Of generators and decoders: a linear layer makes maps of 4 times 4 pixels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.channels = how, 12
        self.linear, self.unflatten = nn.Linear(16, 12 * 16), nn.Unflatten(1, (12, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.mean((2, 3)))
        if self.how == "open":
            return x.view(x.shape[0], -1, 4, 4)
        if self.how == "module":
            return self.unflatten(x)
        return x.view(-1, self.channels, 4, 4)


class ShuffledByHand(nn.Module):
    """A pixel shuffle by a reshape, a permutation and a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, channels // 4, 2 * height, 2 * width)


class Halves(nn.Module):
    """A split of a tuple of halves behind a view, taken by ``unbind`` or by number."""

    def __init__(self, unbind: bool) -> None:
        super().__init__()
        self.unbind, self.conv = unbind, nn.Conv2d(16, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.unflatten(1, (2, x.shape[1] // 2))
        left, right = x.unbind(1) if self.unbind else (x[:, 0], x[:, 1])
        return left * torch.sigmoid(right)


# Name: the block, the channels that it returns, and by how much its attributes shrink when half of every set goes.
BLOCKS = {
    "C2f by chunk": (lambda: C2f(False), 16),
    "C2f by split": (lambda: C2f(True), 16),
    "C3k2": (lambda: C2f(False, C3k), 16),
    "C3k2 by split": (lambda: C2f(True, C3k), 16),
    "NAFNet": (NAFBlock, 16),
    "Res2Net by chunk": (lambda: Res2Net("chunk"), 16),
    "Res2Net by split": (lambda: Res2Net("split"), 16),
    "Res2Net by tensor_split": (lambda: Res2Net("sections"), 16),
    "Res2Net by slices": (lambda: Res2Net("slices"), 16),
    "SKNet": (lambda: SelectiveKernel(False), 20),
    "SKNet, split input": (lambda: SelectiveKernel(True), 20),
    "ResNeSt": (SplitAttention, 16),
    "GLU": (Gated, 20),
    "LightCNN": (MaxFeatureMap, 20),
    "maxout, pieces first": (lambda: Maxout(True), 10),
    "maxout, pieces last": (lambda: Maxout(False), 10),
    "FasterNet": (lambda: PartialConvolution(False), 24),
    "FasterNet, slices": (lambda: PartialConvolution(True), 24),
    "DPN": (DualPath, 36),
    "SHViT": (SingleHead, 24),
    "InceptionNeXt": (Inception, 27),
    "MixNet": (Mixed, 25),
    "ShuffleNet": (lambda: Shuffled("computed"), 16),
    "ShuffleNet, open size": (lambda: Shuffled("open"), 16),
    "ShuffleNet, attribute": (lambda: Shuffled("attribute"), 16),
    "ShuffleNet by module": (lambda: Shuffled("module"), 16),
    "generator, open size": (lambda: Generator("open"), 12),
    "generator, attribute": (lambda: Generator("attribute"), 12),
    "generator by module": (lambda: Generator("module"), 12),
    "pixel shuffle by hand": (ShuffledByHand, 10),
    "halves by unbind": (lambda: Halves(True), 20),
    "halves by select": (lambda: Halves(False), 20),
}


def divided_network(name: str) -> Network:
    """The network of :data:`BLOCKS` with that block; its weights are random, and no batch norm is the identity."""
    make, channels = BLOCKS[name]
    network = Network(make(), channels)
    draw_norms(network)
    return network.eval()
