"""The layers of a model that have filters, and their weights, once they are known to be fit for scoring."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..utils.errors import ArgumentError, LayerError, WeightError, nearest
from ..utils.forward import undisturbed
from ..utils.weights import QUANTISED_LAYER, Trouble, is_quantised_layer, weight_trouble

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SCORABLE = (*_CONVS, *TRANSPOSED, nn.Linear)


def select(
    model: nn.Module, layers: Sequence[str | type[nn.Module]] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the layers with filters into those asked for and the others.

    Args:
        model: The model, not wrapped.
        layers: As for :func:`fec_fast.score_model`.

    Returns:
        The modules asked for by name, and the names of the others with the reason they were left out.

    Raises:
        ArgumentError: ``layers`` is not a list of names and module classes.
        LayerError: A name that does not exist, or a layer without filters.
    """
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise ArgumentError(f"layers={layers!r}: give a list of layer names and module classes")
    modules = dict(model.named_modules())
    scorable = {name: m for name, m in modules.items() if _has_filters(m)}
    wanted: set[str] = set()
    if layers is None:
        wanted = {name for name, module in scorable.items() if not _is_linear(module)}
    else:
        for layer in layers:
            wanted |= _named_by(layer, model, modules, scorable)
    chosen, unscored = {}, {}
    for name, module in scorable.items():
        if name in wanted:
            chosen[name] = module
        elif layers is None:
            unscored[name] = "linear layers are scored on request: layers=[nn.Linear, ...]"
        else:
            unscored[name] = "not asked for"
    return chosen, unscored


def _named_by(
    layer: str | type[nn.Module], model: nn.Module, modules: dict[str, nn.Module], scorable: dict[str, nn.Module]
) -> set[str]:
    """The names of the layers that one item of ``layers`` stands for."""
    if isinstance(layer, str):
        if layer in scorable:
            return {layer}
        module = dict(model.named_modules(remove_duplicate=False)).get(layer)
        if module is None:
            raise LayerError(f"no layer {layer!r} in the {type(model).__name__}; {nearest(layer, scorable)}")
        first = next(name for name, other in modules.items() if other is module)
        if first in scorable:
            raise LayerError(f"layer {layer!r} is the same module as {first!r}; give that name")
        raise LayerError(f"layer {layer!r} is a {type(module).__name__} and has no filters; {nearest(layer, scorable)}")
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        found = {name for name, module in scorable.items() if isinstance(module, layer)}
        if not found and not issubclass(layer, _SCORABLE):
            raise LayerError(f"layers of class {layer.__name__} have no filters; give convolution classes or nn.Linear")
        return found
    raise ArgumentError(f"layers contains {layer!r}: give layer names and module classes")


def _has_filters(module: nn.Module) -> bool:
    """Whether a layer has filters, be they quantised: such a layer is refused rather than left out in silence."""
    if is_quantised_layer(module):
        return hasattr(module, "weight") and any(kind in type(module).__name__ for kind in ("Conv", "Linear"))
    return isinstance(module, _SCORABLE)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (is_quantised_layer(module) and "Linear" in type(module).__name__)


def read_weight(name: str, module: nn.Module) -> Tensor:
    """Reads the weight of a layer.

    Args:
        name: Of the layer, for messages.
        module: The layer.

    Returns:
        The weight, detached: dense, with values, of a floating-point dtype, on whatever device it is.

    Raises:
        WeightError: The weight is something else; the message names the layer and the remedy.
    """

    def refuse(trouble: Trouble) -> WeightError:
        message = f"layer {name!r} ({type(module).__name__}): its weight {trouble.what}; {trouble.remedy}"
        return WeightError(message, layer=name)

    if is_quantised_layer(module):
        raise refuse(QUANTISED_LAYER)
    if parametrize.is_parametrized(module, "weight"):
        # Reading a parametrised weight runs code that may have a state, such as a spectral norm's power iteration.
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
