"""The layers of a model that have filters, and their weights, once they are known to be fit for scoring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..utils.compat import is_traceable_wrapper_subclass
from ..utils.errors import ArgumentError, LayerError, WeightError, nearest
from ..utils.forward import undisturbed

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SCORABLE = (*_CONVS, *TRANSPOSED, nn.Linear)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    scorable = {name: m for name, m in modules.items() if isinstance(m, _SCORABLE) or _is_quantised(m)}
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


def _is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantised layers, which keep a packed weight behind a method."""
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.") and callable(getattr(kind, "weight", None))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (_is_quantised(module) and "Linear" in type(module).__name__)


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

    def refuse(trouble: str, remedy: str) -> WeightError:
        return WeightError(f"layer {name!r} ({type(module).__name__}): its weight {trouble}; {remedy}")

    float_model = "score and prune the float model, then quantise it"
    if _is_quantised(module):
        raise refuse("is quantised", float_model)
    if parametrize.is_parametrized(module, "weight"):
        # Reading a parametrised weight runs code that may have a state, such as a spectral norm's power iteration.
        with undisturbed(module.parametrizations.weight):  # type: ignore[union-attr,arg-type]
            weight = module.weight
    else:
        weight = module.weight
    if not isinstance(weight, Tensor):
        raise refuse(f"is a {type(weight).__name__}", "a tensor is needed")
    if is_lazy(weight):
        raise refuse("is not initialised yet", "run the lazy module once on an input")
    if weight.is_quantized:
        raise refuse("is quantised", float_model)
    if weight.layout != torch.strided:
        raise refuse(f"is sparse ({weight.layout})", "make it dense with weight.to_dense()")
    if weight.device.type == "meta":
        raise refuse("is on the meta device and has no values", "model.to_empty(device='cpu') and load the weights")
    if is_traceable_wrapper_subclass(weight):
        raise refuse(f"is a {type(weight).__name__}", "a plain dense tensor is needed")
    if weight.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise refuse(f"is {str(weight.dtype).removeprefix('torch.')}", f"convert the model to one of {known}")
    if weight.numel() == 0:
        raise refuse(f"is empty, {list(weight.shape)}", "give the layer at least one channel and one filter")
    return weight.detach()
