"""One small network for each operation that other pruning tools get wrong: exact, or kept whole with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fec_fast
from fec_fast.vision import networks


class Net(nn.Module):
    """conv a -> body(x) -> conv b -> 3 outputs."""

    def __init__(self, body, width=16, out=16):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.b = nn.Conv2d(out, 3, 1)
        self.body = body if isinstance(body, nn.Module) else Function(body)

    def forward(self, x):
        return self.b(self.body(torch.relu(self.a(x))))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(self.map(x))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.grow = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.grow(x)], 1)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(1, 16, 1, 1))
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x):
        return x * self.scale * self.gamma


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


class Map(nn.Module):
    """A learned map, such as a position embedding, added and multiplied."""

    def __init__(self, *shape, how=lambda p: p):
        super().__init__()
        self.map, self.how = nn.Parameter(torch.rand(shape)), how

    def forward(self, x):
        return x * self.how(self.map) + self.how(self.map)


class Tokens(nn.Module):
    """A position embedding of tokens."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.rand(1, 64, 16))

    def forward(self, x):
        return (x.flatten(2).transpose(1, 2) + self.positions).transpose(1, 2).unflatten(2, (8, 8))


class Thin(nn.Module):
    """Linear layers with one input and one output."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(16, 1), nn.Linear(1, 16)

    def forward(self, x):
        return self.up(torch.relu(self.down(x.mean((2, 3)))))[..., None, None] * x


EXACT = {
    "identity": (nn.Identity(), 16),
    "flip": (lambda x: x.flip(1), 16),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16), 16),
    "depthwise multiplier": (nn.Conv2d(16, 32, 3, groups=16), 32),
    "grouped": (nn.Conv2d(16, 32, 3, groups=4), 32),
    "many groups": (nn.Conv2d(16, 16, 3, groups=8), 16),
    "transposed": (nn.ConvTranspose2d(16, 8, 2, stride=2), 8),
    "grouped transposed": (nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2), 8),
    "depthwise transposed": (nn.ConvTranspose2d(16, 16, 2, stride=2, groups=16), 16),
    "squeeze and excitation": (Gate(), 16),
    "spatial gate": (SpatialGate(), 16),
    "dense": (Dense(), 24),
    "buffer and parameter products": (Buffered(), 16),
    "tied weights": (Tied(), 16),
    "L2 normalisation over channels": (lambda x: F.normalize(x, dim=1), 16),
    "batch norm without affine": (nn.BatchNorm2d(16, affine=False), 16),
    "group norm": (nn.GroupNorm(4, 16), 16),
    "group norm without parameters": (nn.GroupNorm(8, 16, affine=False), 16),
    "upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), 16),
    "PReLU": (nn.PReLU(16, init=0.3), 16),
    "pixel shuffle": (nn.PixelShuffle(2), 4),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 64),
    "spatial index": (lambda x: x[:, :, torch.tensor([3, 1, 0, 1])], 16),
    "channel shuffle": (nn.ChannelShuffle(2), 16),
    "chunk, product, concatenation": (lambda x: torch.cat([x.chunk(2, 1)[0] * x.chunk(2, 1)[1], x], 1), 24),
    "gated": (nn.GLU(1), 8),
    "other dtype of the same size": (lambda x: x * (x.view(torch.int32) > 2**29), 16),
    "learned map": (Map(1, 16, 8, 8), 16),
    "learned map without a batch": (Map(16, 8, 8), 16),
    "learned map with its channels last": (Map(8, 8, 16, how=lambda p: p.permute(2, 0, 1)), 16),
    "learned map of one row": (Map(16, 1, 8), 16),
    "learned map of all channels": (Map(1, 1, 8, 8), 16),
    "position embedding": (Tokens(), 16),
    "one channel": (Thin(), 16),
    "grid sampling": (lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False), 16),
}
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
OUT_OF_PLACE = (nn.GELU, nn.LogSigmoid, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink)
WHOLE = {
    "split by a number": (lambda x: x.split(8, 1)[0] * x.split(8, 1)[1], 8, "fixed positions"),
    "map through an operator without a rule": (Map(1, 16, 8, 8, how=lambda p: p.roll(1, 1)), 16, "fixed width"),
    "other dtype of another size": (
        lambda x: x * x.view(torch.int16).unflatten(3, (-1, 2))[..., 1].float(),
        16,
        "another size",
    ),
    "roll": (lambda x: x.roll(3, 1), 16, "fixed positions"),
    "index permutation": (lambda x: x[:, [*range(15, -1, -1)]], 16, "by their numbers"),
    "group norm of one group": (nn.GroupNorm(1, 16), 16, "statistics over channels"),
    "layer norm": (lambda x: F.layer_norm(x.movedim(1, -1), (16,)).movedim(-1, 1), 16, "norms="),
    "softmax over channels": (lambda x: x.softmax(1), 16, "relates channels"),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), 16, "over channels"),
    "functional weight": (lambda x: F.conv2d(x, torch.ones(16, 16, 1, 1)), 16, "not a parameter"),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)), 16, "remove_parametrizations"),
    "scale by a constant": (lambda x: x * torch.arange(16.0).view(1, 16, 1, 1), 16, "a tensor of fixed width"),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name):
    torch.manual_seed(0)
    body, out = EXACT[name]
    model = Net(body, out=out).eval()
    result = fec_fast.prune(model, torch.randn(2, 3, 8, 8), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.a.out_channels < 16


@pytest.mark.parametrize(
    "activation",
    [
        *(kind() for kind in (*ACTIVATIONS, *OUT_OF_PLACE)),
        *(kind(inplace=True) for kind in ACTIVATIONS),
        nn.Threshold(0.1, 0.0, True),
    ],
    ids=repr,
)
def test_activations(activation):
    torch.manual_seed(0)
    model = Net(nn.Sequential(nn.Conv2d(16, 16, 1), activation)).eval()
    result = fec_fast.prune(model, torch.randn(2, 3, 8, 8), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.a.out_channels == 8 and result.model.body[0].out_channels == 8


@pytest.mark.parametrize("name", WHOLE)
def test_kept_whole_with_a_reason(name):
    torch.manual_seed(0)
    body, out, words = WHOLE[name]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), Net(body, out=out)).eval()
    result = fec_fast.prune(model, torch.randn(2, 3, 8, 8), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model[0].out_channels == 4
    assert result.model[3].a.out_channels == 16
    assert "3.a" in result.plan.pinned
    assert any(word in " ".join([*result.plan.notes, *result.plan.pinned.values()]) for word in words.split("|"))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions(dimensions):
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv3d, nn.BatchNorm3d)
    model = nn.Sequential(conv(2, 12, 3), norm(12), nn.ReLU(), conv(12, 4, 1)).eval()
    result = fec_fast.prune(model, torch.randn(2, 2, *[6] * dimensions), ratio=0.5, recover=None)
    assert result.model[0].out_channels == 6 and result.model[1].num_features == 6
    assert result.difference is not None and result.difference < 1e-9


class HardCoded(nn.Module):
    """Widths that are numbers in the code: a can be narrowed, b and c cannot."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 20, 1)
        self.fc = nn.Linear(20, 2)

    def forward(self, x):
        x = self.b(torch.relu(self.a(x)))
        if x.shape[1] != 16:
            raise ValueError("sixteen channels, please")
        return self.fc(self.c(x).mean((2, 3)).view(-1, 20))


