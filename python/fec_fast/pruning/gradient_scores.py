"""Gradient scores: how much the loss on labelled images would change without a unit, from gradients of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ..graph.groups import CoupledChannels
from ..graph.trace import Trace
from ..utils.arguments import batches_of
from ..utils.batches import check_labels, images_and_labels
from ..utils.computed_weights import owner_of
from ..utils.errors import ArgumentError, InputError
from ..utils.forward import describe_tensors, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.plain_code import as_written
from .criteria import RECONSTRUCTION
from .layer_sides import LayerSide, as_filters

# Images that are used at most; gradients of more of them hardly change an order of channels.
MOST_IMAGES = 1024


def score_by_gradients(
    criterion: str,
    index: ModelIndex,
    trace: Trace,
    sets: Sequence[CoupledChannels],
    calibration: Iterable[Any],
    sides: str,
) -> list[Tensor]:
    r"""Scores every unit by the first- or second-order estimate of the loss that its removal costs.

    The loss is the cross-entropy, in evaluation mode. ``g`` is its gradient with respect to a weight ``w``. A unit
    holds weights of several layers: filters where its channels are made, and with ``sides="both"`` the slices that read
    them. The scores of layers are added up as they are, because gradients already say how much a layer matters.

    ``"taylor"``: the sum over the unit's layers of ``(sum of g * w)^2`` over the unit's weights in the layer, averaged
    over the batches of the calibration; ``g`` is the gradient of the mean loss of a batch (Molchanov et al., Importance
    Estimation for Neural Network Pruning, CVPR 2019, equation 8, the first-order expansion for a group). The two sides
    of a layer are two groups. The published form, for filters alone, is ``sides="producer"``.

    ``"fisher"``: the sum over all weights of the unit of ``w^2 * E[g^2] / 2``, with the mean over images of the squared
    gradient of one image's loss: the saliency of LeCun, Denker & Solla (Optimal Brain Damage, NIPS 1990), ``h w^2 / 2``
    with the second derivative ``h`` replaced by the diagonal of the empirical Fisher information. It takes a backward
    pass for each image.

    Args:
        criterion: ``"taylor"`` or ``"fisher"``.
        index: The index of the model, which is left as it was: it is run with copies of its weights.
        trace: Its trace.
        sets: The coupled sets.
        calibration: Pairs of images ``[B, ...]`` and integer labels ``[B]``; the first 1,024 images are used.
        sides: ``"both"`` or ``"producer"``.

    Returns:
        For each set a float64 CPU tensor ``[units]``.

    Raises:
        InputError: No images, a batch that is not such a pair, a label that is none of the model's classes, a model
            that returns no logits, or a gradient that is NaN or infinite.
        ArgumentError: Not an iterable.
    """
    if not isinstance(calibration, Iterable):
        raise ArgumentError(
            f"criterion={criterion!r} needs images and labels: calibration= is a {type(calibration).__name__}; give a "
            "loader or a list of batches"
        )
    roots = torch.from_numpy(trace.partition.roots.copy())
    consumer_flags = (False, True) if sides == "both" else (False,)
    layer_sides = [LayerSide(use, flag) for use in trace.scored_uses for flag in consumer_flags]
    units_of_sides = [roots[torch.from_numpy(side.labels.copy())] for side in layer_sides]
    parts = [_part_of(index, trace, side) for side in layer_sides]
    names = dict.fromkeys(name for name, _ in filter(None, parts))
    total = torch.zeros(len(roots), dtype=torch.float64)
    steps = 0
    for gradients in _gradients(index, list(names), calibration, criterion, per_image=criterion == "fisher"):
        steps += 1
        products = {name: index.tensors[name].detach() * gradient for name, gradient in gradients.items()}
        for side, units, part in zip(layer_sides, units_of_sides, parts, strict=True):
            if part is None:
                continue
            name, axis = part
            if side.use.values is None:
                terms = as_filters(products[name], axis, side.use.groups).flatten(1).double()
            else:
                terms = products[name].movedim(axis, 0).reshape(len(units), -1).double()
            if criterion == "fisher":
                total.index_add_(0, units, terms.square().sum(1).cpu() / 2)
            else:
                total += torch.zeros_like(total).index_add_(0, units, terms.sum(1).cpu()).square()
    return [total[list(coupled.units)] / steps for coupled in sets]


def _part_of(index: ModelIndex, trace: Trace, side: LayerSide) -> tuple[str, int] | None:
    """The parameter whose products stand for a side, and the axis of its filters or slices.

    That is the weight. Of a computed weight it is the parameter that scales each filter (weight norm: over a filter,
    the products of a direction with its gradient add up to zero, because its length has no effect; those of the scale
    are the products of the weight itself), or the parameter that the weight is computed from.

    Returns:
        Its name and axis; ``None`` where no parameter of the layer has such an axis.
    """
    if side.use.values is None:
        return side.use.weight, side.axis
    roots, found = trace.partition.roots, []
    for (name, axis), labels in trace.axes.items():
        tensor = index.tensors[name]
        is_part = owner_of(name) == side.use.layer and isinstance(tensor, nn.Parameter) and tensor.dim() > 1
        if is_part and np.array_equal(roots[labels], roots[side.labels]):
            is_scale = tensor.numel() == len(labels)
            found.append((not is_scale, name != side.use.weight, name, axis))
    return min(found)[2:] if found else None


def _gradients(
    index: ModelIndex, names: Sequence[str], calibration: Iterable[Any], criterion: str, *, per_image: bool
) -> Iterator[Mapping[str, Tensor]]:
    """The gradients of the loss of each batch, or of each image, by the names of the weights."""
    device = next(iter(index.tensors.values())).device
    weights = {name: index.tensors[name].detach().requires_grad_() for name in names}
    number = 0
    for images, labels in map(images_and_labels, batches_of(calibration, "calibration")):
        used = min(len(images), MOST_IMAGES - number)
        number += used
        for start, end in [(at, at + 1) for at in range(used)] if per_image else [(0, used)]:
            with undisturbed(index), as_written(index), torch.enable_grad():
                try:
                    logits = functional_call(index.model, weights, (images[start:end].to(device, copy=True),))
                except Exception as error:  # of the user's code
                    raise InputError(
                        f"calibration: {type(index.model).__name__} cannot be run on images {list(images.shape)}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                if not isinstance(logits, Tensor) or logits.ndim != 2:
                    raise InputError(
                        f"criterion={criterion!r} needs a classifier: {type(index.model).__name__} returns "
                        f"{describe_tensors(logits)}, not logits [B, classes]; criterion={RECONSTRUCTION!r} needs no "
                        "labels"
                    )
                check_labels(labels[start:end], logits.shape[1], "the calibration")
                loss = functional.cross_entropy(logits, labels[start:end].to(device))
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(names, gradients, strict=True):
                if not bool(torch.isfinite(gradient).all()):
                    raise InputError(
                        f"criterion={criterion!r}: the gradient of {name!r} is NaN or infinite on the calibration: "
                        "check the images' values"
                    )
            yield dict(zip(names, gradients, strict=True))
        if number >= MOST_IMAGES:
            break
    if not number:
        raise InputError("the calibration has no images: give a loader that yields some")
