"""Triton kernels between filters, for weights that are computed in float32: products on tensor cores.

``split_filters`` writes every filter as two float16 numbers per coordinate, ``hi + lo``, scaled by a power of two of
its own, exact to 2^-24; half precision needs ``hi`` alone. ``multiply_tiles`` makes the distances of a tile of filters
from |a|^2 + |b|^2 - 2ab with ab = lo hi + hi lo + hi hi, for the upper triangle of tiles. Tensor cores round towards
zero, so a float32 sum takes over every 64 coordinates. The subtraction enlarges errors where points are near one
another: ``near_tiles`` makes pairs with a squared distance below 1/32 of |a|^2 + |b|^2 again, by differences.
``sum_tiles`` reduces distances to sums of their terms, by rows and by columns; ``finish_filters`` adds the sums of a
filter's tiles.

A tile has TILE x TILE distances, in bands of 32 rows, and its place in the buffers of a batch of tiles. Its ``notes``
are, for each band, whether it has near pairs, and then the exponent of the unit of its distances.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_parts import (
    bounded,
    channel_stride_of,
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
    flat_coordinates_of,
    flat_places,
    is_flat,
    largest_weights,
    magnitude,
    power,
    tap_stride_of,
    taps_of,
    tile_of,
    width_of,
)


@triton.jit
def split_filters(
    table,
    blocks,
    halves,
    squares,
    exponents,
    DTYPE: tl.constexpr,
    KIND: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: ROWS filters of a layer. Reads them twice, the second time from a cache. The largest weight of a
    # filter is scaled to [2^14, 2^15). A filter's hi numbers are followed by its lo numbers.
    b = tl.program_id(0)
    entry = entry_of(table, tl.load(blocks + 2 * b))
    f = tl.load(blocks + 2 * b + 1) + tl.arange(0, ROWS)
    mask = f < filters_of(entry)
    data = data_of(entry, DTYPE)
    count = coordinates_of(entry)
    width = width_of(entry)
    taps = taps_of(entry)
    tap_stride = tap_stride_of(entry)
    rows = filter_places(entry, f)
    row = 2 * width if SPLIT else width
    to = (halves + first_number_of(entry)) + f.to(tl.int64)[:, None] * row
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    flat = False
    if KIND == "none":
        flat = is_flat(entry)
    if flat:
        start = flat_places(entry, f, DTYPE)[:, None]
        count = flat_coordinates_of(entry, DTYPE)
        bits = tl.zeros((ROWS, BLOCK), tl.int32)
        for x in range(0, count, BLOCK):
            k = x + tl.arange(0, BLOCK)[None, :]
            w = tl.load(start + k, mask=mask[:, None] & (k < count), other=0.0)
            bits = tl.maximum(bits, magnitude(w.to(tl.float32)))
        exponent = exponents_of(tl.max(bits, 1), 14)
        scale = power(141 - exponent, tl.float32)[:, None]
        for x in range(0, width, BLOCK):
            k = x + tl.arange(0, BLOCK)[None, :]
            w = tl.load(start + k, mask=mask[:, None] & (k < count), other=0.0).to(tl.float32) * scale
            hi = w.to(tl.float16)
            there = mask[:, None] & (k < width)
            tl.store(to + k, hi, mask=there)
            if SPLIT:
                tl.store(to + width + k, (w - hi.to(tl.float32)).to(tl.float16), mask=there)
            total += w * w
    else:
        exponent = exponents_of(largest_weights(data, rows, entry, mask, KIND, tl.float32, BLOCK), 14)
        scale = power(141 - exponent, tl.float32)[:, None]
        for x in range(0, width, BLOCK):
            k = x + tl.arange(0, BLOCK)
            present = mask[:, None] & (k < count)[None, :]
            if KIND == "none":
                at = data + rows[:, None] + coordinate_places(entry, k)[None, :]
                w = tl.load(at, mask=present, other=0.0).to(tl.float32) * scale
            else:
                at = data + rows[:, None] + (k.to(tl.int64) * channel_stride_of(entry))[None, :]
                w = compressed(compressed_sum(at, present, scale, taps, tap_stride, KIND, tl.float32), taps, KIND)
            hi = w.to(tl.float16)
            there = mask[:, None] & (k < width)[None, :]
            tl.store(to + k[None, :], hi, mask=there)
            if SPLIT:
                tl.store(to + width + k[None, :], (w - hi.to(tl.float32)).to(tl.float16), mask=there)
            total += w * w
    out = first_filter_of(entry) + f
    tl.store(squares + out, tl.sum(total, 1), mask=mask)
    tl.store(exponents + out, exponent, mask=mask)


@triton.jit(do_not_specialize=["first"])
def multiply_tiles(
    table,
    tiles,
    halves,
    squares,
    exponents,
    distances,
    sums,
    notes,
    first,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    # One program: one tile, by products. The layer has its filters' halves within 2^31 numbers of each strip.
    t = tl.program_id(0)
    description = tiles + 4 * (first + t)
    entry = entry_of(table, tl.load(description))
    ti = tl.load(description + 1)
    tj = tl.load(description + 2)
    BANDS: tl.constexpr = TILE // 32
    filters = filters_of(entry)
    width = width_of(entry)
    row = (2 * width) if SPLIT else width
    r = tl.arange(0, TILE)
    # What is not there repeats the last filter, so that loads need no mask.
    ri = tl.minimum(r, filters - 1 - ti * TILE)
    rj = tl.minimum(r, filters - 1 - tj * TILE)
    k = tl.arange(0, STEP)
    start = halves + first_number_of(entry)
    a = (start + tl.multiple_of((ti * TILE).to(tl.int64) * row, 64)) + (ri[:, None] * row + k[None, :])
    b = (start + tl.multiple_of((tj * TILE).to(tl.int64) * row, 64)) + (rj[None, :] * row + k[:, None])
    products = tl.zeros((TILE, TILE), tl.float32)
    # Zeros that the compiler does not know: with known ones it would turn the sum of products into one long product,
    # all of it rounded by tensor cores.
    nothing = tl.full((TILE, TILE), 0.0, tl.float32) + tl.where(filters > 0, 0.0, 1.0)
    for x in range(0, width, STEP):
        a_hi = tl.load(a + x)
        b_hi = tl.load(b + x)
        if SPLIT:
            a_lo = tl.load(a + width + x)
            b_lo = tl.load(b + width + x)
            part = tl.dot(a_lo, b_hi)
            part = tl.dot(a_hi, b_lo, part)
            part = tl.dot(a_hi, b_hi, part)
        else:
            part = tl.dot(a_hi, b_hi, nothing)
        products += part
    i = ti * TILE + r
    j = tj * TILE + r
    own_squares = squares + first_filter_of(entry)
    own_exponents = exponents + first_filter_of(entry)
    e_i = tl.load(own_exponents + ti * TILE + ri)
    e_j = tl.load(own_exponents + tj * TILE + rj)
    unit = tl.maximum(tl.max(e_i, 0), tl.max(e_j, 0))
    f_i = power(e_i - unit, tl.float32)
    f_j = power(e_j - unit, tl.float32)
    s_i = tl.load(own_squares + ti * TILE + ri) * f_i * f_i
    s_j = tl.load(own_squares + tj * TILE + rj) * f_j * f_j
    both = s_i[:, None] + s_j[None, :]
    distinct = i[:, None] != j[None, :]
    square = tl.where(distinct, both - 2.0 * products * f_i[:, None] * f_j[None, :], 0.0)
    there = (i < filters)[:, None] & (j < filters)[None, :]
    near = (square < both * 0.03125) & distinct & there
    d = tl.where(there, tl.sqrt(tl.maximum(square, 0.0)), 0.0)
    tl.store(distances + t.to(tl.int64) * (TILE * TILE) + (r[:, None] * TILE + r[None, :]), d)
    note = notes + t * (BANDS + 1)
    band = tl.arange(0, BANDS)
    flags = tl.reshape(tl.max(near.to(tl.int32), 1), (BANDS, 32))
    tl.store(note + band, tl.max(flags, 1))
    tl.store(note + BANDS, unit)
    total = tl.sum(tl.reshape(tl.sum(d, 1).to(tl.float64), (BANDS, 32)), 1)
    twice = tl.where(ti == tj, 1.0, 2.0) * power(unit - 141, tl.float64)
    tl.store(sums + tl.load(description + 3) * BANDS + band, total * twice)


@triton.jit(do_not_specialize=["first"])
def near_tiles(
    table,
    tiles,
    halves,
    squares,
    exponents,
    distances,
    sums,
    notes,
    first,
    DTYPE: tl.constexpr,
    KIND: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    # One program: one band of a tile. Most return at once. Of the others, squares of 32 x 32 with a near pair are made
    # again by differences: of the weights in place, or of hi + lo where the weights are compressed.
    p = tl.program_id(0)
    BANDS: tl.constexpr = TILE // 32
    t = p // BANDS
    band = p % BANDS
    note = notes + t * (BANDS + 1)
    if tl.load(note + band) == 0:
        return
    description = tiles + 4 * (first + t)
    entry = entry_of(table, tl.load(description))
    ti = tl.load(description + 1)
    tj = tl.load(description + 2)
    unit = tl.load(note + BANDS)
    filters = filters_of(entry)
    count = coordinates_of(entry)
    width = width_of(entry)
    i = ti * TILE + band * 32 + tl.arange(0, 32)
    ri = tl.minimum(i, filters - 1)
    e_i = tl.load(exponents + first_filter_of(entry) + ri)
    f_i = power(e_i - unit, tl.float32)
    s_i = tl.load(squares + first_filter_of(entry) + ri) * f_i * f_i
    row = distances + t.to(tl.int64) * (TILE * TILE) + (band * 32 + tl.arange(0, 32)) * TILE
    total = tl.zeros((32,), tl.float64)
    for x in range(0, TILE, 32):
        j = tj * TILE + x + tl.arange(0, 32)
        rj = tl.minimum(j, filters - 1)
        e_j = tl.load(exponents + first_filter_of(entry) + rj)
        f_j = power(e_j - unit, tl.float32)
        s_j = tl.load(squares + first_filter_of(entry) + rj) * f_j * f_j
        at = row[:, None] + (x + tl.arange(0, 32))[None, :]
        d = tl.load(at)
        there = (i < filters)[:, None] & (j < filters)[None, :]
        near = (d * d < (s_i[:, None] + s_j[None, :]) * 0.03126) & there & (i[:, None] != j[None, :])
        if tl.max(tl.max(near.to(tl.int32), 1), 0) != 0:
            square = tl.zeros((32, 32), tl.float32)
            for k in range(0, count, 64):
                part = tl.zeros((32, 32), tl.float32)
                for c in range(k, tl.minimum(k + 64, count)):
                    if KIND == "none":
                        data = data_of(entry, DTYPE) + coordinate_places(entry, c)
                        scale = power(141 - unit, tl.float32)
                        a = tl.load(data + filter_places(entry, ri)).to(tl.float32) * scale
                        b = tl.load(data + filter_places(entry, rj)).to(tl.float32) * scale
                    else:
                        numbers = halves + first_number_of(entry) + c
                        a = tl.load(numbers + ri.to(tl.int64) * 2 * width).to(tl.float32)
                        a += tl.load(numbers + ri.to(tl.int64) * 2 * width + width).to(tl.float32)
                        b = tl.load(numbers + rj.to(tl.int64) * 2 * width).to(tl.float32)
                        b += tl.load(numbers + rj.to(tl.int64) * 2 * width + width).to(tl.float32)
                        a *= f_i
                        b *= f_j
                    gap = a[:, None] - b[None, :]
                    part += gap * gap
                square += part
            d = tl.where(there, tl.sqrt(square), 0.0)
            tl.store(at, d)
        total += tl.sum(d, 1).to(tl.float64)
    twice = tl.where(ti == tj, 1.0, 2.0) * power(unit - 141, tl.float64)
    tl.store(sums + tl.load(description + 3) * BANDS + band, tl.sum(total, 0) * twice)


@triton.jit(do_not_specialize=["first"])
def sum_tiles(
    table,
    tiles,
    distances,
    notes,
    units,
    partials,
    first,
    TERMS: tl.constexpr,
    TILE: tl.constexpr,
):
    # One program: one tile. The sums of the terms of each of its rows, then of each of its columns.
    t = tl.program_id(0)
    description = tiles + 4 * (first + t)
    layer = tl.load(description)
    filters = filters_of(entry_of(table, layer))
    ti = tl.load(description + 1)
    tj = tl.load(description + 2)
    BANDS: tl.constexpr = TILE // 32
    COUNT: tl.constexpr = 1 if TERMS == "similarity" else 2
    exponent = tl.load(notes + t * (BANDS + 1) + BANDS)
    # Not infinite where all distances are tiny: infinity times a distance of 0 would be NaN.
    unit = tl.minimum(tl.load(units + layer) * power(exponent - 141, tl.float64), 1e30).to(tl.float32)
    c = tl.arange(0, TILE)
    out = partials + tl.load(description + 3).to(tl.int64) * (2 * COUNT * TILE)
    first_columns = tl.zeros((TILE,), tl.float32)
    second_columns = tl.zeros((TILE,), tl.float32)
    for band in range(BANDS):
        r = band * 32 + tl.arange(0, 32)
        d = tl.load(distances + t.to(tl.int64) * (TILE * TILE) + (r[:, None] * TILE + c[None, :]))
        there = (ti * TILE + r < filters)[:, None] & (tj * TILE + c < filters)[None, :]
        y = d * unit
        if TERMS == "distance":
            # What is not there has distance 0, and so no part in either sum.
            z = y
            moment = y * tl.log2(tl.where(y > 0, y, 1.0))
        else:
            z = tl.where(there, tl.exp2(-y), 0.0)
            moment = z * tl.minimum(y, 4096.0)
        tl.store(out + r, tl.sum(z, 1))
        first_columns += tl.sum(z, 0)
        if COUNT == 2:
            tl.store(out + TILE + r, tl.sum(moment, 1))
            second_columns += tl.sum(moment, 0)
    if ti != tj:
        tl.store(out + COUNT * TILE + c, first_columns)
        if COUNT == 2:
            tl.store(out + COUNT * TILE + TILE + c, second_columns)


@triton.jit
def finish_filters(table, strips, units, partials, results, TERMS: tl.constexpr, TILE: tl.constexpr):
    # One program: the entropies of a strip of filters, from the sums of all tiles that they are in.
    p = tl.program_id(0)
    layer = tl.load(strips + 2 * p)
    strip = tl.load(strips + 2 * p + 1)
    entry = entry_of(table, layer)
    filters = filters_of(entry)
    r = tl.arange(0, TILE)
    COUNT: tl.constexpr = 1 if TERMS == "similarity" else 2
    first = tl.zeros((TILE,), tl.float64)
    second = tl.zeros((TILE,), tl.float64)
    for other in range((filters + TILE - 1) // TILE):
        tile = tile_of(entry, tl.minimum(strip, other), tl.maximum(strip, other))
        side = tl.where(other < strip, COUNT, 0)
        at = partials + tile.to(tl.int64) * (2 * COUNT * TILE) + side * TILE + r
        first += tl.load(at).to(tl.float64)
        if COUNT == 2:
            second += tl.load(at + TILE).to(tl.float64)
    values = entropies_of(first, second, filters, TERMS)
    f = strip * TILE + r
    values = bounded(values, tl.load(units + layer), filters)
    tl.store(results + first_filter_of(entry) + f, values, mask=f < filters)