def test_widths_in_the_code_are_found_kept_and_reported():
    model = HardCoded().eval()
    result = fec_fast.prune(model, torch.randn(3, 3, 4, 4), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert [m.out_channels for m in (result.model.a, result.model.b, result.model.c)] == [6, 16, 20]
    assert "sixteen channels" in result.plan.pinned["b"] and "view" in result.plan.pinned["c"]
    assert [("sixteen channels" in note, "[3, 20]" in note) for note in result.plan.notes] == [
        (True, False),
        (False, True),
    ]


def test_a_model_that_cannot_be_pruned_at_all_is_left_as_it_was():
    class Counted(HardCoded):
        def forward(self, x):
            if sum(p.numel() for p in self.parameters()) != 638:
                raise ValueError("whole, please")
            return super().forward(x)

    model = Counted().eval()
    assert sum(p.numel() for p in model.parameters()) == 638
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(fec_fast.InputError, match="whole, please.*ignore="):
        fec_fast.prune(model, torch.randn(3, 3, 4, 4), recover=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_training_branches_are_traced_too():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return (self.b(x), self.aux(x)) if self.training else self.b(x)

    result = fec_fast.prune(Auxiliary().eval(), torch.randn(2, 3, 4, 4), recover=None)
    assert result.model.aux.in_channels == 8 and result.model.aux.out_channels == 4
    result.model.train()(torch.randn(2, 3, 4, 4))[1].sum().backward()
    assert result.model.aux.weight.grad.shape == (4, 8, 1, 1)


def test_couplings_do_not_depend_on_the_layout_of_the_inputs():
    """Pooling to one pixel restrides its result where the input is channels-last."""
    torch.manual_seed(0)
    model = networks.resnet20_cifar().eval()
    image = torch.randn(2, 3, 32, 32)
    plain = fec_fast.couplings(model, image)
    last = fec_fast.couplings(model, image.to(memory_format=torch.channels_last))
    assert plain == last and not last.notes


def test_a_restride_that_moves_elements_is_not_understood():
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(self.a(x).as_strided_((1, 4, 2, 2), (16, 1, 4, 8)))

    found = fec_fast.couplings(Moved().eval(), torch.randn(1, 3, 2, 2))
    assert not found.sets and "as_strided_" in found.notes[0]


def test_attention_that_reshapes_to_the_width_of_its_input_keeps_that():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.stem = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1)
            self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 2)

        def forward(self, x):
            x = self.stem(self.first(x).relu()).flatten(2).transpose(1, 2)
            batch, places, width = x.shape
            q, k, v = self.qkv(x).reshape(batch, places, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.head(x.transpose(1, 2).reshape(batch, places, width).mean(1))

    result = fec_fast.prune(Attention().eval(), torch.randn(2, 3, 4, 4), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert (result.model.first.out_channels, result.model.stem.out_channels) == (6, 16)
    assert "wants its width" in result.plan.pinned["stem"]
    assert any("wants the width" in note for note in result.plan.notes)


class Head(nn.Module):
    """A model with one output."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 12, 1), nn.Linear(12, 1) if kind == "linear" else nn.Conv2d(12, 1, 1)
        self.kind = kind

    def forward(self, x):
        x = torch.relu(self.body(x)).mean((2, 3), keepdim=True)
        return self.head(x.flatten(1) if self.kind == "linear" else x)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_head_of_one_output_keeps_nothing_else(kind):
    torch.manual_seed(0)
    result = fec_fast.prune(Head(kind).eval(), torch.randn(2, 3, 4, 4), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.body.out_channels == 6 and list(result.plan.pinned) == ["head"] and not result.plan.notes
