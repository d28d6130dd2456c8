"""Norms: which channels can go exactly, which with statistics over the kept channels alone, and which are kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with random numbers in all its norms."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0, 0.5)
    return model.eval()


def masked(model: nn.Module, plan: fec_fast.Plan) -> nn.Module:
    """The original in float64 whose removed channels are zero in every tensor but running variances."""
    network = copy.deepcopy(model).double()
    state = network.state_dict()
    for name, axes in plan.keep.items():
        for axis, kept in axes.items():
            removed = sorted({*range(state[name].shape[int(axis)])} - {*kept})
            if not name.endswith("running_var"):
                state[name].index_fill_(int(axis), torch.tensor(removed), 0)
    return network


def relative_difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / left.abs().max())


class Instances(nn.Module):
    """Two convolutions with instance norms, and a head."""

    def __init__(self, dims: int, *, affine: bool, track: bool) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dims], INSTANCE_NORMS[dims]
        self.a, self.norm_a = convolution(2, 8, 3, padding=1), norm(8, affine=affine, track_running_stats=track)
        self.b, self.norm_b = convolution(8, 6, 1), norm(6, affine=affine, track_running_stats=track)
        self.head = convolution(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm_b(self.b(self.norm_a(self.a(x)).relu())).relu())


@settings(max_examples=25)
@given(
    dims=st.sampled_from([1, 2, 3]),
    batch=st.sampled_from([None, 1, 2, 9]),
    affine=st.booleans(),
    track=st.booleans(),
    ratio=st.sampled_from([0.25, 0.5, 0.75]),
    seed=st.integers(0, 1000),
)
def test_instance_norms_are_exact(
    dims: int, batch: int | None, affine: bool, track: bool, ratio: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = randomised(Instances(dims, affine=affine, track=track))
    images = torch.randn(*(() if batch is None else (batch,)), 2, *[5] * dims)
    result = fec_fast.prune(model, images, ratio=ratio, recover=None)
    assert not result.plan.notes and set(result.plan.pinned) == {"head"}
    assert (result.model.a.out_channels, result.model.b.out_channels) == (8 - int(8 * ratio), 6 - int(6 * ratio))
    assert result.model.norm_a.num_features == result.model.a.out_channels
    assert result.model.norm_b.num_features == result.model.b.out_channels
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where num_features is not the number of channels
        pruned = copy.deepcopy(result.model).double()(images.double())
        assert relative_difference(masked(model, result.plan)(images.double()), pruned) < 1e-9


def test_a_pruned_instance_norm_trains_and_loads(tmp_path: Path) -> None:
    for affine in (True, False):
        images = torch.randn(2, 2, 6, 6)
        model = randomised(Instances(2, affine=affine, track=True))
        result = fec_fast.prune(model, images, ratio=0.5, recover=None)
        fec_fast.save(result, tmp_path / "pruned")
        loaded = fec_fast.load(Instances(2, affine=affine, track=True), tmp_path / "pruned").eval()
        assert loaded.norm_a.num_features == 4
        with torch.no_grad():
            assert torch.equal(loaded(images), result.model(images))
        loaded.train()(images).square().mean().backward()
        assert loaded.norm_a.running_mean.shape == (4,)


def test_a_batch_norm_whose_values_are_repeated_by_hand() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            flat = x.view(1, -1, *x.shape[2:])
            scale, shift = (values.repeat(len(x)) for values in (self.scale, self.shift))
            return self.b(F.batch_norm(flat, None, None, scale, shift, training=True).view(x.shape))

    result = fec_fast.prune(ByHand().eval(), torch.randn(3, 3, 4, 4), ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.scale.shape == (4,) and result.model.a.out_channels == 4


class Normed(nn.Module):
    """A convolution, a norm of 12 channels, and a head."""

    def __init__(self, norm: nn.Module, channels: int = 12) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(3, channels, 3, padding=1), norm, nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)).relu())


@settings(max_examples=25)
@given(
    groups=st.sampled_from([2, 3, 4, 6]),
    size=st.sampled_from([1, 2, 5]),
    affine=st.booleans(),
    norms=st.sampled_from(["exact", "renormalise"]),
    seed=st.integers(0, 1000),
)
def test_group_norms_lose_whole_groups_or_as_many_channels_of_each(
    groups: int, size: int, affine: bool, norms: str, seed: int
) -> None:
    torch.manual_seed(seed)
    channels = groups * size
    model = randomised(Normed(nn.GroupNorm(groups, channels, affine=affine), channels))
    images = torch.randn(2, 3, 5, 5)
    whole = norms == "exact" or size == 1
    units = groups if whole else size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = fec_fast.prune(model, images, ratio=0.5, norms=norms, recover=None)
    left = units - units // 2
    assert result.model.norm.num_groups == (left if whole else groups)
    assert result.model.norm.num_channels == (left * size if whole else groups * left)
    kept = result.plan.keep.get("a.weight", {}).get("0", [*range(channels)])
    of_groups = [sum(index // size == group for index in kept) for group in range(groups)]
    assert set(of_groups) <= ({0, size} if whole else {left})
    with torch.no_grad():
        pruned = copy.deepcopy(result.model).double()(images.double())
        reference = model.double()
        if whole:  # the statistics of the original are those of the pruned network
            expected = masked(model, result.plan)(images.double())
        else:
            expected = over_kept(reference, kept, images.double(), lambda x: grouped(x, groups, reference.norm.eps))
    assert relative_difference(expected, pruned) < 1e-9
    assert bool(result.plan.changed_norms) == (not whole and left < size)


def grouped(x: Tensor, groups: int, eps: float) -> Tensor:
    parts = x.reshape(len(x), groups, -1)
    return ((parts - parts.mean(2, True)) / (parts.var(2, correction=0, keepdim=True) + eps).sqrt()).view(x.shape)


def over_kept(model: nn.Module, kept: list[int], images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """The original in float64, whose norm runs over the kept channels alone, and whose head reads them alone."""
    x = normalise(model.a(images)[:, kept])
    scales = dict(model.norm.named_parameters())
    if scales:
        shape = [-1, *[1] * (x.dim() - 2)] if scales["weight"].dim() == 1 else [-1, *scales["weight"].shape[1:]]
        x = x * scales["weight"][kept].view(shape)
        x = x + scales["bias"][kept].view(shape) if "bias" in scales else x
    return F.conv2d(x.relu(), model.head.weight[:, kept], model.head.bias)


class ChannelsFirst(nn.LayerNorm):
    """Of ConvNeXt in torchvision and timm: permuted, and the function called."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A norm with parameters of its own, by a function of the tensor and the norm."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.weight, self.width = nn.Parameter(torch.ones(12)), 12
        self.bias = nn.Parameter(torch.zeros(12)) if bias else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


