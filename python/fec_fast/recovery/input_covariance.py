"""Input covariances: how the inputs of every layer vary together over calibration images, from one run of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.forward import call_model, map_tensors, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.precision import full_float32, without_autocast
from .calibration import count_images, image_seeds
from .layer_calls import LayerCall, LayerCallMode, WeightWay
from .rows import input_rows, output_dims, spread_positions, weight_matrices

# Rows per layer: this many for each column of its system, within these limits.
_ROWS_PER_COLUMN = 4
_FEWEST_ROWS, _MOST_ROWS = 2_000, 20_000


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """The inputs of a layer, as they were seen.

    Attributes:
        covariance: float64 ``[parts, columns, columns]``, around the mean, on the CPU.
        weight: float64 ``[parts, columns, slots * outputs / groups]``: what the columns are multiplied by.
        shrinkage: float64 ``[parts]``, in [0, 1]: how far the covariance should be drawn to a multiple of the unit
            matrix, because images are few (:func:`gather_input_covariances`).
    """

    covariance: Tensor
    weight: Tensor
    shrinkage: Tensor


def gather_input_covariances(
    index: ModelIndex, batches: Sequence[Any], slots: Mapping[WeightWay, Tensor | None]
) -> dict[WeightWay, LayerInputs]:
    """Runs a model over calibration images and gathers the covariance of the rows that layers read.

    A row is what one output position of a layer reads (:func:`fec_fast.recovery.rows.input_rows`), and its entries are
    the columns; each group of the layer is a part of its own. In a wide layer the covariance of all columns is too
    large. Its columns can be joined then: the entries of one channel (the taps of a kernel, the positions of a flatten)
    become rows of their own, each with one column per channel, and the covariance is the mean over them. What the
    entries of different taps have in common is left out. And they can be divided into parts, without what columns of
    different parts have in common. A weight that is used in several ways (by a convolution, and by a transposed one, as
    in a tied autoencoder) is a layer of its own in each: its rows have other columns there.

    Products are computed in the inputs' precision, float32 at least, and added up in float64. The rows of one image are
    alike, so the sample is the image: the shrinkage is the optimal one of Ledoit & Wolf (A well-conditioned estimator
    for large-dimensional covariance matrices, 2004), with ``x x'`` of a row replaced by its mean over the rows of an
    image. It grows as images get few, and for layers that see few positions.

    Args:
        index: The index of the model, which is left as it was.
        batches: Inputs of the model, see :func:`fec_fast.recovery.calibration.calibration_batches`.
        slots: The wanted layers: their weights, and how these are used. ``None`` keeps all columns, and the groups as
            parts. Int64 ``[parts, columns, slots]`` joins and divides: for each column of the result those of a row,
            counted through all groups, ``-1`` for none.

    Returns:
        By the way of the weight, for every wanted layer that was seen.

    Raises:
        InputError: The model cannot be run on a batch.
    """
    images = sum(map(count_images, batches))
    device = next(iter(index.tensors.values())).device
    mode = _CovarianceMode(index, slots, images)
    with undisturbed(index), full_float32():
        for batch in batches:
            mode.seeds = image_seeds(batch)
            inputs = map_tensors(lambda leaf: leaf.to(device, copy=True), batch)
            with mode:
                call_model(index.model, inputs, "the images")
    return {way: sums.layer_inputs() for way, sums in mode.sums.items()}


class _CovarianceMode(LayerCallMode):
    """Adds up the rows of the wanted layers."""

    def __init__(self, index: ModelIndex, slots: Mapping[WeightWay, Tensor | None], images: int) -> None:
        super().__init__(index)
        self.seeds = torch.zeros(0, dtype=torch.int64)
        self.sums: dict[WeightWay, _Sums] = {}
        self._slots = slots
        self._images = images

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Takes the rows of a call."""
        way = call.way
        if way not in self._slots:
            return
        slots = self._slots[way]
        if way not in self.sums:
            self.sums[way] = _Sums(call, slots)
        shape = output_dims(call, output)
        columns = self.sums[way].columns
        rows = min(max(_ROWS_PER_COLUMN * columns, _FEWEST_ROWS), _MOST_ROWS)
        seeds = self.seeds if len(self.seeds) == shape[0] else torch.arange(shape[0])
        share = len(self.seeds) / self._images
        positions = spread_positions(shape, max(1, round(rows * share)), seeds)
        with without_autocast():  # that of the model's own forward
            self.sums[way].add(input_rows(call, positions), len(set(positions.item.tolist())), slots)


class _Sums:
    """Sums over the rows of one layer."""

    def __init__(self, call: LayerCall, slots: Tensor | None) -> None:
        weight = weight_matrices(call, call.weight.detach()).to("cpu", torch.float64)
        if slots is not None:
            columns = weight.flatten(0, 1)
            weight = torch.cat([columns, columns.new_zeros(1, columns.shape[1])])[slots].flatten(2)
        self.weight = weight
        self.columns = weight.shape[1]
        self._origin: Tensor | None = None
        self._rows = self._items = 0
        self._sum = weight.new_zeros(len(weight), self.columns)
        self._products = weight.new_zeros(len(weight), self.columns, self.columns)
        self._squares = weight.new_zeros(len(weight))

    def add(self, rows: Tensor, items: int, slots: Tensor | None) -> None:
        """Adds rows ``[groups, items * n, columns of a group]``, those of an item next to one another."""
        if slots is not None:
            columns = torch.cat([rows.transpose(1, 2).flatten(0, 1), rows.new_zeros(1, rows.shape[1])])
            rows = columns[slots.to(rows.device)].permute(0, 3, 2, 1).flatten(1, 2)  # [parts, rows * slots, columns]
        if self._origin is None:  # near the mean: float32 products of large means would lose the variances
            self._origin = rows.mean(1, keepdim=True)
        rows = rows - self._origin
        self._sum += rows.sum(1, dtype=torch.float64).cpu()
        self._products += (rows.mT @ rows).double().cpu()
        of_item = rows.reshape(len(rows), items, -1, self.columns)
        each = of_item.shape[2]
        products = of_item @ of_item.mT if each < self.columns else of_item.mT @ of_item
        self._squares += products.square().sum((1, 2, 3), dtype=torch.float64).cpu() / each**2
        self._rows += rows.shape[1]
        self._items += items

    def layer_inputs(self) -> LayerInputs:
        """The covariance, and its optimal shrinkage."""
        mean = self._sum / self._rows
        covariance = self._products / self._rows - mean[:, :, None] * mean[:, None, :]
        identity = covariance.diagonal(dim1=1, dim2=2).mean(1)
        square = covariance.square().sum((1, 2))
        spread = square - self.columns * identity.square()
        noise = (self._squares / self._items - square).clamp(min=0) / self._items
        shrinkage = torch.where(spread > 0, noise / spread, 1.0).clamp(0, 1)
        return LayerInputs(covariance, self.weight, shrinkage)
