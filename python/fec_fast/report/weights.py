"""Pictures of weights: the filters of the first layer, and the distances between the channels of a filter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..plan.plan import Plan
from ..plan.widths import LayerWidth
from ..scoring.formula import Formula
from ..scoring.layers import TRANSPOSED, read_weight
from ..scoring.reference import distances
from ..utils.errors import LayerError, WeightError, nearest
from ..utils.html import Html
from ..utils.text import counted
from .figures import to_image

# The side of a heat map in pixels: a larger matrix is averaged over blocks.
_SIDE = 64
_MOST_FILTERS = 64
# As `fec_fast.channel_distances` compares the channels of a filter.
_CHANNELS = Formula("rms", axis="channels")


def filters_of_layer(original: nn.Module, layer: str) -> Tensor | None:
    """The weight of a convolution before pruning, as filters.

    Args:
        original: The network before pruning.
        layer: The name of the layer.

    Returns:
        Float64 ``[filters, channels, *kernel]`` on the CPU; ``None`` where there is no such layer, or its weight is
        computed from others or cannot be read.
    """
    try:
        module = original.get_submodule(layer)
        weight = read_weight(layer, module) if isinstance(getattr(module, "weight", None), Tensor) else None
    except (AttributeError, WeightError):
        return None
    if weight is None or weight.dim() < 2:
        return None
    weight = weight.to("cpu", torch.float64)
    if isinstance(module, TRANSPOSED):
        grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
        weight = grouped.transpose(1, 2).flatten(0, 1)
    return weight


def first_layer(original: nn.Module, plan: Plan, layers: Sequence[LayerWidth]) -> list[tuple[str, Html]]:
    """Pictures of the filters that read the image, those that are kept and those that are removed.

    Args:
        original: The network before pruning.
        plan: The plan.
        layers: The layers of the plan, in the order of the model.

    Returns:
        Captions and pictures: of the kept filters, and of the removed ones if there are any. Nothing where no layer
        reads one or three channels with a kernel of two dimensions.
    """
    for layer in layers:
        weight = filters_of_layer(original, layer.name)
        if weight is None or weight.dim() != 4 or weight.shape[1] not in (1, 3) or min(weight.shape[2:]) < 2:
            continue
        removed = removed_filters(plan, layer.name)
        pictures = []
        # One scale for all: a weak filter looks weak.
        limit = float(weight.abs().max()) or 1.0
        for state, wanted in (("kept", False), ("removed", True)):
            chosen = [number for number in range(len(weight)) if (number in removed) is wanted]
            if chosen:
                shown = "" if len(chosen) <= _MOST_FILTERS else f", the first {_MOST_FILTERS} shown"
                caption = f"{layer.name}: {counted(len(chosen), f'{state} filter')}{shown}"
                mosaic = _mosaic(weight[chosen[:_MOST_FILTERS]], limit)
                scale = max(1, 28 // weight.shape[-1])
                text = f"{caption}. Each square is one filter; grey is zero."
                pictures.append((caption, to_image(mosaic, text, scale=scale)))
        return pictures
    return []


def removed_filters(plan: Plan, layer: str) -> set[int]:
    """The filters of a layer that a plan removes.

    Args:
        plan: The plan.
        layer: The name of the layer.

    Returns:
        Their positions before pruning.
    """
    removed: set[int] = set()
    for record in plan.sets:
        gone = set(record["removed"])
        removed |= {position for position, unit in enumerate(record["filters"].get(layer, ())) if unit in gone}
    return removed


def heat_maps(original: nn.Module, plan: Plan, layer: str, chosen: Sequence[int] = ()) -> list[tuple[str, Html]]:
    """Heat maps of distances between the channels of filters.

    Args:
        original: The network before pruning.
        plan: The plan.
        layer: The name of a layer.
        chosen: Positions of filters; none: the filter with the lowest and that with the highest score.

    Returns:
        Captions and pictures. Nothing for a layer whose filters have fewer than two channels.

    Raises:
        LayerError: A filter is chosen that the layer does not have, or of a layer without such distances.
    """
    weight = filters_of_layer(original, layer)
    if weight is None or weight.dim() < 3 or weight.shape[1] < 2:
        if chosen:
            raise LayerError(f"filters: layer {layer!r} has no filters with several channels to compare")
        return []
    for number in chosen:
        if number not in range(len(weight)):
            raise LayerError(f"filters: {layer!r} has the filters 0 to {len(weight) - 1}, not {number}")
    scores = _scores(plan, layer)
    if not chosen:
        ranked = sorted(scores, key=lambda number: (scores[number], number)) or [0]
        chosen = list(dict.fromkeys((ranked[0], ranked[-1])))
    removed = removed_filters(plan, layer)
    maps = []
    for number in chosen:
        matrix = distances(weight[number : number + 1], _CHANNELS)[0].numpy()
        largest = float(matrix.max())
        score = f", score {scores[number]:.4g}" if number in scores else ""
        state = "removed" if number in removed else "kept"
        caption = f"filter {number}, {state}{score}; distances from 0 (dark) to {largest:.3g} (bright)"
        picture = _averaged(matrix) / (largest or 1.0)
        scale = max(1, 160 // len(picture))
        text = f"Heat map of the distances between the {len(matrix)} channels of {layer}, {caption}"
        maps.append((caption, to_image(picture, text, scale=scale)))
    return maps


def check_filter_names(plan: Plan, filters: Sequence[tuple[str, int]]) -> None:
    """Checks that filters which are asked for are of layers that the plan knows.

    Args:
        plan: The plan.
        filters: Layers and positions of filters.

    Raises:
        LayerError: There is no such layer.
    """
    names = dict.fromkeys([name for record in plan.sets for name in record["filters"]] + list(plan.pinned))
    for layer, _ in filters:
        if layer not in names:
            raise LayerError(f"filters: no layer {layer!r} in the plan; {nearest(layer, names)}")


def _scores(plan: Plan, layer: str) -> dict[int, float]:
    """The score of each filter in the last round that decided on it."""
    scores: dict[int, float] = {}
    for record in sorted(plan.sets, key=lambda record: int(record["round"])):
        for position, unit in enumerate(record["filters"].get(layer, ())):
            if unit is not None:
                scores[position] = float(record["scores"][unit])
    return scores


def _averaged(matrix: np.ndarray) -> np.ndarray:
    """A square matrix of at most ``_SIDE`` rows: of a larger one the means of blocks."""
    size = len(matrix)
    if size <= _SIDE:
        return matrix
    edges = np.linspace(0, size, _SIDE + 1).round().astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(matrix, edges, 0), edges, 1)
    lengths = np.diff([*edges, size])
    return np.asarray(sums / np.outer(lengths, lengths))


def _mosaic(filters: Tensor, limit: float) -> np.ndarray:
    """Filters ``[N, 1 or 3, h, w]`` side by side with gaps that are clear, as uint8 ``[height, width, 4]``."""
    count, _, height, width = filters.shape
    columns = min(count, 8)
    rows = -(-count // columns)
    picture = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    pixels = (127.5 + 127.5 * filters.expand(-1, 3, -1, -1) / limit).round().clamp(0, 255).to(torch.uint8)
    for number, pixel in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        picture[top : top + height, left : left + width, :3] = pixel
        picture[top : top + height, left : left + width, 3] = 255
    return picture
