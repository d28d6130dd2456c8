"""Norms: which channels can go exactly, which with statistics over the kept channels alone, and which are kept."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
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


@settings(max_examples=25, deadline=None)
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
    result = fec_fast.prune(model, images, ratio=ratio)
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
        result = fec_fast.prune(model, images, ratio=0.5)
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
            return self.b(nn.functional.batch_norm(flat, None, None, scale, shift, training=True).view(x.shape))

    result = fec_fast.prune(ByHand().eval(), torch.randn(3, 3, 4, 4), ratio=0.5)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.scale.shape == (4,) and result.model.a.out_channels == 4