def by_hand(x: Tensor, norm: Any) -> Tensor:
    """The channels-first norm of the original ConvNeXt."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-5)
    return norm.weight[:, None, None] * x + norm.bias[:, None, None]


def by_variance(x: Tensor, norm: Any) -> Tensor:
    variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def by_width(x: Tensor, norm: Any) -> Tensor:
    """The width is an attribute of another name."""
    return F.layer_norm(x.movedim(1, 3), (norm.width,), norm.weight, norm.bias).movedim(3, 1)


def by_shape(x: Tensor, norm: Any) -> Tensor:
    return F.layer_norm(x.movedim(1, 3), (x.shape[1],), norm.weight, norm.bias).movedim(3, 1)


def root_mean_square(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x.movedim(1, 3), x.shape[1:2], norm.weight, eps=1e-5).movedim(3, 1)


def layer(x: Tensor) -> Tensor:
    return (x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, True) + 1e-5).sqrt()


LAYER_NORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "channels first": (lambda: ChannelsFirst(12), layer),
    "channels first, without parameters": (lambda: ChannelsFirst(12, elementwise_affine=False), layer),
    "channels first, without a bias": (lambda: ChannelsFirst(12, bias=False), layer),
    "by hand": (lambda: Scaled(by_hand), layer),
    "variance and mean": (lambda: Scaled(by_variance), layer),
    "held by another attribute": (lambda: Scaled(by_width), layer),
    "computed from the shape": (lambda: Scaled(by_shape), layer),
    "root mean square": (lambda: Scaled(root_mean_square, bias=False), rms),
    "group norm of one group": (lambda: nn.GroupNorm(1, 12), lambda x: grouped(x, 1, 1e-5)),
    "over channels and positions": (lambda: nn.LayerNorm([12, 5, 5]), lambda x: grouped(x, 1, 1e-5)),
}


@pytest.mark.parametrize("name", LAYER_NORMS)
@settings(max_examples=4)
@given(ratio=st.sampled_from([0.25, 0.5, 0.8]), seed=st.integers(0, 1000))
def test_norms_over_the_kept_channels_alone(name: str, ratio: float, seed: int) -> None:
    torch.manual_seed(seed)
    make, normalise = LAYER_NORMS[name]
    model, images = randomised(Normed(make())), torch.randn(2, 3, 5, 5)
    result = fec_fast.prune(model, images, ratio=ratio, norms="renormalise", recover=None)
    kept = result.plan.keep["a.weight"]["0"]
    assert len(kept) == 12 - int(12 * ratio)
    assert all(record["kept"] == kept for record in result.plan.norms["norm"])
    assert result.plan.notes[0].startswith('norms="renormalise": the statistics of norm run over the kept channels')
    assert result.proof is not None and any("kept channels alone" in note for note in result.proof.notes)
    with torch.no_grad():
        expected = over_kept(model.double(), kept, images.double(), normalise)
        assert relative_difference(expected, copy.deepcopy(result.model).double()(images.double())) < 1e-9


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_exact_norms_keep_the_channels_and_name_the_remedy(name: str) -> None:
    model = randomised(Normed(LAYER_NORMS[name][0]()))
    with pytest.raises(fec_fast.LayerError, match='norms="renormalise" lets them go'):
        fec_fast.prune(model, torch.randn(2, 3, 5, 5), recover=None)


class SpatialAttention(nn.Module):
    """Scales positions by what is computed from the mean and the maximum of all channels (Woo et al., 2018)."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        largest, position = x.max(1, keepdim=True)
        gate = self.gate(torch.cat([largest, x.mean(1, keepdim=True)], 1)).sigmoid()
        return self.use(self.b(x * gate), position)


