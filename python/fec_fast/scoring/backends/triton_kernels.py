"""The Triton kernels. Importing this imports Triton; ``backends.triton`` does it when it is used.

One number a channel is sorted and scanned as in csrc/cuda/sorted/scan.cuh: what a scan carries is a place on the line
and the sum gathered there, so that a term is one exponential of a distance and not a product of many. Everything else
compares all pairs, a block of rows a program, nothing stored but a number a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(4096.0)  # 2^-FAR is 0


@triton.jit
def compress(  # noqa: D103
    data,
    points,
    scale,
    inner,
    channels,
    taps,
    stride_outer,
    stride_inner,
    stride_channel,
    stride_tap,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    f = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = c < channels
    factor = tl.load(scale)
    base = data + f // inner * stride_outer + f % inner * stride_inner
    total = tl.zeros((BLOCK,), factor.dtype)
    for t in range(taps):
        w = tl.load(base + c.to(tl.int64) * stride_channel + t * stride_tap, mask=there, other=0.0)
        w = w.to(factor.dtype) * factor
        if KIND == "rms":
            w = w * w
        if KIND == "absmean":
            w = tl.abs(w)
        total += w
    total = total / tl.full((), taps, factor.dtype)
    if KIND == "rms":
        total = tl.sqrt(total)
    tl.store(points + f * channels + c, total, mask=there)


@triton.jit
def sort_rows(points, means, channels, BLOCK: tl.constexpr):  # noqa: D103
    f = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    there = k < channels
    x = tl.sort(tl.load(points + f * channels + k, mask=there, other=float("inf")))
    tl.store(points + f * channels + k, x, mask=there)
    # The sum over all pairs of |x_a - x_b| is 2 sum of (2k + 1 - C) x_k over the sorted numbers.
    signed = tl.where(there, x.to(tl.float64), 0.0) * (2 * k + 1 - channels).to(tl.float64)
    size = tl.full((), channels, tl.float64)
    tl.store(means + f, 2.0 * tl.sum(signed, 0) / (size * size))


@triton.jit
def _joined(place1, sum1, moment1, place2, sum2, moment2):
    gap = tl.abs(place2 - place1)
    decay = tl.exp2(-gap)
    return place2, sum2 + sum1 * decay, moment2 + decay * (moment1 + gap * sum1)


@triton.jit
def scan_rows(points, entropies, factor, channels, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):  # noqa: D103
    f = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    there = k < channels
    x = tl.load(points + f * channels + k, mask=there, other=0.0)
    first = tl.load(points + f * channels)
    last = tl.load(points + f * channels + channels - 1)
    unit = tl.load(factor).to(x.dtype)
    place = tl.where(there, x - first, last - first) * unit
    place = tl.where(there, place, place + FAR)  # nothing reaches what is past the last number
    one = tl.full((BLOCK,), 1.0, x.dtype)
    none = tl.zeros((BLOCK,), x.dtype)
    _, left, left_moment = tl.associative_scan((place, one, none), 0, _joined)
    _, right, right_moment = tl.associative_scan((place, one, none), 0, _joined, reverse=True)
    total = left + right - 1.0
    if SOFTMAX:
        row = tl.log(total) + (left_moment + right_moment) / total * LN2
    else:
        row = tl.log(tl.full((BLOCK,), channels, x.dtype)) - tl.log(total)
    mean = tl.sum(tl.where(there, row, 0.0).to(tl.float64), 0) / tl.full((), channels, tl.float64)
    tl.store(entropies + f, mean)


@triton.jit
def pairs(  # noqa: D103
    data,
    rows,
    scale,
    factor,
    count,
    matrix_inner,
    matrix_stride_outer,
    matrix_stride_inner,
    inner,
    stride_outer,
    stride_inner,
    runs,
    stride_run,
    steps,
    stride_step,
    TERMS: tl.constexpr,
    LINE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    g = tl.program_id(1).to(tl.int64)
    base = data + g // matrix_inner * matrix_stride_outer + g % matrix_inner * matrix_stride_inner
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    power = tl.load(scale)
    unit = tl.load(factor).to(power.dtype)
    row_offset = (row // inner).to(tl.int64) * stride_outer + (row % inner).to(tl.int64) * stride_inner
    first = tl.zeros((ROWS,), tl.float64)
    second = tl.zeros((ROWS,), tl.float64)
    for start in range(0, count, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        column_offset = (column // inner).to(tl.int64) * stride_outer + (column % inner).to(tl.int64) * stride_inner
        square = tl.zeros((ROWS, COLUMNS), power.dtype)
        for r in range(runs):
            for s in range(steps):
                at = base + tl.full((), r, tl.int64) * stride_run + tl.full((), s, tl.int64) * stride_step
                a = tl.load(at + row_offset, mask=row < count, other=0.0).to(power.dtype) * power
                b = tl.load(at + column_offset, mask=column < count, other=0.0).to(power.dtype) * power
                gap = a[:, None] - b[None, :]
                square = tl.abs(gap) if LINE else square + gap * gap
        d = square if LINE else tl.sqrt(square)
        there = (column < count)[None, :]
        if TERMS == "distances":
            first += tl.sum(tl.where(there, d, 0.0), 1).to(tl.float64)
        else:
            y = d * unit
            if TERMS == "distance":
                logarithm = tl.log2(tl.where(y > 0, y, 1.0))
                first += tl.sum(tl.where(there, y, 0.0), 1).to(tl.float64)
                second += tl.sum(tl.where(there, y * logarithm, 0.0), 1).to(tl.float64)
            else:
                z = tl.where(there, tl.exp2(-y), 0.0)
                first += tl.sum(z, 1).to(tl.float64)
                if TERMS == "softmax":
                    second += tl.sum(z * tl.minimum(y, FAR), 1).to(tl.float64)
    if TERMS == "similarity":
        first = tl.log(tl.full((ROWS,), count, tl.float64)) - tl.log(first)
    if TERMS == "softmax":
        first = tl.log(first) + second / first * LN2
    if TERMS == "distance":
        safe = tl.where(first > 0, first, 1.0)
        first = tl.where(first > 0, tl.log(safe) - second / safe * LN2, 0.0)
    tl.store(rows + g * count + row, first, mask=row < count)
