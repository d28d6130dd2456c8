"""Tries an installed wheel: the compiled kernels are there, and agree with the reference."""

import torch
from torch import nn

import fec_fast
from fec_fast.scoring import reference

model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 24, 3)).eval()
for axis in ("channels", "filters"):
    formula = fec_fast.Formula("rms", axis=axis)
    scores = fec_fast.score_model(model, formula=formula, backend="cpu")
    for name in scores:
        want = reference.entropy(model.get_submodule(name).weight, formula)
        assert torch.allclose(scores[name], want, rtol=0, atol=2e-5), name
assert fec_fast.prune(model, torch.randn(1, 3, 12, 12), ratio=0.5).model[0].out_channels == 16
print(fec_fast.__version__, {name: backend.reason for name, backend in fec_fast.backends().items()})
