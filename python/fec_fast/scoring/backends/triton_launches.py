"""Launches of the Triton kernels for a group of layers of one dtype: which, in which order, in which buffers.

A group is made once for a list of weights, with its table and its lists of blocks on the device. Its ``launch`` queues
the kernels on torch's current stream, waits for nothing, and takes its buffers from torch's allocator.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..formula import Formula
from .triton_table import WORKSPACE, Layer, bits_of, blocks_of, in_groups, needs_mean, table_of

# Filters and coordinates, or channels, of a program of split_filters and gather_points.
_SPLIT_ROWS, _SPLIT_BLOCK = 8, 256
_GATHER_ROWS, _GATHER_BLOCK = 4, 128
# Rows and columns of a program of compare_pairs.
_PAIR_ROWS, _PAIR_COLUMNS = 32, 32


class Group(Protocol):
    """Layers whose kernels are launched together.

    Attributes:
        layers: In the order of their results.
    """

    layers: Sequence[Layer]

    def launch(self, results: Tensor) -> None:
        """Queues the kernels.

        Args:
            results: float64, one number per filter of the group; written to.
        """


@dataclass(frozen=True)
class Tiling:
    """How ``multiply_tiles`` is compiled.

    Attributes:
        tile: Filters on each side of a tile.
        step: Coordinates that are loaded at a time, 32 or 64.
        warps: The warps of a program.
        stages: Steps that are in flight.
    """

    tile: int
    step: int
    warps: int
    stages: int


# By compute capability. Tiles of 128 read half as much of the second-level cache as those of 64, and need 64 KiB of
# shared memory or more; consumer devices and AMD's have less.
_TILINGS = {(8, 0): Tiling(128, 32, 8, 3), (9, 0): Tiling(128, 64, 8, 3), (10, 0): Tiling(128, 64, 8, 2)}
_SMALL = Tiling(64, 64, 4, 2)


@functools.cache
def tiling_of(device: torch.device) -> Tiling:
    """Chooses how tiles are computed on a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return _SMALL
    return _TILINGS.get(torch.cuda.get_device_capability(device), _SMALL)


def groups_of(layers: Sequence[Layer], formula: Formula) -> list[Group]:
    """Divides layers into groups, by the kernels that they take, their dtypes and the bytes that they need.

    Args:
        layers: All layers of a call, on one device.
        formula: The formula of the entropy, of one axis.

    Returns:
        The groups, with their tables on the device.
    """
    alike: dict[tuple[str, torch.dtype], list[Layer]] = {}
    for layer in layers:
        alike.setdefault((layer.way, layer.weight.dtype), []).append(layer)
    groups: list[Group] = []
    for (way, dtype), members in alike.items():
        bytes_each = real_of(dtype).itemsize
        if way == "products":
            tiling = tiling_of(members[0].weight.device)
            split = is_split(dtype, formula)
            parts = in_groups(members, lambda one: Products.bytes_of(one, tiling, split))
            groups += [Products(part, formula, tiling) for part in parts]
        elif way == "sorted":
            parts = in_groups(members, lambda one: one.filters * block_of(one.channels) * bytes_each)
            groups += [Sorted(part, formula) for part in parts]
        else:
            parts = in_groups(members, lambda one: one.filters * one.coordinates * bytes_each)
            groups += [Pairs(part, formula) for part in parts]
    return groups


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: half precision needs the range and the digits of float32 for its sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_split(dtype: torch.dtype, formula: Formula) -> bool:
    """Tells whether a coordinate takes two float16 numbers. One is enough for half precision that is not compressed."""
    return dtype == torch.float32 or formula.compress != "none"


def block_of(channels: int) -> int:
    """The numbers that a filter is padded to for sorting: a power of two, at least two for each lane of a warp."""
    return int(1 << max(channels - 1, 63).bit_length())


