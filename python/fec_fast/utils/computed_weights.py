"""Weights that torch's tools compute from others at every call: what computes them, and the attributes they lie in.

Three kinds of tools do so: a parametrization (``torch.nn.utils.parametrize``), the hooks of ``torch.nn.utils``
(``weight_norm``, ``spectral_norm``), and the masks of ``torch.nn.utils.prune``. The hooks leave the computed weight in
a plain attribute of the module, which is neither a parameter nor a buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .compat import forward_pre_hooks, own_modules, own_parameters, pruned_attribute
from .model_index import ModelIndex

_PARAMETRIZED = ".parametrizations."


class Computation(NamedTuple):
    """How the weight of a layer is computed.

    Attributes:
        layer: The name of the layer.
        kind: What computes it, such as ``"weight norm"``.
        remedy: How it becomes an ordinary parameter, an imperative clause; ``layer`` in it stands for the module.
    """

    layer: str
    kind: str
    remedy: str


def owner_of(name: str) -> str:
    """The layer that a parameter belongs to.

    Args:
        name: The name of the parameter in the model.

    Returns:
        The name of the module that holds it; of a parametrized one, the module whose weight it is.
    """
    layer, parametrized, _ = f".{name}".partition(_PARAMETRIZED)
    return layer[1:] if parametrized else name.rpartition(".")[0]


def layer_with(weight: str) -> str:
    """What a layer with a weight of its own is called: a module may have several, as a ``ParameterList`` has.

    Args:
        weight: The name of the parameter in the model.

    Returns:
        The name of the module, if it calls the parameter ``weight``; else that of the parameter.
    """
    layer, _, own = weight.rpartition(".")
    return layer if layer and own == "weight" else weight


def computation_of(modules: Mapping[str, nn.Module], name: str) -> Computation:
    """What computes a weight from a parameter, and how to undo it.

    Args:
        modules: The modules of the model by name.
        name: The name of the parameter.

    Returns:
        The layer, what computes its weight, and the remedy.
    """
    layer = owner_of(name)
    module, own = modules[layer], name.removeprefix(f"{layer}.")
    if f".{own}".startswith(_PARAMETRIZED):
        own = own.split(".")[1]
        parametrizations = modules.get(f"{layer}.parametrizations.{own}" if layer else f"parametrizations.{own}")
        remedy = f"call torch.nn.utils.parametrize.remove_parametrizations(layer, {own!r}) before pruning"
        applied = parametrizations if isinstance(parametrizations, ParametrizationList) else ()
        kinds = " and ".join(map(_in_words, applied))
        return Computation(layer, kinds or "a parametrization", remedy)
    for hook in forward_pre_hooks(module):
        target = _target(hook)
        if target is None or not own.startswith(target):
            continue
        if isinstance(hook, BasePruningMethod):
            return Computation(
                layer, "a pruning mask", f"call torch.nn.utils.prune.remove(layer, {target!r}) before pruning"
            )
        function = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
        argument = "layer" if target == "weight" else f"layer, {target!r}"
        return Computation(
            layer, function.replace("_", " "), f"call torch.nn.utils.remove_{function}({argument}) before pruning"
        )
    where = f"the code of {type(module).__name__}"
    return Computation(layer, where, "store the computed weight in an ordinary layer before pruning")


def computation_of_layer(modules: Mapping[str, nn.Module], layer: str) -> Computation | None:
    """What computes the weight of a layer.

    Args:
        modules: The modules of the model by name.
        layer: The name of a module.

    Returns:
        See :func:`computation_of`; ``None`` where no tool of torch computes a weight of the module.
    """
    while layer in modules:
        parts = weight_parts(modules[layer])
        if parts and "weight" not in parts:
            return computation_of(modules, f"{layer}.{next(iter(parts))}".removeprefix("."))
        parent, within, _ = layer.partition(_PARAMETRIZED.rstrip("."))
        if not within:
            return None
        layer = parent
    return None


def _in_words(parametrization: nn.Module) -> str:
    """The class of a parametrization in words: that of ``_WeightNorm`` is "weight norm"."""
    name = type(parametrization).__name__.lstrip("_")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _target(hook: Any) -> str | None:
    """The attribute that a hook computes; ``None`` for another hook."""
    if isinstance(hook, WeightNorm | SpectralNorm):
        return hook.name
    if isinstance(hook, BasePruningMethod):
        return pruned_attribute(hook)
    return None


def computed_attributes(module: nn.Module) -> dict[str, Tensor]:
    """The weights that hooks of torch have left in plain attributes of a module.

    Args:
        module: The module.

    Returns:
        The tensors by attribute.
    """
    targets = [target for hook in forward_pre_hooks(module) if (target := _target(hook)) is not None]
    return {target: value for target in targets if isinstance(value := vars(module).get(target), Tensor)}


def memo_of_computed(index: ModelIndex) -> dict[int, Any]:
    """A memo for ``copy.deepcopy``, which cannot copy the results of operators: those that hooks leave in attributes.

    Args:
        index: The index of the model that is to be copied.

    Returns:
        Copies of them, detached, by the identity of the originals.
    """
    return {
        id(tensor): tensor.detach().clone()
        for module in index.modules.values()
        for tensor in computed_attributes(module).values()
    }


def recompute(modules: Iterable[nn.Module]) -> None:
    """Lets the hooks of torch compute weights anew, from parameters that have changed.

    Weights under spectral norm are left out: the parameters of such a layer are not narrowed.

    Args:
        modules: The modules.
    """
    for module in modules:
        for hook in forward_pre_hooks(module):
            if isinstance(hook, WeightNorm | BasePruningMethod):
                hook(module, None)


def weight_parts(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the weight of a layer consists of, or is computed from by torch's tools.

    Args:
        module: A convolution or linear layer.

    Returns:
        The parameters by name in the module: ``weight``; or ``weight_g`` and ``weight_v``, ``weight_orig``, those of
        ``parametrizations.weight``; none where the layer has no such parameter.
    """
    own = own_parameters(module)
    if own.get("weight") is not None:
        return {"weight": own["weight"]}  # type: ignore[dict-item]
    parametrized = own_modules(module).get("parametrizations")
    of_weight = None if parametrized is None else own_modules(parametrized).get("weight")
    if of_weight is not None:
        return {
            f"parametrizations.weight.{name}": parameter
            for name, parameter in own_parameters(of_weight).items()
            if parameter is not None
        }
    return {name: parameter for name, parameter in own.items() if name.startswith("weight_") and parameter is not None}
