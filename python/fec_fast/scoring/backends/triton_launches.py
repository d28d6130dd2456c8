"""Launches of the Triton kernels for groups of layers: which kernels, in which order, in which buffers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula import Formula
from .triton_group import Group, Launcher, language, real_of
from .triton_table import WORKSPACE, Layer, bits_of, blocks_of, in_groups, needs_mean, table_of

# Filters and coordinates, or channels, of a program of split_filters and gather_points.
SPLIT_ROWS, SPLIT_BLOCK = 8, 256
GATHER_ROWS, GATHER_BLOCK = 4, 128
# Rows and columns of a program of compare_pairs.
PAIR_ROWS, PAIR_COLUMNS = 32, 32


@dataclass(frozen=True)
class Tiling:
    """How ``multiply_tiles`` is compiled.

    Attributes:
        tile: Filters on each side of a tile.
        step: Coordinates that are loaded at a time, 32 or 64: also those whose products tensor cores add up.
        warps: The warps of a program.
        stages: Steps that are in flight.
    """

    tile: int
    step: int
    warps: int
    stages: int


# Tiles of 128 read half as much of the second-level cache as those of 64, but need 64 KiB of shared memory or more,
# which consumer devices and AMD's do not have for two programs.
_TILINGS = {(8, 0): Tiling(128, 32, 8, 3), (9, 0): Tiling(128, 64, 8, 3), (10, 0): Tiling(128, 64, 8, 2)}
_SMALL = Tiling(64, 32, 4, 3)


def tiling_for(capability: tuple[int, int] | None) -> Tiling:
    """Chooses how tiles are computed.

    Args:
        capability: The compute capability of an NVIDIA device; ``None`` for other devices.
    """
    return _SMALL if capability is None else _TILINGS.get(capability, _SMALL)


@functools.cache
def tiling_of(device: torch.device) -> Tiling:
    """Chooses how tiles are computed on a device."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return tiling_for(torch.cuda.get_device_capability(device) if nvidia else None)


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
        tiling, split = tiling_of(members[0].weight.device), is_split(dtype, formula)
        sizes = [_bytes_of(layer, tiling, split) for layer in members]
        for part in in_groups(members, sizes):
            if way == "products":
                groups.append(Products(part, formula, tiling))
            else:
                groups.append(Sorted(part, formula) if way == "sorted" else Pairs(part, formula))
    return groups


