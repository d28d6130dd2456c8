"""Operators inside each channel's own map, and across channels, as functions of a feature map [N, 12, 8, 8]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, SIDE = 12, 8
Function = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A convolution of 12 channels, an operator, and a convolution of 3 outputs that reads what the operator returns.

    Args:
        function: From a feature map ``[N, 12, 8, 8]`` to one with the same batch.
        before: What turns the first convolution's result into the operator's.
    """

    def __init__(self, function: Function, dims: int = 2) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        self.function, self.dims = function, dims
        self.stem = nn.Sequential(kinds[dims](3, 8, 1), nn.ReLU(), kinds[dims](8, 3, 1))
        self.a = kinds[dims](3, WIDTH, 3, padding=1)
        with torch.no_grad():
            result = function(torch.rand(2, WIDTH, *[SIDE] * dims))
        self.b = kinds[max(1, result.dim() - 2)](result.shape[1], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(torch.sigmoid(self.a(self.stem(x))))
        x = x.real if x.is_complex() else x
        return self.b(x.to(self.b.weight.dtype).unsqueeze(-1) if x.dim() == 2 else x.to(self.b.weight.dtype))


def _unpooled(x: Tensor) -> Tensor:
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2)


def _put(x: Tensor) -> Tensor:
    x = x.clone()
    x.index_copy_(2, torch.tensor([1, 0]), x[:, :, :2].flip(2))
    return x


INDEX = torch.tensor([5, 1, 1, 6])