def test_maxima_over_the_kept_channels_alone() -> None:
    torch.manual_seed(0)
    model, images = SpatialAttention(lambda y, _: y).eval(), torch.randn(2, 3, 6, 6)
    with pytest.raises(fec_fast.LayerError, match=r'aten.max.dim runs over .*\(norms="renormalise" lets them go\)'):
        fec_fast.prune(model, images, recover=None)
    result = fec_fast.prune(model, images, ratio=0.5, norms="renormalise", recover=None)
    kept = result.plan.keep["a.weight"]["0"]
    assert len(kept) == 6 and result.plan.changed_norms == ["the model itself"]
    with torch.no_grad():
        x = model.a(images)[:, kept]
        gate = model.gate(torch.cat([x.amax(1, True), x.mean(1, True)], 1)).sigmoid()
        expected = nn.functional.conv2d(x * gate, model.b.weight[:, kept], model.b.bias)
        torch.testing.assert_close(result.model(images), expected)


@pytest.mark.parametrize(
    "use",
    [
        lambda y, position: (y, position),
        lambda y, position: y + position,
        lambda y, _: y.max(1),  # the class is an output
    ],
)
def test_what_reads_the_position_of_a_maximum_keeps_the_channels(use: Callable[[Tensor, Tensor], Any]) -> None:
    torch.manual_seed(0)
    model, images = SpatialAttention(use).eval(), torch.randn(2, 3, 6, 6)
    try:
        pinned = fec_fast.prune(model, images, ratio=0.5, norms="renormalise", recover=None).plan.pinned
    except fec_fast.LayerError as error:
        pinned = {"a": str(error)}
    assert any("gives the positions of channels" in reason for reason in pinned.values())
