"""Triton kernels of the backend ``triton``. To import this module imports Triton, so it is imported when it is used.

Sorted kernels (``sort_rows``, ``scan_rows``): one number per channel, as in csrc/cuda/sorted/scan.cuh. A scan carries a
position and the sum gathered there, so that a term is one exponential of a distance and not a product of many rounded
factors. Everything else (``pairs``) compares all pairs, a block of rows per program, and stores one number per row.
Offsets are int64 where they are products of a size and a stride: a weight may have more than 2^31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(4096.0)  # a distance whose term 2^-FAR is 0 in float32 and float64


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
    # One program: BLOCK channels of one filter. points[f, c] = rms, mean absolute value or mean of the taps.
    f = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = c < channels
    factor = tl.load(scale)
    base = data + f // inner * stride_outer + f % inner * stride_inner
    total = tl.zeros((BLOCK,), factor.dtype)
    for t in range(taps):
        w = tl.load(base + c.to(tl.int64) * stride_channel + t * stride_tap, mask=valid, other=0.0)
        w = w.to(factor.dtype) * factor
        if KIND == "rms":
            w = w * w
        if KIND == "absmean":
            w = tl.abs(w)
        total += w
    total = total / tl.full((), taps, factor.dtype)
    if KIND == "rms":
        total = tl.sqrt(total)
    tl.store(points + f * channels + c, total, mask=valid)


@triton.jit
def sort_rows(points, means, channels, BLOCK: tl.constexpr):  # noqa: D103
    # One program: all numbers of one filter, sorted in place, and the mean of their distances. The padding is infinite,
    # so that it is sorted behind them.
    f = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    valid = k < channels
    x = tl.sort(tl.load(points + f * channels + k, mask=valid, other=float("inf")))
    tl.store(points + f * channels + k, x, mask=valid)
    # The sum over all pairs of |x_a - x_b| is 2 sum of (2k + 1 - C) x_k over the sorted numbers.
    signed = tl.where(valid, x.to(tl.float64), 0.0) * (2 * k + 1 - channels).to(tl.float64)
    size = tl.full((), channels, tl.float64)
    tl.store(means + f, 2.0 * tl.sum(signed, 0) / (size * size))


@triton.jit
def _joined(position1, sum1, moment1, position2, sum2, moment2):
    # The operator of the scan, associative. A carry is a position with two sums over the numbers on one side of it, y
    # being their distance from it: the sum of 2^-y and, for softmax, of y 2^-y. To move a carry over a gap multiplies
    # the sum by 2^-gap, and the moment becomes the sum of (y + gap) 2^-(y + gap).
    gap = tl.abs(position2 - position1)
    decay = tl.exp2(-gap)
    return position2, sum2 + sum1 * decay, moment2 + decay * (moment1 + gap * sum1)


@triton.jit
def scan_rows(points, entropies, factor, channels, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):  # noqa: D103
    # One program: the entropy of one filter, from its sorted numbers. The row of number k sums 2^-distance over all
    # numbers: one scan gives the sum over those to its left, one over those to its right, each with itself.
    f = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    valid = k < channels
    x = tl.load(points + f * channels + k, mask=valid, other=0.0)
    first = tl.load(points + f * channels)
    last = tl.load(points + f * channels + channels - 1)
    unit = tl.load(factor).to(x.dtype)
    # From the first number, because small differences of large numbers would be lost in the product. The padding is put
    # FAR beyond the last number, so that it adds nothing to any sum.
    position = tl.where(valid, x - first, last - first) * unit
    position = tl.where(valid, position, position + FAR)
    ones = tl.full((BLOCK,), 1.0, x.dtype)
    zeros = tl.zeros((BLOCK,), x.dtype)
    _, left, left_moment = tl.associative_scan((position, ones, zeros), 0, _joined)
    _, right, right_moment = tl.associative_scan((position, ones, zeros), 0, _joined, reverse=True)
    total = left + right - 1.0  # the number itself is in both sums
    if SOFTMAX:
        row = tl.log(total) + (left_moment + right_moment) / total * LN2
    else:
        row = tl.log(tl.full((BLOCK,), channels, x.dtype)) - tl.log(total)
    mean = tl.sum(tl.where(valid, row, 0.0).to(tl.float64), 0) / tl.full((), channels, tl.float64)
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
    ONE_COORDINATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # One program: ROWS rows of one matrix of distances, column block by column block. TERMS says what a row is reduced
    # to: "distances" the sum of its distances; otherwise the entropy of its terms. Sums are float64 between the blocks.
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
                square = tl.abs(gap) if ONE_COORDINATE else square + gap * gap
        d = square if ONE_COORDINATE else tl.sqrt(square)
        valid = (column < count)[None, :]
        if TERMS == "distances":
            first += tl.sum(tl.where(valid, d, 0.0), 1).to(tl.float64)
        else:
            y = d * unit
            if TERMS == "distance":
                logarithm = tl.log2(tl.where(y > 0, y, 1.0))
                first += tl.sum(tl.where(valid, y, 0.0), 1).to(tl.float64)
                second += tl.sum(tl.where(valid, y * logarithm, 0.0), 1).to(tl.float64)
            else:
                z = tl.where(valid, tl.exp2(-y), 0.0)
                first += tl.sum(z, 1).to(tl.float64)
                if TERMS == "softmax":
                    second += tl.sum(z * tl.minimum(y, FAR), 1).to(tl.float64)
    # With z = 2^-y, S = sum z, T = sum y z (in powers of 2): similarity -ln(S / n); softmax ln S + T / S ln 2. For the
    # distance entropy, p = y / S with S = sum y, T = sum y log2 y: -sum p ln p = ln S - T / S ln 2.
    if TERMS == "similarity":
        first = tl.log(tl.full((ROWS,), count, tl.float64)) - tl.log(first)
    if TERMS == "softmax":
        first = tl.log(first) + second / first * LN2
    if TERMS == "distance":
        safe = tl.where(first > 0, first, 1.0)
        first = tl.where(first > 0, tl.log(safe) - second / safe * LN2, 0.0)
    tl.store(rows + g * count + row, first, mask=row < count)