def _bytes_of(layer: Layer, tiling: Tiling, split: bool) -> int:
    """The bytes that the kernels of a layer work in, as far as they grow with the weight."""
    each = real_of(layer.weight.dtype).itemsize
    if layer.way == "sorted":
        return layer.filters * block_of(layer.channels) * each
    if layer.way == "pairs":
        return layer.filters * layer.coordinates * each
    strips = -(-layer.filters // tiling.tile)
    return layer.filters * width_of(layer) * (4 if split else 2) + strips * (strips + 1) // 2 * tiling.tile**2 * 4


def width_of(layer: Layer) -> int:
    """The coordinates of a filter with those that fill up its last step of products."""
    return -(-layer.coordinates // 64) * 64


def is_split(dtype: torch.dtype, formula: Formula) -> bool:
    """Tells whether a coordinate takes two float16 numbers. One is enough for half precision that is not compressed."""
    return dtype == torch.float32 or formula.compress != "none"


def block_of(channels: int) -> int:
    """The numbers that a filter is padded to for sorting: a power of two, at least two for each lane of a warp."""
    return int(1 << max(channels - 1, 63).bit_length())


def warps_of(size: int) -> int:
    """The warps that sort filters of some bytes: one as long as a lane has at most 64 registers of them, then more."""
    return 1 if size <= 8192 else size // 4096


class Products(Group):
    """Between filters, by products on tensor cores: five kernels, and ``set_units``.

    The distances of all tiles are kept from the sums that tau needs to the terms. Where they need more than the
    workspace, tiles are processed in batches and their distances are made twice.
    """

    def __init__(self, layers: Sequence[Layer], formula: Formula, tiling: Tiling) -> None:
        """Makes the table and the lists of blocks on the device.

        Args:
            layers: Layers of one dtype on one device.
            formula: The formula of the entropy, of one axis.
            tiling: How tiles are computed.
        """
        super().__init__(layers, formula)
        self.tiling, self.split = tiling, is_split(self.dtype, formula)
        own, numbers, tiles, pairs = [], 0, 0, []
        for position, layer in enumerate(layers):
            strips, width = -(-layer.filters // tiling.tile), width_of(layer)
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
        self.blocks = blocks_of(self.numbered(), SPLIT_ROWS).to(self.device)
        counts = [(position, -(-filters // tiling.tile)) for position, filters in self.numbered()]
        self.strips = blocks_of(counts, 1).to(self.device)
        self.launchers = self._launchers()

    def _launchers(self) -> dict[str, Launcher]:
        from . import triton_filters as kernels

        tile, terms, layout = self.tiling.tile, self.formula.entropy, {"DTYPE": language(self.dtype)}
        compressed = layout | {"KIND": self.kind, "SPLIT": self.split}
        stepped = {"SPLIT": self.split, "TILE": tile, "STEP": self.tiling.step}
        options = {"num_warps": self.tiling.warps, "num_stages": self.tiling.stages}
        summed = {"TERMS": terms, "TILE": tile}
        blocked = compressed | {"ROWS": SPLIT_ROWS, "BLOCK": SPLIT_BLOCK}
        return {
            "split": Launcher(kernels.split_filters, len(self.blocks), blocked),
            "multiply": Launcher(kernels.multiply_tiles, self.batch, stepped, **options),
            "near": Launcher(kernels.near_tiles, self.batch * (tile // 32), compressed | {"TILE": tile}),
            "units": self.units_launcher(),
            "sum": Launcher(kernels.sum_tiles, self.batch, summed),
            "finish": Launcher(kernels.finish_filters, len(self.strips), summed),
        }

    def launch(self, results: Tensor) -> None:
        """Queues the kernels, see :meth:`Group.launch`.

        Args:
            results: float64, one number per filter; written to.
        """
        tile, launch = self.tiling.tile, self.launchers
        halves = self.empty(self.numbers, torch.float16)
        squares = self.empty(self.filters, torch.float32)
        exponents = self.empty(self.filters, torch.int32)
        launch["split"](self.table, self.blocks, halves, squares, exponents)
        distances = self.empty(self.batch * tile * tile, torch.float32)
        notes = self.empty(self.batch * (tile // 32 + 1), torch.int32)
        sums = self.empty(self.tiles * (tile // 32), torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        sides = 2 if self.formula.entropy == "similarity" else 4
        partials = self.empty(self.tiles * sides * tile, torch.float32)

        def measure(first: int, count: int) -> None:
            given = (self.table, self.order, halves, squares, exponents, distances, sums, notes, first)
            launch["multiply"](*given, programs=count)
            launch["near"](*given, programs=count * (tile // 32))

        batches = [(first, min(self.batch, self.tiles - first)) for first in range(0, self.tiles, self.batch)]
        kept = False
        if needs_mean(self.formula):
            for first, count in batches:
                measure(first, count)
            kept = len(batches) == 1
        launch["units"](self.table, exponents, sums, units)
        for first, count in batches:
            if not kept:
                measure(first, count)
            launch["sum"](self.table, self.order, distances, notes, units, partials, first, programs=count)
        launch["finish"](self.table, self.strips, units, partials, results)


class Sorted(Group):
    """One number per channel: two kernels for each size that filters are padded to, and ``set_units``."""

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        """Makes the table and the lists of blocks on the device.

        Args:
            layers: Layers of one dtype on one device.
            formula: The formula of the entropy, of one axis.
        """
        super().__init__(layers, formula)
        self.kind = "mean" if formula.compress == "none" else formula.compress  # of one tap
        sizes: dict[int, list[tuple[int, int]]] = {}
        own, numbers, sums = [], 0, 0
        self.sizes: list[tuple[Tensor, Launcher, Launcher]] = []
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
            blocks = torch.cat([found, number[:, None]], 1).to(self.device)
            self.sizes.append((blocks, *self._launchers(block, len(found))))
        self.units = self.units_launcher()
        self.numbers, self.sums = numbers, sums
        self.table = table_of(layers, formula, own).to(self.device)

    def tensors(self) -> list[Tensor]:
        """The table and the lists of blocks."""
        return [self.table, *(blocks for blocks, _, _ in self.sizes)]

    def rows_of(self, block: int) -> int:
        """The filters of a program: as many as give each lane 16 float32 numbers, or half as many float64."""
        return int(max(1, 2048 // self.real.itemsize // block))

    def _launchers(self, block: int, programs: int) -> tuple[Launcher, Launcher]:
        from .triton_sorted import scan_rows, sort_rows

        real, shape = language(self.real), {"ROWS": self.rows_of(block), "BLOCK": block}
        read = {"DTYPE": language(self.dtype), "REAL": real, "KIND": self.kind}
        warps = warps_of(block * self.real.itemsize)
        return (
            Launcher(sort_rows, programs, read | shape | {"BITS": block.bit_length() - 1}, num_warps=warps),
            Launcher(scan_rows, programs, {"REAL": real, "TERMS": self.formula.entropy} | shape, num_warps=warps),
        )

    def launch(self, results: Tensor) -> None:
        """Queues the kernels, see :meth:`Group.launch`.

        Args:
            results: float64, one number per filter; written to.
        """
        kept = self.empty(self.numbers, self.real)
        exponents = self.empty(self.filters, torch.int32)
        sums = self.empty(self.sums, torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        for blocks, sort, _ in self.sizes:
            sort(self.table, blocks, kept, exponents, sums)
        self.units(self.table, exponents, sums, units)
        for blocks, _, scan in self.sizes:
            scan(self.table, blocks, kept, exponents, units, results)


class Pairs(Group):
    """All pairs by differences: two to four kernels, and ``set_units``."""

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        """Makes the table and the lists of blocks on the device.

        Args:
            layers: Layers of one dtype on one device.
            formula: The formula of the entropy, of one axis.
        """
        super().__init__(layers, formula)
        self.inside = formula.axis == "channels"
        own, numbers, sums, parts = [], 0, 0, []
        for position, layer in enumerate(layers):
            matrices, count = (layer.filters, layer.channels) if self.inside else (1, layer.filters)
            matrix, row = (
                part.flatten().to(torch.int32)
                for part in torch.meshgrid(torch.arange(matrices), torch.arange(0, count, PAIR_ROWS), indexing="ij")
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
        self.blocks = blocks_of(self.numbered(), GATHER_ROWS).to(self.device)
        self.averages = blocks_of(self.numbered(), 64).to(self.device)

        self.launchers = self._launchers()

    def _launchers(self) -> dict[str, Launcher]:
        from .triton_pairs import average_rows, compare_pairs, gather_points

        real = language(self.real)
        read = {"DTYPE": language(self.dtype), "REAL": real, "KIND": self.kind, "INSIDE": self.inside}

        def compare(terms: str) -> Launcher:
            shape = {"ROWS": PAIR_ROWS, "COLUMNS": PAIR_COLUMNS, "LARGEST": 1024}
            return Launcher(compare_pairs, self.sums, {"REAL": real, "TERMS": terms, "INSIDE": self.inside} | shape)

        shape = {"ROWS": GATHER_ROWS, "BLOCK": GATHER_BLOCK}
        return {
            "gather": Launcher(gather_points, len(self.blocks), read | shape),
            "measure": compare("distances"),
            "units": self.units_launcher(),
            "compare": compare(self.formula.entropy),
            "average": Launcher(average_rows, len(self.averages), {"FILTERS": 64, "ROWS": PAIR_ROWS}),
        }

    def launch(self, results: Tensor) -> None:
        """Queues the kernels, see :meth:`Group.launch`.

        Args:
            results: float64, one number per filter; written to.
        """
        launch = self.launchers
        points = self.empty(self.numbers, self.real)
        exponents = self.empty(self.filters, torch.int32)
        sums = self.empty(self.sums, torch.float64)
        units = self.empty(len(self.layers), torch.float64)
        launch["gather"](self.table, self.blocks, points, exponents)
        if needs_mean(self.formula):
            launch["measure"](self.table, self.pairs, points, exponents, units, sums)
        launch["units"](self.table, exponents, sums, units)
        to = sums if self.inside else results
        launch["compare"](self.table, self.pairs, points, exponents, units, to)
        if self.inside:
            launch["average"](self.table, self.averages, units, sums, results)