def _language(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype."""
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


class _Base:
    """What all groups have."""

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        self.layers, self.formula = layers, formula
        self.dtype, self.device = layers[0].weight.dtype, layers[0].weight.device
        self.real = real_of(self.dtype)
        self.filters = sum(layer.filters for layer in layers)
        self.kind = formula.compress

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)

    def numbered(self) -> list[tuple[int, int]]:
        return [(position, layer.filters) for position, layer in enumerate(self.layers)]


class Products(_Base):
    """Between filters, by products on tensor cores: five kernels, and ``set_units``.

    The distances of all tiles are kept from the sums that tau needs to the terms. Where they need more than the
    workspace, tiles are processed in batches and their distances are made twice.
    """

    def __init__(self, layers: Sequence[Layer], formula: Formula, tiling: Tiling) -> None:
        super().__init__(layers, formula)
        self.tiling, self.split = tiling, is_split(self.dtype, formula)
        own, numbers, tiles, pairs = [], 0, 0, []
        for position, layer in enumerate(layers):
            strips, width = -(-layer.filters // tiling.tile), self.width_of(layer)
            i, j = torch.triu_indices(strips, strips).to(torch.int32)
            number = torch.arange(tiles, tiles + len(i), dtype=torch.int32)
            pairs.append((width, torch.stack([torch.full_like(i, position), i, j, number], 1)))
            own.append(
                {
                    "first_number": numbers,
                    "width": width,
                    "first_tile": tiles,
                    "strips": strips,
                    "first_sum": tiles * (tiling.tile // 32),
                    "sums": len(i) * (tiling.tile // 32),
                    "pairs": bits_of(layer.filters**2),
                }
            )
            numbers += layer.filters * width * (2 if self.split else 1)
            tiles += len(i)
        # The longest tiles first: a long one that starts last would be waited for.
        order = [tile for _, tile in sorted(pairs, key=lambda pair: -pair[0])]
        self.numbers, self.tiles = numbers, tiles
        room = max(WORKSPACE - 2 * numbers, WORKSPACE // 4)
        self.batch = min(tiles, max(1, room // (4 * tiling.tile**2)))
        self.table = table_of(layers, formula, own).to(self.device)
        self.order = torch.cat(order).to(self.device)
        self.blocks = blocks_of(self.numbered(), _SPLIT_ROWS).to(self.device)
        strips = [(position, -(-filters // tiling.tile)) for position, filters in self.numbered()]
        self.strips = blocks_of(strips, 1).to(self.device)

    @staticmethod
    def width_of(layer: Layer) -> int:
        return -(-layer.coordinates // 64) * 64

    @classmethod
    def bytes_of(cls, layer: Layer, tiling: Tiling, split: bool) -> int:
        strips = -(-layer.filters // tiling.tile)
        halves = layer.filters * cls.width_of(layer) * (4 if split else 2)
        return halves + strips * (strips + 1) // 2 * tiling.tile**2 * 4

    def launch(self, results: Tensor) -> None:
        from . import triton_filters as kernels
        from .triton_parts import set_units

        tile, dtype, terms = self.tiling.tile, _language(self.dtype), self.formula.entropy
        halves = self.empty(self.numbers, torch.float16)
        squares = self.empty(self.filters, torch.float32)
        exponents = self.empty(self.filters, torch.int32)
        kernels.split_filters[(len(self.blocks),)](
            self.table,
            self.blocks,
            halves,
            squares,
            exponents,
            DTYPE=dtype,
            KIND=self.kind,
            SPLIT=self.split,
            ROWS=_SPLIT_ROWS,
            BLOCK=_SPLIT_BLOCK,
        )
        distances = self.empty(self.batch * tile * tile, torch.float32)
        notes = self.empty(self.batch * (tile // 32 + 1), torch.int32)
        sums = self.empty(self.tiles * (tile // 32), torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        partials = self.empty(self.tiles * 2 * tile * (1 if terms == "similarity" else 2), torch.float32)

        def measure(first: int, count: int) -> None:
            given = (self.table, self.order, halves, squares, exponents, distances, sums, notes, first)
            kernels.multiply_tiles[(count,)](
                *given,
                SPLIT=self.split,
                TILE=tile,
                STEP=self.tiling.step,
                num_warps=self.tiling.warps,
                num_stages=self.tiling.stages,
            )
            kernels.near_tiles[(count * (tile // 32),)](
                *given, DTYPE=dtype, KIND=self.kind, SPLIT=self.split, TILE=tile
            )

        batches = [(first, min(self.batch, self.tiles - first)) for first in range(0, self.tiles, self.batch)]
        kept = False
        if needs_mean(self.formula):
            for first, count in batches:
                measure(first, count)
            kept = len(batches) == 1
        set_units[(len(self.layers),)](self.table, exponents, sums, units, MEASURED=needs_mean(self.formula), BLOCK=1024)
        for first, count in batches:
            if not kept:
                measure(first, count)
            kernels.sum_tiles[(count,)](
                self.table, self.order, distances, notes, units, partials, first, TERMS=terms, TILE=tile
            )
        kernels.finish_filters[(len(self.strips),)](
            self.table, self.strips, units, partials, results, TERMS=terms, TILE=tile
        )


class Sorted(_Base):
    """One number per channel: two kernels for each size that filters are padded to, and ``set_units``."""

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        super().__init__(layers, formula)
        self.kind = "mean" if formula.compress == "none" else formula.compress  # of one tap
        sizes: dict[int, list[tuple[int, int]]] = {}
        own, numbers, sums = [], 0, 0
        self.blocks: list[tuple[int, int, Tensor]] = []
        starts: dict[int, int] = {}
        for position, layer in enumerate(layers):
            block = block_of(layer.channels)
            sizes.setdefault(block, []).append((position, layer.filters))
            programs = -(-layer.filters // self.rows_of(block))
            starts[position] = sums
            own.append(
                {
                    "first_number": numbers,
                    "width": block,
                    "first_sum": sums,
                    "sums": programs,
                    "pairs": bits_of(layer.filters * layer.channels**2 / 2),
                }
            )
            numbers += layer.filters * block
            sums += programs
        for block, members in sorted(sizes.items(), reverse=True):
            found = blocks_of(members, self.rows_of(block))
            start = torch.tensor([starts[int(position)] for position in found[:, 0]], dtype=torch.int32)
            number = start + found[:, 1] // self.rows_of(block)
            self.blocks.append((block, len(found), torch.cat([found, number[:, None]], 1).contiguous().to(self.device)))
        self.numbers, self.sums = numbers, sums
        self.table = table_of(layers, formula, own).to(self.device)

    def rows_of(self, block: int) -> int:
        """The filters of a program: as many as give each lane 32 float32 numbers, or half as many float64."""
        return int(max(1, 4096 // self.real.itemsize // block))

    def options_of(self, block: int) -> dict[str, Any]:
        # Up to 64 registers per lane for the numbers.
        return {
            "REAL": _language(self.real),
            "ROWS": self.rows_of(block),
            "BLOCK": block,
            "num_warps": max(1, block * self.real.itemsize // 8192),
        }

    def launch(self, results: Tensor) -> None:
        from .triton_parts import set_units
        from .triton_sorted import scan_rows, sort_rows

        kept = self.empty(self.numbers, self.real)
        exponents = self.empty(self.filters, torch.int32)
        sums = self.empty(self.sums, torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        for block, programs, blocks in self.blocks:
            sort_rows[(programs,)](
                self.table,
                blocks,
                kept,
                exponents,
                sums,
                DTYPE=_language(self.dtype),
                KIND=self.kind,
                BITS=block.bit_length() - 1,
                **self.options_of(block),
            )
        set_units[(len(self.layers),)](self.table, exponents, sums, units, MEASURED=needs_mean(self.formula), BLOCK=1024)
        for block, programs, blocks in self.blocks:
            scan_rows[(programs,)](
                self.table,
                blocks,
                kept,
                exponents,
                units,
                results,
                TERMS=self.formula.entropy,
                **self.options_of(block),
            )


class Pairs(_Base):
    """All pairs by differences: two to four kernels, and ``set_units``."""

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        super().__init__(layers, formula)
        self.inside = formula.axis == "channels"
        own, numbers, sums, parts = [], 0, 0, []
        for position, layer in enumerate(layers):
            matrices, count = (layer.filters, layer.channels) if self.inside else (1, layer.filters)
            matrix, row = (
                part.flatten().to(torch.int32)
                for part in torch.meshgrid(
                    torch.arange(matrices), torch.arange(0, count, _PAIR_ROWS), indexing="ij"
                )
            )
            parts.append(torch.stack([torch.full_like(matrix, position), matrix, row], 1))
            own.append(
                {
                    "first_number": numbers,
                    "first_sum": sums,
                    "sums": len(matrix),
                    "pairs": bits_of(matrices * count**2),
                }
            )
            numbers += -(-layer.filters * layer.coordinates // 64) * 64
            sums += len(matrix)
        self.numbers, self.sums = numbers, sums
        self.table = table_of(layers, formula, own).to(self.device)
        self.pairs = torch.cat(parts).to(self.device)
        self.blocks = blocks_of(self.numbered(), _GATHER_ROWS).to(self.device)
        self.averages = blocks_of(self.numbered(), 64).to(self.device)

    def launch(self, results: Tensor) -> None:
        from .triton_pairs import average_rows, compare_pairs, gather_points
        from .triton_parts import set_units

        real = _language(self.real)
        points = self.empty(self.numbers, self.real)
        exponents = self.empty(self.filters, torch.int32)
        sums = self.empty(self.sums, torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        gather_points[(len(self.blocks),)](
            self.table,
            self.blocks,
            points,
            exponents,
            DTYPE=_language(self.dtype),
            REAL=real,
            KIND=self.kind,
            INSIDE=self.inside,
            ROWS=_GATHER_ROWS,
            BLOCK=_GATHER_BLOCK,
        )

        def compare(terms: str, to: Tensor) -> None:
            compare_pairs[(self.sums,)](
                self.table,
                self.pairs,
                points,
                exponents,
                units,
                to,
                REAL=real,
                TERMS=terms,
                INSIDE=self.inside,
                ROWS=_PAIR_ROWS,
                COLUMNS=_PAIR_COLUMNS,
                LARGEST=1024,
            )

        if needs_mean(self.formula):
            compare("distances", sums)
        set_units[(len(self.layers),)](self.table, exponents, sums, units, MEASURED=needs_mean(self.formula), BLOCK=1024)
        compare(self.formula.entropy, sums if self.inside else results)
        if self.inside:
            average_rows[(len(self.averages),)](
                self.table, self.averages, units, sums, results, FILTERS=64, ROWS=_PAIR_ROWS
            )