# Two-dimensional maps.
WITHIN: dict[str, Function] = {
    "pad zeros": lambda x: F.pad(x, (1, 2)),
    "pad constant": lambda x: F.pad(x, (1, 2, 0, 1), value=2.0),
    "pad reflect": lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 1, 1), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 1, 1), mode="circular"),
    "interpolate nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "interpolate nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "interpolate bilinear": lambda x: F.interpolate(x, size=5, mode="bilinear"),
    "interpolate bilinear antialias": lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True),
    "interpolate bicubic antialias": lambda x: F.interpolate(x, size=5, mode="bicubic", antialias=True),
    "interpolate area": lambda x: F.interpolate(x, size=5, mode="area"),
    "repeat along space": lambda x: x.repeat(1, 1, 2, 1),
    "repeat along channels": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave along space": lambda x: x.repeat_interleave(2, 2),
    "repeat_interleave along channels": lambda x: x.repeat_interleave(2, 1),
    "tile along channels": lambda x: x.tile(1, 3, 1, 1),
    "index_select": lambda x: x.index_select(2, INDEX),
    "gather by an expanded index": lambda x: x.gather(2, INDEX[:, None].expand(x.shape[0], x.shape[1], 4, 8)),
    "gather by an order": lambda x: x.gather(3, x.argsort(3)),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(2, descending=True), 2),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "unfold with strides": lambda x: F.unfold(x, 2, stride=2),
    "fold of unfold": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "fold": lambda x: F.fold(x.flatten(2), (16, 16), 2, stride=2),
    "Tensor.unfold": lambda x: x.unfold(2, 3, 2).mean(-1),
    "max_unpool2d": _unpooled,
    "max_pool2d indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[1] / 64,
    "fractional pooling": lambda x: torch.ops.aten.fractional_max_pool2d(
        x, [2, 2], [3, 3], x.new_ones(2, x.shape[1], 2) / 2
    )[0],
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
    "topk along space": lambda x: x.topk(3, 3)[0],
    "topk indices along space": lambda x: x.topk(3, 3)[1] / 8,
    "sort along space": lambda x: x.sort(3)[0],
    "argsort along space": lambda x: x.argsort(2, descending=True) / 8,
    "msort of channels last": lambda x: x.permute(2, 0, 1, 3).msort().permute(1, 2, 0, 3),
    "kthvalue": lambda x: x.kthvalue(3, 3, keepdim=True)[0],
    "median": lambda x: x.median(3)[0],
    "nanmedian": lambda x: x.nanmedian(3, keepdim=True)[0],
    "mode": lambda x: (x * 4).round().mode(3)[0],
    "quantile": lambda x: x.quantile(0.3, 3),
    "argmax": lambda x: x.argmax(3, keepdim=True) / 8,
    "argmin": lambda x: x.argmin(2) / 8,
    "prod": lambda x: x.prod(3),
    "logsumexp": lambda x: x.logsumexp((2, 3), keepdim=True),
    "aminmax": lambda x: x.aminmax(dim=3, keepdim=True)[1],
    "any": lambda x: (x > 0.7).any(3),
    "all": lambda x: (x > 0.2).all(2),
    "count_nonzero": lambda x: (x > 0.5).count_nonzero((2, 3))[..., None],
    "cumsum": lambda x: x.cumsum(3),
    "cumprod": lambda x: x.cumprod(2),
    "cummax": lambda x: x.cummax(3)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(3),
    "diff": lambda x: x.diff(dim=3),
    "trapezoid": lambda x: torch.trapezoid(x, dim=3),
    "std_mean": lambda x: torch.std_mean(x, (2, 3), keepdim=True)[0],
    "renorm": lambda x: x.flatten(2).transpose(0, 1).renorm(2, 0, 1.0).transpose(0, 1),
    "cdist along space": lambda x: torch.cdist(x, x.flip(2)),
    "fft along space": lambda x: torch.fft.rfft2(x).abs(),
    "fft and back": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(8, 8)),
    "fftshift": lambda x: torch.fft.fftshift(x, (2, 3)),
    "roll along space": lambda x: x.roll((2, 3), (2, 3)),
    "flip along space": lambda x: x.flip(2, 3),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "diag_embed": lambda x: x.mean(3).diag_embed(),
    "trace of maps": lambda x: x.diagonal(0, 2, 3).sum(-1),
    "new_zeros of one element": lambda x: x + x.new_zeros(1),
    "new_ones of a map": lambda x: x * x.new_ones(8, 8),
    "new_tensor": lambda x: x * x.new_tensor([0.5]),
    "new_zeros of the same shape": lambda x: x + x.new_zeros(x.shape),
    "new_full of the same width": lambda x: x * x.new_full((1, x.shape[1], 1, 1), 2.0),
    "new_empty filled": lambda x: x + x.new_empty(x.shape).fill_(1.0),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "grid_sample": lambda x: F.grid_sample(
        x, torch.linspace(-1, 1, 64).view(1, 4, 8, 2).expand(2, 4, 8, 2).to(x), align_corners=False
    ),
    "grid_sample nearest": lambda x: F.grid_sample(
        x,
        torch.linspace(-1, 1, 64).view(1, 4, 8, 2).expand(2, 4, 8, 2).to(x),
        mode="nearest",
        padding_mode="border",
        align_corners=True,
    ),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "glu along channels": lambda x: F.glu(x, 1),
    "glu along space": lambda x: F.glu(x, 3),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "softmax along space": lambda x: x.flatten(2).softmax(2),
    "softmin along space": lambda x: F.softmin(x, 3),
    "normalize along space": lambda x: F.normalize(x, dim=2),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.1),
    "where": lambda x: torch.where(x > 0.5, x, -x),
    "index_fill": lambda x: x.index_fill(3, torch.tensor([1, 2]), 0.5),
    "index_add": lambda x: x.index_add(2, torch.tensor([1, 2]), x[:, :, :2]),
    "index_copy in place": _put,
    "scatter": lambda x: x.scatter(3, x.argsort(3), x),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(3, x.argsort(3), x),
    "scatter_reduce": lambda x: x.scatter_reduce(3, x.argsort(3), x, "amax"),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(0, 1, 5)) / 5,
    "searchsorted": lambda x: torch.searchsorted(x.sort(3)[0], x) / 8,
    "scatter to zeros": lambda x: torch.zeros(x.shape).to(x).scatter_(3, x.argmax(3, keepdim=True), 1.0),
    "affine_grid of a constant": lambda x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), [2, 1, 4, 4], align_corners=False).to(x), align_corners=False
    ),
    "view_as_complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (4, 2))) * 1j).flatten(3),
    "cross along space": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6], dim=3),
    "matrix power": lambda x: torch.linalg.matrix_norm(x)[..., None],
    "inverse of maps": lambda x: torch.linalg.inv(x + 4 * torch.eye(8)),
    "determinant": lambda x: torch.linalg.det(x)[..., None],
    "cholesky": lambda x: torch.linalg.cholesky((x[..., 0] + 1).diag_embed()),
}

# One- and three-dimensional maps.
WITHIN_1D: dict[str, Function] = {
    "pad reflect": lambda x: F.pad(x, (1, 2), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2), mode="circular"),
    "interpolate nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 3),
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
}
WITHIN_3D: dict[str, Function] = {
    "pad reflect": lambda x: F.pad(x, (1, 2, 1, 1, 0, 1), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 1, 1, 0, 1), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 1, 1, 0, 1), mode="circular"),
    "interpolate nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "max_unpool3d": lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2),
    "lp_pool3d": lambda x: F.lp_pool3d(x, 2, 2),
}

