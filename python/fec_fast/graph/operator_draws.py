"""Draws for trials of operators: what the channels hold, and whether two results are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What the channels hold that stay, and those that go. The first decides in most cases.
DRAWS = (
    ("normal", "normal"),
    ("positive", "positive"),
    ("equal", "large"),
    ("normal", "zero"),
    ("zero", "normal"),
    ("large", "small"),
    ("zero", "zero"),
    ("positive", "zero"),
)
_TOLERANCES = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-4, torch.complex64: 1e-4}
_COARSE_TOLERANCE = 1e-2  # of half precision
_HALF = 0.5


@dataclass(frozen=True)
class Kinds:
    """What a draw consists of: its number, and the numbers of the channels that stay and of those that go."""

    draw: int
    kept: str
    removed: str

    @property
    def is_masked(self) -> bool:
        """Whether the draw shows if a result is zero when masked."""
        return self.removed == "zero" and self.kept != "zero"


def drawn(kind: str, shape: Sequence[int], dtype: torch.dtype, smallest: int, generator: torch.Generator) -> Tensor:
    """Draws numbers of one kind.

    Args:
        kind: One of :data:`DRAWS`.
        shape: Of the result.
        dtype: Of the result.
        smallest: Whole numbers are smaller: what they may be if they are an index into any dimension of the operands.
        generator: Of the draw.

    Returns:
        The numbers.
    """
    if dtype.is_complex:
        parts = [drawn(kind, shape, torch.float64, smallest, generator) for _ in range(2)]
        return torch.complex(parts[0], parts[1]).to(dtype)
    if kind == "zero":
        return torch.zeros(shape, dtype=dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype) if kind == "positive" else torch.rand(shape, generator=generator) < _HALF
    if not dtype.is_floating_point:
        return torch.randint(smallest, shape, generator=generator).to(dtype)
    if kind == "positive":
        return torch.rand(shape, generator=generator).mul_(0.9).add_(0.05).to(dtype)
    if kind == "equal":
        return torch.randint(-1, 2, shape, generator=generator).to(dtype)
    factor = {"normal": 1.0, "large": 1e4, "small": 1e-4}[kind]
    return torch.randn(shape, generator=generator).mul_(factor).to(dtype)


def is_mostly_finite(tensor: Tensor) -> bool:
    """Whether a result says something: more than half of it is neither infinite nor NaN."""
    return not tensor.numel() or float(tensor.isfinite().double().mean()) > _HALF


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two results are equal but for rounding; NaN equals NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    left, right = left.cpu(), right.cpu()
    if torch.equal(left, right):
        return True
    if not (left.is_floating_point() or left.is_complex()):
        return False
    finite = left.abs().masked_fill(~left.isfinite(), 0.0)
    scale = float(finite.max()) if left.numel() else 0.0
    tolerance = _TOLERANCES.get(left.dtype, _COARSE_TOLERANCE) * (scale or 1.0)
    return torch.allclose(left, right, rtol=0.0, atol=tolerance, equal_nan=True)
