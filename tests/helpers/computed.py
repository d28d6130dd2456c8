"""Layers whose weights are computed from parameters, and networks around them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune


class Standardised(nn.Conv2d):
    """Weight standardisation, by hand."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, weight / deviation.expand_as(weight), self.bias, self.stride, self.padding)


class StandardisedByBatchNorm(nn.Conv2d):
    """Weight standardisation with a gain for each filter, by a batch norm over the weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class WeightNormByHand(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.Parameter(torch.rand(outputs) + 0.5)

    def forward(self, x):
        norm = self.v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, self.g.view(-1, 1, 1, 1) * self.v / norm, padding=1)


class OwnParameters(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / 5), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.conv2d(x, self.w, self.b, padding=1)


class ChannelsLastWeight(nn.Module):
    """A weight ``[k, k, in, out]``, as TensorFlow stores it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, inputs, outputs) / 5)

    def forward(self, x):
        return F.conv2d(x, self.w.permute(3, 2, 0, 1), padding=1)


class TwoKernels(nn.Conv2d):
    """A small kernel is added to a larger one, mirrored."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.small = nn.Parameter(torch.randn(self.out_channels, self.in_channels, 1, 1))

    def forward(self, x):
        return self._conv_forward(x, self.weight.flip(2, 3) + F.pad(self.small, [1, 1, 1, 1]), self.bias)


class EqualisedRate(nn.Module):
    """A weight that is scaled at run time (Karras et al., 2018)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.conv2d(x, self.weight * 0.1, self.bias, padding=1)


class Product(nn.Module):
    """A matrix ``[out, in]``, applied by a function of the input and the matrix."""

    def __init__(self, inputs, outputs, function):
        super().__init__()
        self.w, self.function = nn.Parameter(torch.randn(outputs, inputs) / 5), function

    def forward(self, x):
        return self.function(x, self.w)


class LinearAsConvolution(nn.Linear):
    def forward(self, x):
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class Halves(nn.Module):
    """A weight of two parameters, each with half of the filters."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = nn.Parameter(torch.randn(outputs // 2, inputs, 3, 3) / 5)
        self.second = nn.Parameter(torch.randn(outputs // 2, inputs, 3, 3) / 5)

    def forward(self, x):
        return F.conv2d(x, torch.cat([self.first, self.second]), padding=1)


class Autocast(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float()


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def masked_twice(layer):
    prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)
    prune.random_unstructured(layer, "bias", 0.2)
    return masked(layer)


def _product(function):
    return lambda inputs, outputs: Product(inputs, outputs, function)


# Filters and input channels may go.
BOTH_AXES = {
    "mask": lambda i, o: masked(conv(i, o)),
    "masks of weight and bias": lambda i, o: masked_twice(conv(i, o)),
    "depthwise mask": lambda i, o: masked(conv(i, o, groups=i)),
    "depthwise weight norm": lambda i, o: parametrizations.weight_norm(conv(i, o, groups=i)),
    "own parameters": OwnParameters,
    "channels-last weight": ChannelsLastWeight,
    "equalised rate": EqualisedRate,
    "two kernels": lambda i, o: TwoKernels(i, o, 3, padding=1),
    "two weights": lambda i, o: Halves(i, o),
    "autocast": Autocast,
    "linear as convolution": LinearAsConvolution,
    "einsum": _product(lambda x, w: torch.einsum("bchw,oc->bohw", x, w)),
    "einsum, weight first": _product(lambda x, w: torch.einsum("oc,bchw->bohw", w, x)),
    "matmul": _product(lambda x, w: (w @ x.flatten(2)).unflatten(2, x.shape[2:])),
    "matmul, weight last": _product(lambda x, w: (x.permute(0, 2, 3, 1) @ w.t()).permute(0, 3, 1, 2)),
    "bmm": _product(lambda x, w: torch.bmm(w[None].expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])),
}
# Filters may go; input channels may not, because the other weights of a filter would change.
FILTERS = {
    "weight norm": lambda i, o: torch.nn.utils.weight_norm(conv(i, o)),
    "parametrized weight norm": lambda i, o: parametrizations.weight_norm(conv(i, o)),
    "weight norm by hand": WeightNormByHand,
    "weight standardisation": lambda i, o: Standardised(i, o, 3, padding=1),
    "weight standardisation by batch norm": lambda i, o: StandardisedByBatchNorm(i, o, 3, padding=1),
    "transposed weight norm over inputs": lambda i, o: parametrizations.weight_norm(
        nn.ConvTranspose2d(i, o, 3, padding=1), dim=1
    ),
}
# Neither may go: each weight depends on all others. The remedy is named.
NEITHER = {
    "spectral norm": (lambda i, o: torch.nn.utils.spectral_norm(conv(i, o)), "remove_spectral_norm"),
    "parametrized spectral norm": (lambda i, o: parametrizations.spectral_norm(conv(i, o)), "remove_parametrizations"),
    "weight norm of everything": (
        lambda i, o: torch.nn.utils.weight_norm(conv(i, o), dim=None),
        "remove_weight_norm",
    ),
    "orthogonal": (lambda i, o: parametrizations.orthogonal(conv(i, o)), "remove_parametrizations"),
}


class Around(nn.Module):
    """A convolution, a layer, and a convolution to three outputs."""

    def __init__(self, make):
        super().__init__()
        self.a, self.body, self.b = conv(3, 16), make(16, 16), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.b(torch.relu(self.body(torch.relu(self.a(x)))))


class Recurrent(nn.Module):
    """A convolution over time, a recurrent layer, and a linear layer."""

    def __init__(self, kind, **options):
        super().__init__()
        self.a, self.body = nn.Conv1d(3, 16, 3, padding=1), kind(16, 8, batch_first=True, **options)
        self.b = nn.Linear(16 if self.body.bidirectional else 8, 3)

    def forward(self, x):
        return self.b(self.body(torch.relu(self.a(x)).transpose(1, 2))[0])
