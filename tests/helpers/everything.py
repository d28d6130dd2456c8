"""All that a call could leave changed: a model with everything on it, and the switches of the process."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fec_fast.utils.modules import named_tensors


class Restless(nn.Module):
    """A network that counts its calls, draws random numbers, writes to its input, and keeps what it computed.

    It has attention, batch norm and dropout, whose runs depend on torch's switches, modes and random state.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.drop = nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.3)
        self.attention, self.head = nn.MultiheadAttention(width, 4, batch_first=True), nn.Linear(width, 5)
        self.calls, self.seen = 0, []
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        image.mul_(2)
        x = self.drop(self.second(self.norm(self.first(image)).relu()).relu())
        x = x.flatten(2).transpose(1, 2) + torch.rand(1, generator=self.generator)
        return self.head(self.attention(x, x, x)[0].mean(1))


def of_model(model: nn.Module) -> list[Any]:
    """All of a model: its tensors as objects with their values and gradients, attributes, modes, hooks, generators."""
    tensors = [
        (name, id(tensor), tensor.data_ptr(), tensor.requires_grad, as_bytes(tensor), as_bytes(tensor.grad))
        for name, tensor in named_tensors(model).items()
    ]
    return [*tensors, *[(name, attributes(module)) for name, module in model.named_modules()]]


def attributes(module: nn.Module) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers"):
            held[name] = [*value]
        elif isinstance(value, torch.Generator):
            held[name] = as_bytes(value.get_state())
        elif isinstance(value, Tensor):
            held[name] = (id(value), as_bytes(value))
        else:
            held[name] = type(value)(value) if isinstance(value, dict | list | set) else value
    return held


def as_bytes(tensor: Tensor | None) -> bytes | None:
    if tensor is None:
        return None
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def of_process() -> dict[str, Any]:
    """The random states, torch's switches, and what else of the process a call could leave changed."""
    backends: Any = torch.backends
    return {
        "random": random.getstate(),
        "numpy": tuple(map(str, np.random.get_state())),
        "torch": as_bytes(torch.get_rng_state()),
        "attention fast path": backends.mha.get_fastpath_enabled(),
        "fused attention": [
            getattr(backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "math", "mem_efficient", "cudnn")
        ],
        "flush to zero": (torch.tensor([1e-40]) * 1.0).item() == 0.0,
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "numbers": (torch.get_default_dtype(), torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark, backends.mkldnn.enabled),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dispatch modes": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        "warnings": list(warnings.filters),
        "collector": gc.isenabled(),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "tracing": (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
