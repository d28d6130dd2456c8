"""Layers with filters: which of a model are scored, and their weights, checked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..utils.errors import ArgumentError, LayerError, WeightError, nearest
from ..utils.forward import undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import modules_of
from ..utils.weights import QUANTISED_LAYER, Trouble, is_quantised_layer, weight_trouble

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS_WITH_FILTERS = (*_CONVS, *TRANSPOSED, nn.Linear)


def select(
    index: ModelIndex, layers: Sequence[str | type[nn.Module]] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the layers with filters into those to be scored and the others.

    Args:
        index: The index of the model.
        layers: ``None`` for all convolutions, or names of layers and classes of modules.

    Returns:
        The modules to be scored by name, and the names of the others with the reason why they are not.

    Raises:
        ArgumentError: ``layers`` is not a list of names and module classes.
        LayerError: A name does not exist, or a layer has no filters.
    """
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise ArgumentError(f"layers={layers!r}: give a list of layer names and module classes")
    scorable = {name: module for name, module in index.modules.items() if _has_filters(module)}
    wanted: set[str] = set()
    if layers is None:
        wanted = {name for name, module in scorable.items() if not _is_linear(module)}
    else:
        for layer in layers:
            wanted |= _named_by(layer, index, scorable)
    chosen, unscored = {}, {}
    for name, module in scorable.items():
        if name in wanted:
            chosen[name] = module
        elif layers is None:
            unscored[name] = "linear layers are scored on request: layers=[nn.Linear, ...]"
        else:
            unscored[name] = "not asked for"
    return chosen, unscored


def _named_by(layer: str | type[nn.Module], index: ModelIndex, scorable: dict[str, nn.Module]) -> set[str]:
    """Finds the names of the layers that one item of ``layers`` selects."""
    if isinstance(layer, str):
        if layer in scorable:
            return {layer}
        module = modules_of(index.model, every_name=True).get(layer)
        if module is None:
            raise LayerError(f"no layer {layer!r} in the {type(index.model).__name__}; {nearest(layer, scorable)}")
        first = next(name for name, other in index.modules.items() if other is module)
        if first in scorable:
            raise LayerError(f"layer {layer!r} is the same module as {first!r}; give that name")
        raise LayerError(f"layer {layer!r} is a {type(module).__name__} and has no filters; {nearest(layer, scorable)}")
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        names = {name for name, module in scorable.items() if isinstance(module, layer)}
        if not names and not issubclass(layer, _LAYERS_WITH_FILTERS):
            raise LayerError(f"layers of class {layer.__name__} have no filters; give convolution classes or nn.Linear")
        return names
    raise ArgumentError(f"layers contains {layer!r}: give layer names and module classes")


def _has_filters(module: nn.Module) -> bool:
    """Tells whether a layer has filters. A quantised one counts, so that it is refused and not silently left out."""
    if is_quantised_layer(module):
        return hasattr(module, "weight") and any(kind in type(module).__name__ for kind in ("Conv", "Linear"))
    return isinstance(module, _LAYERS_WITH_FILTERS)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (is_quantised_layer(module) and "Linear" in type(module).__name__)


def read_weight(name: str, module: nn.Module) -> Tensor:
    """Reads the weight of a layer.

    Args:
        name: The name of the layer, for messages.
        module: The layer.

    Returns:
        The weight, detached: dense, with values, of a floating-point dtype, on its own device.

    Raises:
        WeightError: The weight is unfit (:func:`fec_fast.utils.weights.weight_trouble`); the message names the layer
            and the remedy.
    """

    def refuse(trouble: Trouble) -> WeightError:
        message = f"layer {name!r} ({type(module).__name__}): its weight {trouble.what}; {trouble.remedy}"
        return WeightError(message, layer=name)

    if is_quantised_layer(module):
        raise refuse(QUANTISED_LAYER)
    if parametrize.is_parametrized(module, "weight"):
        # Reading a parametrised weight runs code that may change a buffer, such as a spectral norm's power iteration.
        with undisturbed(module.parametrizations.weight):  # type: ignore[union-attr,arg-type]
            weight = module.weight
    else:
        weight = module.weight
    if not isinstance(weight, Tensor):
        raise refuse(Trouble(f"is a {type(weight).__name__}", "a tensor is needed"))
    trouble = weight_trouble(weight)
    if trouble is not None:
        raise refuse(trouble)
    return weight.detach()
