"""Shapes of a model's parameters and buffers: the fingerprint they give, and the shapes that a plan leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence

from ..utils.model_index import ModelIndex

# The tensors that have the shape of a layer's weight: the weight itself, or what torch's tools compute it from.
_WEIGHTS = (
    *("weight", "weight_orig", "weight_v", "parametrizations.weight.original"),
    *("parametrizations.weight.original1", "parametrizations.weight.original0"),
)


def weight_name(layer: str, names: Container[str]) -> str | None:
    """The tensor that has the shape of a layer's weight, also where the weight is computed from others.

    Args:
        layer: The name of the layer.
        names: The names of some tensors.

    Returns:
        The first of the names that it may have; ``None`` if there is none of them.
    """
    prefix = f"{layer}." if layer else ""
    return next((prefix + own for own in _WEIGHTS if prefix + own in names), None)


def reading_name(layer: str, names: Container[str]) -> str | None:
    """The weight by which a recurrent layer, or a recurrent cell, reads its inputs.

    Args:
        layer: The name of the layer.
        names: The names of some tensors.

    Returns:
        The name of the weight, ``[gates, inputs]``; ``None`` if it is none of the names.
    """
    prefix = f"{layer}." if layer else ""
    return next((prefix + own for own in ("weight_ih_l0", "weight_ih") if prefix + own in names), None)


def fingerprint(index: ModelIndex) -> str:
    """Hashes the names and shapes of a model's parameters and persistent buffers.

    Args:
        index: The index of the model.

    Returns:
        ``"sha256:..."``. Models with equal fingerprints can be pruned by the same plans, whatever their values, dtype
        and device.
    """
    return shapes_fingerprint(persistent_shapes(index))


def persistent_shapes(index: ModelIndex) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters and of the buffers that its state dict has.

    Args:
        index: The index of the model.

    Returns:
        Names to shapes. Other buffers are left out: a run may make them, or resize them.
    """
    return {name: tuple(tensor.shape) for name, tensor in index.tensors.items() if name not in index.not_persistent}


def shapes_fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """Hashes names and shapes, as :func:`fingerprint` does for those of a model.

    Args:
        shapes: The shape of each parameter and buffer by name.

    Returns:
        ``"sha256:..."``.
    """
    text = "\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def pruned_shapes(
    shapes: Mapping[str, Sequence[int]], keep: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, tuple[int, ...]]:
    """Computes the shapes that tensors have after pruning.

    Args:
        shapes: The shape before pruning of each tensor that becomes smaller.
        keep: The kept indices of each of these tensors, by axis (as text).

    Returns:
        The shape after pruning of each of these tensors.
    """
    return {
        name: tuple(len(keep[name][str(axis)]) if str(axis) in keep[name] else size for axis, size in enumerate(shape))
        for name, shape in shapes.items()
    }
