"""Triton kernels for one number per channel: each filter's numbers are sorted, and scanned for the sums of their terms.

One warp has ROWS filters of up to BLOCK channels, BLOCK / 32 numbers per lane: channel ``32 e + l`` is number ``e`` of
lane ``l``. In the sorted order the numbers of a lane are neighbours, so most steps of the sorting network compare
numbers of one lane, by a minimum and a maximum. The order is that of the pair (l, e); kept numbers lie in memory at
``32 e + l``.

The compiler divides tensors among lanes by what it knows of the addresses. Here it knows that those of 32 lanes are
consecutive, and no alignment: else it would give neighbours in memory to one lane, for wider loads, and then move them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_parts import (
    bounded,
    channel_stride_of,
    channels_of,
    compressed,
    compressed_sum,
    data_of,
    entry_of,
    exponent_of,
    exponents_of,
    filter_places,
    filters_of,
    first_filter_of,
    first_sorted_of,
    largest_weights,
    magnitude,
    power,
    tap_stride_of,
    taps_of,
    width_of,
)


@triton.jit
def _bit(RANK: tl.constexpr, AXIS: tl.constexpr):
    # Index along one axis of a hypercube, as a tensor of its rank.
    SHAPE: tl.constexpr = [1] * AXIS + [2] + [1] * (RANK - 1 - AXIS)
    return tl.reshape(tl.arange(0, 2), SHAPE)


@triton.jit
def _bits(x):
    # The bits of floating-point numbers. Exclusive or moves numbers between lanes and drops out of the machine code.
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
    return bits


@triton.jit
def _partner(x, AXIS: tl.constexpr):
    # The numbers at the other index of an axis of size 2.
    bits = _bits(x)
    return (bits ^ tl.xor_sum(bits, AXIS, True)).to(x.dtype, bitcast=True)


@triton.jit
def _ordered(x, RANK: tl.constexpr, AXIS: tl.constexpr):
    # Compares every number with its partner along an axis; the smaller one moves to index 0.
    partner = _partner(x, AXIS)
    return tl.where(_bit(RANK, AXIS) == 1, tl.maximum(x, partner), tl.minimum(x, partner))


@triton.jit
def sorted_numbers(x, ROWS: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr):
    # Sorts along the last axis of [ROWS, BLOCK], by Batcher's bitonic network. Blocks that are to be sorted downwards
    # are negated for the time of a merge, so that all comparisons have one direction.
    x = tl.reshape(x, [ROWS] + [2] * BITS)
    RANK: tl.constexpr = BITS + 1
    for merge in tl.static_range(1, BITS + 1):
        if merge < BITS:
            x = tl.where(_bit(RANK, RANK - 1 - merge) == 1, -x, x)
        for step in tl.static_range(merge):
            x = _ordered(x, RANK, RANK - merge + step)
        if merge < BITS:
            x = tl.where(_bit(RANK, RANK - 1 - merge) == 1, -x, x)
    return tl.reshape(x, [ROWS, BLOCK])


@triton.jit
def sort_rows(
    table,
    blocks,
    kept,
    exponents,
    sums,
    DTYPE: tl.constexpr,
    REAL: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
):
    # One program: compresses and sorts the channels of ROWS filters, and adds up their distances.
    b = tl.program_id(0)
    entry = entry_of(table, tl.load(blocks + 3 * b))
    f = tl.load(blocks + 3 * b + 1) + tl.arange(0, ROWS)
    mask = f < filters_of(entry)
    data = data_of(entry, DTYPE)
    channels = channels_of(entry)
    taps = taps_of(entry)
    tap_stride = tap_stride_of(entry)
    rows = filter_places(entry, f)
    EACH: tl.constexpr = BLOCK // 32
    number = tl.arange(0, EACH)[None, :, None]
    lane = tl.arange(0, 32)[None, None, :]
    c = number * 32 + lane
    there = mask[:, None, None] & (c < channels)
    # The hint puts consecutive channels into consecutive lanes, whatever their stride is.
    places = tl.max_contiguous(c.to(tl.int64) * channel_stride_of(entry), [1, 1, 32])
    at = data + rows[:, None, None] + places
    one = tl.full((ROWS, 1, 1), 1.0, REAL)
    total = compressed_sum(at, there, one, taps, tap_stride, KIND, REAL)
    BIAS: tl.constexpr = 1023 if REAL == tl.float64 else 127
    exponent = tl.full((ROWS,), BIAS, tl.int32)
    # Squares of ordinary weights need no scale. Where a sum is not finite or all are tiny, the filters are read again.
    largest = exponent_of(tl.max(tl.reshape(magnitude(total), (ROWS * BLOCK,)), 0))
    if (largest > 2 * BIAS - 8) | (largest < 40):
        exponent = exponents_of(largest_weights(data, rows, entry, mask, KIND, REAL, 32), 1)
        total = compressed_sum(at, there, power(BIAS - exponent, REAL)[:, None, None], taps, tap_stride, KIND, REAL)
    x = tl.where(there, compressed(total, taps, KIND), float("inf"))
    x = tl.reshape(tl.permute(x, (0, 2, 1)), (ROWS, BLOCK))
    x = sorted_numbers(x, ROWS, BLOCK, BITS)
    # The sum over all pairs of |x_a - x_b| is 2 sum of (2k + 1 - C) x_k over the sorted numbers. It does not change if
    # all are shifted: digits are gained where the numbers are near one another.
    k = tl.arange(0, BLOCK)
    valid = mask[:, None] & (k < channels)[None, :]
    lowest = tl.min(x, 1)
    signed = tl.where(valid, x - lowest[:, None], 0.0) * (2 * k + 1 - channels).to(REAL)[None, :]
    mean = tl.sum(signed, 1).to(tl.float64) * power(exponent - BIAS, tl.float64)
    tl.store(sums + tl.load(blocks + 3 * b + 2), tl.sum(tl.where(mask, mean, 0.0), 0))
    tl.store(exponents + first_filter_of(entry) + f, exponent, mask=mask)
    x = tl.permute(tl.reshape(x, (ROWS, 32, EACH)), (0, 2, 1))
    to = kept + first_sorted_of(entry) + f.to(tl.int64)[:, None, None] * width_of(entry) + c
    tl.store(to, x, mask=mask[:, None, None])


@triton.jit
def _joined(position1, sum1, moment1, position2, sum2, moment2):
    # The operator of the scan, associative. A carry is a position with two sums over the numbers on one side of it, y
    # being their distance from it: the sum of 2^-y and, for softmax, of y 2^-y. To move a carry over a gap multiplies
    # the sum by 2^-gap, and the moment becomes the sum of (y + gap) 2^-(y + gap).
    gap = tl.abs(position2 - position1)
    decay = tl.exp2(-gap)
    return position2, sum2 + sum1 * decay, moment2 + decay * (moment1 + gap * sum1)


@triton.jit
def _joined_sums(position1, sum1, position2, sum2):
    return position2, sum2 + sum1 * tl.exp2(-tl.abs(position2 - position1))


@triton.jit
def _moved(total, moment, gap):
    # A carry moved over a gap.
    decay = tl.exp2(-gap)
    return total * decay, decay * (moment + gap * total)


@triton.jit
def _at(x, k, NUMBER: tl.constexpr):
    # The number of each lane at one place.
    return tl.xor_sum(tl.where(k == NUMBER, _bits(x), 0), 2).to(x.dtype, bitcast=True)


@triton.jit
def _carries(first, last, at_last, last_moment, at_first, first_moment):
    # For every lane the sums over the numbers of all lanes below it, carried to its first number, and of all above it,
    # carried to its last. Blocks of lanes double in size; each has its ends, and its sum carried to either end.
    ROWS: tl.constexpr = first.shape[0]
    CUBE: tl.constexpr = [ROWS, 2, 2, 2, 2, 2]
    first = tl.reshape(first, CUBE)
    last = tl.reshape(last, CUBE)
    at_last = tl.reshape(at_last, CUBE)
    last_moment = tl.reshape(last_moment, CUBE)
    at_first = tl.reshape(at_first, CUBE)
    first_moment = tl.reshape(first_moment, CUBE)
    own_first = first
    own_last = last
    below = tl.zeros(CUBE, first.dtype)
    below_moment = below
    above = below
    above_moment = below
    for level in tl.static_range(5):
        upper = _bit(6, 5 - level) == 1
        other_first = _partner(first, 5 - level)
        other_last = _partner(last, 5 - level)
        other_at_last = _partner(at_last, 5 - level)
        other_last_moment = _partner(last_moment, 5 - level)
        other_at_first = _partner(at_first, 5 - level)
        other_first_moment = _partner(first_moment, 5 - level)
        # The other block's sum, carried to the number of this lane that is nearest to it.
        gap = tl.where(upper, own_first - other_last, other_first - own_last)
        total, moment = _moved(
            tl.where(upper, other_at_last, other_at_first), tl.where(upper, other_last_moment, other_first_moment), gap
        )
        below += tl.where(upper, total, 0.0)
        below_moment += tl.where(upper, moment, 0.0)
        above += tl.where(upper, 0.0, total)
        above_moment += tl.where(upper, 0.0, moment)
        # The two blocks become one.
        total, moment = _moved(
            tl.where(upper, other_at_last, at_last),
            tl.where(upper, other_last_moment, last_moment),
            tl.abs(last - other_last),
        )
        at_last = tl.where(upper, at_last, other_at_last) + total
        last_moment = tl.where(upper, last_moment, other_last_moment) + moment
        total, moment = _moved(
            tl.where(upper, at_first, other_at_first),
            tl.where(upper, first_moment, other_first_moment),
            tl.abs(first - other_first),
        )
        at_first = tl.where(upper, other_at_first, at_first) + total
        first_moment = tl.where(upper, other_first_moment, first_moment) + moment
        last = tl.maximum(last, other_last)
        first = tl.minimum(first, other_first)
    SHAPE: tl.constexpr = [ROWS, 32]
    return (
        tl.reshape(below, SHAPE),
        tl.reshape(below_moment, SHAPE),
        tl.reshape(above, SHAPE),
        tl.reshape(above_moment, SHAPE),
    )


@triton.jit
def scan_rows(
    table,
    blocks,
    kept,
    exponents,
    units,
    results,
    REAL: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: the entropies of ROWS filters, from their sorted numbers. The row of a number sums 2^-distance over
    # all numbers: those of its own lane by a scan in either direction, those of other lanes by a carry from each side.
    b = tl.program_id(0)
    layer = tl.load(blocks + 3 * b)
    entry = entry_of(table, layer)
    f = tl.load(blocks + 3 * b + 1) + tl.arange(0, ROWS)
    mask = f < filters_of(entry)
    channels = channels_of(entry)
    EACH: tl.constexpr = BLOCK // 32
    c = tl.arange(0, EACH)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    row = kept + first_sorted_of(entry) + f.to(tl.int64) * width_of(entry)
    x = tl.load(row[:, None, None] + c, mask=mask[:, None, None], other=0.0)
    x = tl.permute(x, (0, 2, 1))
    last_at = (channels - 1) % EACH * 32 + (channels - 1) // EACH
    lowest = tl.load(row, mask=mask, other=0.0)[:, None, None]
    highest = tl.load(row + last_at, mask=mask, other=0.0)[:, None, None]
    exponent = tl.load(exponents + first_filter_of(entry) + f, mask=mask, other=0)
    BIAS: tl.constexpr = 1023 if REAL == tl.float64 else 127
    shared = tl.load(units + layer)
    # Finite, also where all numbers are tiny: infinity times a distance of 0 would be NaN.
    MOST: tl.constexpr = 1e300 if REAL == tl.float64 else 1e37
    unit = tl.minimum(shared * power(exponent - BIAS, tl.float64), MOST).to(REAL)[:, None, None]
    k = tl.arange(0, EACH)[None, None, :]
    valid = mask[:, None, None] & (tl.arange(0, 32)[None, :, None] * EACH + k < channels)
    # From the first number, because small differences of large numbers would be lost in the product. The padding is
    # put far beyond the last number, where a term is 0, so that it adds nothing to any sum.
    position = tl.minimum((tl.where(valid, x, highest) - lowest) * unit, 1e30)  # infinity minus itself would be NaN
    position = tl.where(valid, position, 2.0 * position + 4096.0)
    ones = tl.full((ROWS, 32, EACH), 1.0, REAL)
    first = _at(position, k, 0)
    last = _at(position, k, EACH - 1)
    if TERMS == "softmax":
        zeros = tl.zeros((ROWS, 32, EACH), REAL)
        _, left, left_moment = tl.associative_scan((position, ones, zeros), 2, _joined)
        _, right, right_moment = tl.associative_scan((position, ones, zeros), 2, _joined, reverse=True)
        at_last = _at(left_moment, k, EACH - 1)
        at_first = _at(right_moment, k, 0)
    else:
        _, left = tl.associative_scan((position, ones), 2, _joined_sums)
        _, right = tl.associative_scan((position, ones), 2, _joined_sums, reverse=True)
        left_moment = tl.zeros((1, 1, 1), REAL)
        right_moment = left_moment
        at_last = tl.zeros((ROWS, 32), REAL)
        at_first = at_last
    below, below_moment, above, above_moment = _carries(
        first, last, _at(left, k, EACH - 1), at_last, _at(right, k, 0), at_first
    )
    below, below_moment = _moved(below[:, :, None], below_moment[:, :, None], position - first[:, :, None])
    above, above_moment = _moved(above[:, :, None], above_moment[:, :, None], last[:, :, None] - position)
    total = left + right - 1.0 + (below + above)  # the number itself is in both scans
    if TERMS == "softmax":
        moment = left_moment + right_moment + (below_moment + above_moment)
        values = tl.log(total) + moment / total * 0.6931471805599453
    else:
        values = -tl.log(total / channels.to(REAL))
    values = tl.sum(tl.sum(tl.where(valid, values, 0.0), 2), 1)
    mean = values.to(tl.float64) / channels.to(tl.float64)
    tl.store(results + first_filter_of(entry) + f, bounded(mean, shared, channels), mask=mask)