ACROSS: dict[str, Function] = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "softmax2d": nn.Softmax2d(),
    "topk": lambda x: x.topk(4, 1)[0],
    "argmax": lambda x: x.argmax(1, keepdim=True) / 8,
    "sort": lambda x: x.sort(1)[0],
    "argsort": lambda x: x.argsort(1) / 8,
    "median": lambda x: x.median(1, keepdim=True)[0],
    "kthvalue": lambda x: x.kthvalue(2, 1, keepdim=True)[0],
    "mode": lambda x: (x * 4).round().mode(1, keepdim=True)[0],
    "prod": lambda x: x.prod(1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "any": lambda x: (x > 0.9).any(1, keepdim=True),
    "all": lambda x: (x > 0.1).all(1, keepdim=True),
    "count_nonzero": lambda x: (x > 0.5).count_nonzero(1)[:, None],
    "gate by any": lambda x: x * (x > 0.9).any(1, keepdim=True),
    "aminmax": lambda x: x.aminmax(dim=1, keepdim=True)[1],
    "quantile": lambda x: x.quantile(0.3, 1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(1)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "diff": lambda x: x.diff(dim=1),
    "fft": lambda x: torch.fft.fft(x, dim=1).real,
    "roll": lambda x: x.roll(3, 1),
    "index_select": lambda x: x.index_select(1, torch.arange(11, -1, -1)),
    "gather by a constant": lambda x: x.gather(1, torch.arange(11, -1, -1).view(1, 12, 1, 1).expand(2, 12, 8, 8)),
    "gather by an order": lambda x: x.gather(1, x.argsort(1)),
    "scatter": lambda x: x.scatter(1, torch.zeros(2, 12, 8, 8, dtype=torch.int64), x),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([1, 2]), 0.5),
    "index_add": lambda x: x.index_add(1, torch.tensor([1, 2]), x[:, :2]),
    "matrix product by a constant": lambda x: torch.einsum("nchw,cd->ndhw", x, torch.arange(144.0).view(12, 12)),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
    "cdist of channels": lambda x: torch.cdist(x.flatten(2), x.flatten(2)),
    "pad reflect": lambda x: F.pad(x.transpose(1, 3), (1, 2, 1, 1), mode="reflect").transpose(1, 3),
    "interpolate": lambda x: F.interpolate(x.transpose(1, 3), scale_factor=2, mode="nearest-exact").transpose(1, 3),
    "unfold": lambda x: F.unfold(x.transpose(1, 2), 3, padding=1),
    "tril": lambda x: x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2),
    "diagonal": lambda x: x[:, :8].diagonal(0, 1, 2),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 3:6], dim=1),
    "flatten and roll": lambda x: x.roll(64),
    "expand by numbers": lambda x: x.mean(1, keepdim=True).expand(2, 12, 8, 8),
    "view_as_complex": lambda x: torch.view_as_complex(x.unflatten(1, (6, 2)).movedim(2, -1).contiguous()).abs(),
    "vector norm of infinity": lambda x: torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True),
    "inverse": lambda x: torch.linalg.inv(x.permute(0, 2, 3, 1)[:, :, :, :8] + 4 * torch.eye(8)).permute(0, 3, 1, 2),
    "searchsorted": lambda x: (
        torch.searchsorted(x.movedim(1, 3).sort(3)[0].contiguous(), x.movedim(1, 3).contiguous()).movedim(3, 1).div(8)
    ),
    "all of all": lambda x: x * (x > -1).all(),
    "any of all": lambda x: x * (x > 0.9).any(),
    "gate by a number of channels": lambda x: x * ((x > 0.9).count_nonzero(1) > 1)[:, None],
    "positions, product": lambda x: x * x.argmax(3).prod(1)[:, None, :, None],
    "positions, median": lambda x: x * x.argmax(3).median(1)[0][:, None, :, None],
    "positions, order": lambda x: x * x.argmax(3).argsort(1)[..., None],
    "positions as numbers of channels": lambda x: x.gather(1, x.argmax(3, keepdim=True).expand(2, 12, 8, 8)),
    "masked_scatter": lambda x: x.masked_scatter(x > 0.5, x * 2),
    "masked_scatter by a constant": lambda x: x.masked_scatter(torch.arange(8) % 2 == 0, x * 2),
    "bincount": lambda x: x * x.argmax(3).flatten().bincount(minlength=8).view(1, 1, 1, 8),
    "take": lambda x: x.take(torch.arange(2 * 12 * 64).flip(0).view(2, 12, 8, 8)),
    "histc": lambda x: x * x.histc(8, 0, 1),
    "unique": lambda x: x * (x * 4).round().unique().sum(),
    "one_hot, which reads the largest number": lambda x: F.one_hot(x.argmax(3), 8).float(),
    "product of all": lambda x: x * x.prod(),
}
