"""Triton kernels that compare all pairs by differences: what neither sorting nor products on tensor cores can do.

These are channels with several taps or more channels than a warp sorts, the distance entropy inside filters,
``algorithm="pairwise"``, and float64 between filters. ``gather_points`` writes the points of every matrix of
distances, one coordinate after the other, so that consecutive lanes read consecutive points. Inside filters a filter is
a matrix and its channels are the points; between filters a layer is a matrix.
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
    coordinate_places,
    coordinates_of,
    data_of,
    entropies_of,
    entry_of,
    exponents_of,
    filter_places,
    filters_of,
    first_filter_of,
    first_number_of,
    first_sum_of,
    largest_weights,
    power,
    tap_stride_of,
    taps_of,
)


@triton.jit
def gather_points(
    table,
    blocks,
    points,
    exponents,
    DTYPE: tl.constexpr,
    REAL: tl.constexpr,
    KIND: tl.constexpr,
    INSIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: ROWS filters, scaled by powers of two of their own. Inside filters, coordinate t of channel c of
    # filter f is number (f T + t) C + c of the layer. Between filters, coordinate k of filter f is number k N + f.
    b = tl.program_id(0)
    entry = entry_of(table, tl.load(blocks + 2 * b))
    f = tl.load(blocks + 2 * b + 1) + tl.arange(0, ROWS)
    filters = filters_of(entry)
    channels = channels_of(entry)
    taps = taps_of(entry)
    mask = f < filters
    data = data_of(entry, DTYPE)
    rows = filter_places(entry, f)
    BIAS: tl.constexpr = 1023 if REAL == tl.float64 else 127
    exponent = exponents_of(largest_weights(data, rows, entry, mask, KIND, REAL, BLOCK), 1)
    tl.store(exponents + first_filter_of(entry) + f, exponent, mask=mask)
    scale = power(BIAS - exponent, REAL)[:, None]
    to = points + first_number_of(entry)
    f = f.to(tl.int64)[:, None]
    if KIND == "none" and not INSIDE:
        for x in range(0, coordinates_of(entry), BLOCK):
            k = x + tl.arange(0, BLOCK)
            there = mask[:, None] & (k < coordinates_of(entry))[None, :]
            w = tl.load(data + rows[:, None] + coordinate_places(entry, k)[None, :], mask=there, other=0.0)
            tl.store(to + k.to(tl.int64)[None, :] * filters + f, w.to(REAL) * scale, mask=there)
    else:
        for x in range(0, channels, BLOCK):
            c = (x + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
            there = mask[:, None] & (c < channels)
            at = data + rows[:, None] + c * channel_stride_of(entry)
            if KIND == "none":
                for t in range(taps):
                    w = tl.load(at + t * tap_stride_of(entry), mask=there, other=0.0).to(REAL) * scale
                    tl.store(to + (f * taps + t) * channels + c, w, mask=there)
            else:
                total = compressed_sum(at, there, scale, taps, tap_stride_of(entry), KIND, REAL)
                number = f * channels + c if INSIDE else c * filters + f
                tl.store(to + number, compressed(total, taps, KIND), mask=there)


@triton.jit
def compare_pairs(
    table,
    blocks,
    points,
    exponents,
    units,
    sums,
    REAL: tl.constexpr,
    TERMS: tl.constexpr,
    INSIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
):
    # One program: ROWS rows of one matrix. TERMS says what is stored: "distances" the sum of all its distances, inside
    # filters the sum of the entropies of its rows, between filters the entropy of every row.
    b = tl.program_id(0)
    layer = tl.load(blocks + 3 * b)
    entry = entry_of(table, layer)
    matrix = tl.load(blocks + 3 * b + 1)
    row = tl.load(blocks + 3 * b + 2) + tl.arange(0, ROWS)
    filters = filters_of(entry)
    first_exponent = exponents + first_filter_of(entry)
    if INSIDE:
        count = channels_of(entry)
        coordinates = coordinates_of(entry) // channels_of(entry)
        exponent = tl.load(first_exponent + matrix)
    else:
        count = filters
        coordinates = coordinates_of(entry)
        # The filters have units of their own; distances are in the largest of them.
        largest = tl.zeros((LARGEST,), tl.int32)
        for x in range(0, filters, LARGEST):
            at = x + tl.arange(0, LARGEST)
            largest = tl.maximum(largest, tl.load(first_exponent + at, mask=at < filters, other=0))
        exponent = tl.max(largest, 0)
    BIAS: tl.constexpr = 1023 if REAL == tl.float64 else 127
    own = power(exponent - BIAS, tl.float64)
    unit = tl.full((), 1.0, REAL)
    shared = tl.full((), 1.0, tl.float64)
    if TERMS != "distances":
        shared = tl.load(units + layer)
        # Not infinite where all distances are tiny: infinity times a distance of 0 would be NaN.
        unit = tl.minimum(shared * own, 1e30).to(REAL)
    data = points + first_number_of(entry) + matrix.to(tl.int64) * coordinates * count
    first = tl.zeros((ROWS,), tl.float64)
    second = tl.zeros((ROWS,), tl.float64)
    for start in range(0, count, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        row_power = tl.full((ROWS,), 1.0, REAL)
        column_power = tl.full((COLUMNS,), 1.0, REAL)
        if not INSIDE:
            row_power = power(tl.load(first_exponent + row, mask=row < count, other=0) - exponent, REAL)
            column_power = power(tl.load(first_exponent + column, mask=column < count, other=0) - exponent, REAL)
        d = tl.zeros((ROWS, COLUMNS), REAL)
        if coordinates == 1:
            a = tl.load(data + row, mask=row < count, other=0.0) * row_power
            other = tl.load(data + column, mask=column < count, other=0.0) * column_power
            d = tl.abs(a[:, None] - other[None, :])
        else:
            for k in range(coordinates):
                at = data + tl.full((), k, tl.int64) * count
                a = tl.load(at + row, mask=row < count, other=0.0) * row_power
                other = tl.load(at + column, mask=column < count, other=0.0) * column_power
                gap = a[:, None] - other[None, :]
                d += gap * gap
            d = tl.sqrt(d)
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
                    second += tl.sum(z * tl.minimum(y, 4096.0), 1).to(tl.float64)
    if TERMS == "distances":
        tl.store(sums + b, tl.sum(tl.where(row < count, first, 0.0), 0) * own)
    else:
        values = entropies_of(first, second, count, TERMS)
        if INSIDE:
            tl.store(sums + b, tl.sum(tl.where(row < count, values, 0.0), 0))
        else:
            tl.store(sums + first_filter_of(entry) + row, bounded(values, shared, count), mask=row < count)


@triton.jit
def average_rows(table, blocks, units, sums, results, FILTERS: tl.constexpr, ROWS: tl.constexpr):
    # One program: the means over the channels of FILTERS filters, from the sums of their blocks of ROWS rows.
    b = tl.program_id(0)
    layer = tl.load(blocks + 2 * b)
    entry = entry_of(table, layer)
    f = tl.load(blocks + 2 * b + 1) + tl.arange(0, FILTERS)
    mask = f < filters_of(entry)
    channels = channels_of(entry)
    per_filter = (channels + ROWS - 1) // ROWS
    total = tl.zeros((FILTERS,), tl.float64)
    for x in range(per_filter):
        total += tl.load(sums + first_sum_of(entry) + f.to(tl.int64) * per_filter + x, mask=mask, other=0.0)
    values = bounded(total / channels.to(tl.float64), tl.load(units + layer), channels)
    tl.store(results + first_filter_of(entry) + f, values, mask=mask)
