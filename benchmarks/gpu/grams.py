"""Grams of compensation on the device: their time and error, beside one product in float32, TF32 and float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import parity
from benchmarks.gpu.rows import Row
from benchmarks.gpu.timing import graph_milliseconds, milliseconds
from fec_fast.recovery.least_squares import product_of_rows
from fec_fast.utils.precision import full_float32

# Rows and unknowns of layers of ResNet-50 with taps of 1x1 and 3x3.
SIZES = ((16384, 512), (16384, 2048), (16384, 4608))


def gram_rows(runs: int) -> Iterator[Row]:
    """Milliseconds, TFLOP/s and the largest error of each way to make a Gram.

    Args:
        runs: How often each is timed.
    """
    ways: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "compensation: float32 in blocks, summed in float64": (lambda x: product_of_rows(x, x), "highest"),
        "one product, float32": (lambda x: x.mT @ x, "highest"),
        "one product, TF32": (lambda x: x.mT @ x, "high"),
        "one product, float64": (lambda x: x.double().mT @ x.double(), "highest"),
    }
    for size in SIZES:
        for name, (way, precision) in ways.items():
            yield Row(
                "{} x {}".format(*size),
                name,
                lambda size=size, way=way, precision=precision: measured(size, way, precision, runs),
            )


def measured(size: tuple[int, int], way: Callable[[Tensor], Tensor], precision: str, runs: int) -> dict[str, Any]:
    """Measures one way.

    Args:
        size: The rows and unknowns.
        way: Makes the Gram of ``[1, rows, unknowns]``.
        precision: torch's setting of float32 products: ``"highest"``, or ``"high"`` for TF32.
        runs: How often it is timed.

    Returns:
        ``ms``, ``ms, as a CUDA graph``, ``TFLOP/s``, and ``error``: the largest difference to the Gram in float64, as a
        share of the largest number in it.
    """
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(parity.DEVICE)
    with full_float32():
        torch.set_float32_matmul_precision(precision)
        exact = x.double().mT @ x.double()
        error = float((way(x) - exact).abs().max() / exact.abs().max())
        eager, graph = milliseconds(lambda: way(x), runs), graph_milliseconds(lambda: way(x), runs)
    operations = 2 * size[0] * size[1] ** 2
    return {
        "ms": eager,
        "ms, as a CUDA graph": graph,
        "TFLOP/s": round(operations / eager / 1e9, 2),
        "error": float(f"{error:.2g}"),
    }
