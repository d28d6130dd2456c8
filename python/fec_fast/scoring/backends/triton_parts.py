"""What the Triton kernels share: fields of the table of layers, places of weights, powers of two, units of distances.

To import this module imports Triton, so it is imported when a kernel is launched. The table is int64
``[layers, len(triton_table.FIELDS)]``; its functions here stand in the order of ``FIELDS``, and a test compares them.
They are functions and not constants, because Triton compares every global value of a kernel before each launch.

Numbers of a filter are scaled by a power of two of its own, so that no square overflows or vanishes. ``exponents`` has
the power as the biased exponent of float32 or float64. What several filters share (sums of distances, the unit) is
float64 in the units of the weights, whose range holds every float32; float64 weights need no scale for it either.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entry_of(table, layer):
    return table + layer * 24


@triton.jit
def data_of(entry, DTYPE: tl.constexpr):
    return tl.load(entry).to(tl.pointer_type(DTYPE))


@triton.jit
def filters_of(entry):
    return tl.load(entry + 1).to(tl.int32)


@triton.jit
def channels_of(entry):
    return tl.load(entry + 2).to(tl.int32)


@triton.jit
def taps_of(entry):
    return tl.load(entry + 3).to(tl.int32)


@triton.jit
def filter_places(entry, f):
    # Where filters start. They lie on two nested axes, see layout.filter_layout.
    inner = tl.load(entry + 4).to(tl.int32)
    return (f // inner).to(tl.int64) * tl.load(entry + 5) + (f % inner).to(tl.int64) * tl.load(entry + 6)


@triton.jit
def flat_places(entry, f, DTYPE: tl.constexpr):
    # The same for a flat layer, as pointers, with the hint that each is at a multiple of 16 bytes; first_number_of says
    # why the places are computed again.
    inner = tl.load(entry + 4).to(tl.int32)
    places = (f // inner).to(tl.int64) * tl.load(entry + 5) + (f % inner).to(tl.int64) * tl.load(entry + 6)
    data = tl.multiple_of(tl.load(entry).to(tl.pointer_type(DTYPE)), 16)
    return data + tl.multiple_of(places, 128 // DTYPE.primitive_bitwidth)


@triton.jit
def channel_stride_of(entry):
    return tl.load(entry + 7)


@triton.jit
def tap_stride_of(entry):
    return tl.load(entry + 8)


@triton.jit
def coordinates_of(entry):
    # The coordinates of a point between filters: channels, times taps if they are not compressed.
    return tl.load(entry + 9).to(tl.int32)


@triton.jit
def flat_coordinates_of(entry, DTYPE: tl.constexpr):
    # The coordinates of a flat layer fill whole units of 16 bytes.
    return tl.multiple_of(tl.load(entry + 9).to(tl.int32), 128 // DTYPE.primitive_bitwidth)


@triton.jit
def coordinate_places(entry, k):
    # Coordinates lie in runs, in the order of memory: any order will do that is the same for all filters.
    run = tl.load(entry + 10).to(tl.int32)
    return (k // run).to(tl.int64) * tl.load(entry + 11) + (k % run).to(tl.int64) * tl.load(entry + 12)


@triton.jit
def is_flat(entry):
    # All coordinates of a filter are consecutive, and every filter starts at a multiple of 16 bytes.
    return tl.load(entry + 13) != 0


@triton.jit
def first_filter_of(entry):
    # The position of a layer's first filter among those of all layers of the launch.
    return tl.load(entry + 14)


@triton.jit
def first_number_of(entry):
    # The position of a layer's first number in the buffer of halves, sorted numbers or points. A hint counts only if it
    # is given to an operation, not to the result of a function: so it stands here.
    return tl.multiple_of(tl.load(entry + 15), 64)


@triton.jit
def first_sorted_of(entry):
    # The same without the hint, for sorted numbers: see triton_sorted.
    return tl.load(entry + 15)


@triton.jit
def width_of(entry):
    # The numbers of one filter in that buffer, padding included.
    return tl.multiple_of(tl.load(entry + 16).to(tl.int32), 64)


@triton.jit
def first_tile_of(entry):
    return tl.load(entry + 17).to(tl.int32)


@triton.jit
def tile_of(entry, i, j):
    # The number of tile (i, j), i <= j, of the upper triangle of a layer, row by row.
    strips = tl.load(entry + 18).to(tl.int32)
    return first_tile_of(entry) + i * strips - i * (i - 1) // 2 + j - i


@triton.jit
def first_sum_of(entry):
    return tl.load(entry + 19)


@triton.jit
def sums_of(entry):
    return tl.load(entry + 20).to(tl.int32)


@triton.jit
def unit_of(entry, total):
    # From the sum of all distances to what distances are multiplied by, in float64. 0: all points are equal.
    mean = total / tl.load(entry + 21).to(tl.float64, bitcast=True)
    given = tl.load(entry + 22).to(tl.float64, bitcast=True)
    scale = tl.load(entry + 23).to(tl.float64, bitcast=True)
    measured = tl.where(mean > 0, scale / tl.where(mean > 0, mean, 1.0), 0.0)
    return tl.where(given > 0, given, measured)


@triton.jit
def magnitude(x):
    # The bits of |x|: integers in the order of magnitudes, in which NaN is the largest.
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def exponent_of(bits):
    # The biased exponent of a magnitude, as int32.
    if bits.dtype == tl.int64:
        exponent = (bits >> 52).to(tl.int32)
    else:
        exponent = bits >> 23
    return exponent


@triton.jit
def power(exponent, REAL: tl.constexpr):
    # 2^exponent of that type; 0 below its range. The exponent is not biased.
    if REAL == tl.float64:
        value = (tl.maximum(exponent + 1023, 0).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        value = (tl.maximum(exponent + 127, 0) << 23).to(tl.float32, bitcast=True)
    return value


@triton.jit
def compressed_sum(at, mask, scale, taps, tap_stride, KIND: tl.constexpr, REAL: tl.constexpr):
    # The sum over the taps of squares, magnitudes or values, of weights times a scale.
    total = tl.load(at, mask=mask, other=0.0).to(REAL) * scale
    if KIND == "rms":
        total = total * total
    if KIND == "absmean":
        total = tl.abs(total)
    for t in range(1, taps):
        w = tl.load(at + t * tap_stride, mask=mask, other=0.0).to(REAL) * scale
        if KIND == "rms":
            total += w * w
        elif KIND == "absmean":
            total += tl.abs(w)
        else:
            total += w
    return total


@triton.jit
def compressed(total, taps, KIND: tl.constexpr):
    # From the sum over the taps to the number of a channel.
    mean = total / taps.to(total.dtype)
    if KIND == "rms":
        mean = tl.sqrt(mean)
    return mean


@triton.jit
def largest_weights(data, rows, entry, mask, KIND: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    # The largest magnitude of the weights of each filter, as bits.
    bits = magnitude(tl.zeros((rows.shape[0], BLOCK), REAL))
    tap_stride = tap_stride_of(entry)
    if KIND == "none":
        count = coordinates_of(entry)
    else:
        count = channels_of(entry)
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        there = mask[:, None] & (k < count)[None, :]
        if KIND == "none":
            w = tl.load(data + rows[:, None] + coordinate_places(entry, k)[None, :], mask=there, other=0.0)
            bits = tl.maximum(bits, magnitude(w.to(REAL)))
        else:
            at = data + rows[:, None] + (k.to(tl.int64) * channel_stride_of(entry))[None, :]
            for t in range(taps_of(entry)):
                w = tl.load(at + t * tap_stride, mask=there, other=0.0)
                bits = tl.maximum(bits, magnitude(w.to(REAL)))
    return tl.max(bits, 1)


@triton.jit
def exponents_of(bits, LOWEST: tl.constexpr):
    # What is kept of a filter's largest magnitude: its exponent, with a number beyond every exponent where it is NaN or
    # infinite. The exponent is at least LOWEST, so that the power that undoes it is a normal number.
    exponent = exponent_of(bits)
    bad = exponent == (2047 if bits.dtype == tl.int64 else 255)
    return tl.where(bad, 1 << 20, tl.minimum(tl.maximum(exponent, LOWEST), 2045 if bits.dtype == tl.int64 else 253))


@triton.jit
def set_units(table, exponents, sums, units, MEASURED: tl.constexpr, BLOCK: tl.constexpr):
    # One program: one layer. Adds its sums of distances in a fixed order and stores what distances are multiplied by:
    # NaN if a weight is not finite, 0 if all points are equal.
    layer = tl.program_id(0)
    entry = entry_of(table, layer)
    first = first_sum_of(entry)
    count = sums_of(entry)
    part = tl.zeros((BLOCK,), tl.float64)
    if MEASURED:
        for x in range(0, count, BLOCK):
            at = x + tl.arange(0, BLOCK)
            part += tl.load(sums + first + at, mask=at < count, other=0.0)
    filters = filters_of(entry)
    largest = tl.zeros((BLOCK,), tl.int32)
    for x in range(0, filters, BLOCK):
        at = x + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(exponents + first_filter_of(entry) + at, mask=at < filters, other=0))
    unit = unit_of(entry, tl.sum(part, 0))
    tl.store(units + layer, tl.where(tl.max(largest, 0) < (1 << 20), unit, float("nan")))


@triton.jit
def entropies_of(first, second, points, TERMS: tl.constexpr):
    # From sums over the points. With z = 2^-y, S = sum z and T = sum y z: similarity -ln(S / n), softmax ln S + T / S
    # ln 2. For the distance entropy, with S = sum y and T = sum y log2 y: ln S - T / S ln 2.
    safe = tl.where(first > 0, first, 1.0)
    if TERMS == "similarity":
        values = tl.log(points.to(tl.float64)) - tl.log(safe)
    elif TERMS == "softmax":
        values = tl.log(safe) + second / safe * 0.6931471805599453
    else:
        values = tl.where(first > 0, tl.log(safe) - second / safe * 0.6931471805599453, 0.0)
    return values


@triton.jit
def bounded(values, unit, points):
    # Rounding may pass the bounds of an entropy. A unit of 0 means that all points are equal, NaN a weight that is not.
    values = tl.minimum(tl.maximum(values, 0.0), tl.log(points.to(tl.float64)))
    values = tl.where(unit > 0, values, 0.0)
    return tl.where(unit == unit, values, float("nan"))
