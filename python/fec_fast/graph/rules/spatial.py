"""How channel labels pass through operators that cut, pick, sample, pool or pad places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import operator_name, without_dispatch_modes
from .. import labels as lb
from ..dispatch_mode import Tracer
from .registry import argument, keep, moved, opaque, results, rule


@rule("slice", "select", "split", "split_with_sizes", "unbind", "roll")
def take(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Cuts or shifts along a dimension; channels cut at fixed positions must all stay."""
    source = args[0]
    plane, vanishes = tracer.plane(source)
    pieces = results(out)
    if plane.dim is None:
        keep(tracer, pieces, plane.labels, None, vanishes)
        return
    rolled = argument(func, args, kwargs, "dims")
    cut = [dim % source.dim() for dim in (rolled if rolled is not None else [argument(func, args, kwargs, "dim")])]
    if (pieces[0].shape != source.shape or rolled is not None) and (plane.dim in cut or not cut):
        tracer.pin(
            source,
            f"{func} cuts its channels at fixed positions",
            f"{func} cuts channels at fixed positions: they keep their width",
        )
    with without_dispatch_modes():
        labels = results(func(plane.tensor(), *args[1:], **kwargs))
    for piece, of_piece in zip(pieces, labels, strict=True):
        there = lb.LabelMap.from_tensor(of_piece)
        assert isinstance(there, lb.LabelMap)  # a cut brings no new dimension
        tracer.put(piece, there, vanishes)


@rule(
    *("max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool3d_with_indices"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "reflection_pad2d", "replication_pad2d"),
)
def window(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Works inside each channel's own map."""
    plane, vanishes = tracer.plane(args[0])
    name = operator_name(func)
    spatial = next(int(digit) for digit in reversed(name.replace("_with_indices", "")) if digit.isdigit())
    if plane.dim is not None and plane.dim >= len(plane.shape) - spatial:
        opaque(tracer, func, args, kwargs, out, "works across channels here")
        return
    keep(tracer, out, plane.labels, plane.dim, vanishes)


@rule("grid_sampler_2d", "grid_sampler_3d", "torchvision::roi_align", "torchvision::roi_pool")
def sample(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Samples each channel's own map at places that other tensors name."""
    plane, vanishes = tracer.plane(args[0])
    if plane.dim not in (None, 1) or out.numel() == 0:
        opaque(tracer, func, args, kwargs, out, "samples across channels here" if out.numel() else "found nothing")
        return
    tracer.pin(args[1:], f"it says where {func} samples", f"{func} keeps the width of what says where to sample")
    keep(tracer, out, plane.labels, plane.dim, vanishes)


@rule("pixel_shuffle", "pixel_unshuffle")
def shuffle_pixels(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Trades channels for pixels: the channels that make one map, or are made of one, stand or fall together."""
    plane, vanishes = tracer.plane(args[0])
    line, dim = plane.labels, plane.dim
    if dim is None:
        keep(tracer, out, line, None, vanishes)
        return
    if dim != len(plane.shape) - 3:
        opaque(tracer, func, args, kwargs, out, "works across channels here")
        return
    square = args[1] ** 2
    if operator_name(func) == "aten::pixel_unshuffle":
        keep(tracer, out, np.repeat(line, square), dim, vanishes)
        return
    firsts = np.repeat(line[::square], square)
    tracer.sets.unite(firsts, line, f"it is shuffled with channels of fixed width in {func}")
    keep(tracer, out, line[::square], dim, vanishes)


@rule("index")
def index(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Picks places by tensors of indices; channels picked by number must all stay."""
    source, indices = args
    plane, vanishes = tracer.plane(source)
    line, dim = plane.labels, plane.dim
    at = 0
    for picked in indices:
        span = picked.dim() if isinstance(picked, Tensor) and picked.dtype in (torch.bool, torch.uint8) else 1
        if picked is not None and dim is not None and at <= dim < at + span:
            opaque(tracer, func, args, kwargs, out, "picks channels by their numbers")
            return
        at += span
    for picked in indices:
        if picked is not None:
            tracer.pin(picked, f"it says what {func} picks", f"{func} keeps the width of what says what to pick")
    if dim is None or out.numel() == 0:
        keep(tracer, out, line if dim is None else np.array([lb.FIXED]), None, vanishes and dim is None)
        if dim is not None:
            tracer.pin(source, f"it feeds {func}, which found nothing")
        return
    there = moved(plane, func, indices)
    assert isinstance(there, lb.LabelMap)  # places are picked, channels stay beside one another
    tracer.put(out, there, vanishes)


@rule("constant_pad_nd")
def pad(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Pads; channels that are added have a number written in the model's code and must stay."""
    plane, vanishes = tracer.plane(args[0])
    line, dim = plane.labels, plane.dim
    value = argument(func, args, kwargs, "value") or 0
    amounts = list(args[1])
    for position in range(len(amounts) // 2):
        axis = len(plane.shape) - 1 - position
        before, after = amounts[2 * position : 2 * position + 2]
        if dim == axis:
            if min(before, after) < 0:
                opaque(tracer, func, args, kwargs, out, "crops channels by a fixed number")
                return
            line = np.pad(line, (before, after), constant_values=lb.FIXED)
        elif dim is None and line[0] not in (lb.FREE, lb.FIXED) and before + after and plane.shape[axis] == 1:
            opaque(tracer, func, args, kwargs, out, "pads a single channel")
            return
    keep(tracer, out, line, dim, vanishes and value == 0)
