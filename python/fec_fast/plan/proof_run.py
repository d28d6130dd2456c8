"""Runs of the proof: what a network computes, layer by layer, in float64 and without chance."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import (
    ConvolutionBase,
    NormBase,
    TorchDispatchMode,
    is_transformed,
    storage_id,
    without_dispatch_modes,
)
from ..utils.critical_section import surely_left
from ..utils.errors import ArgumentError, EquivalenceError, InputError
from ..utils.forward import (
    call_model,
    copied_inputs,
    map_tensors,
    plain_operators,
    restored_parameters,
    tensors_in,
    undisturbed,
)
from ..utils.model_index import ModelIndex
from ..utils.outputs import named_tensors_in, tensors_on_modules
from ..utils.random_state import restored_randomness, seed_all
from .kept_statistics import KeptStatistics
from .plan import Plan
from .shapes import weight_name

_OF_SHAPES = (RuntimeError, ValueError, IndexError, AssertionError)  # what code raises that meets fewer channels
_SPATIAL_DIMS = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}  # they may be called without a batch


@dataclass(frozen=True, eq=False)
class Run:
    """What a network computed.

    Attributes:
        outputs: Its output tensors and those that it left on its modules, by name.
        layers: For each layer of :func:`kept_filters`, and each of its calls, one number per kept channel: a random
            combination of what it computed there. Float64.
        read: For each of these layers that reads channels, which of them were not zero everywhere.
        exact: Whether everything was computed in float64.
    """

    outputs: dict[str, Tensor]
    layers: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    read: dict[str, Tensor] = field(default_factory=dict)
    exact: bool = True


def run_network(
    index: ModelIndex,
    inputs: Any,
    layers: Mapping[str, list[int] | None],
    *,
    training: bool,
    double: bool,
    norms: KeptStatistics | None = None,
    foreign: Mapping[int, str] | None = None,
) -> Run:
    """Runs a network and records what its layers compute.

    Args:
        index: The index of a copy that may be run.
        inputs: See :func:`fec_fast.utils.forward.call_model`.
        layers: The layers to record, with the output channels that are compared; ``None`` for all.
        training: Whether it is in training mode.
        double: Whether the copy computes in float64.
        norms: Calls the operators of the original where its norms run over the kept channels alone.
        foreign: What :func:`names_by_storage` returned for the networks themselves.

    Returns:
        What it computed.

    Raises:
        InputError: The network cannot be run on these inputs.
        ArgumentError: The copy reads a parameter of the network that it is a copy of.
    """
    mode = _WithoutChance(double, norms, foreign or {})
    run, given = Run({}), copied_inputs(inputs)
    if double:
        given = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, given)
    with ExitStack() as stack:
        for name, module in index.modules.items():
            if name in layers:
                hook = module.register_forward_hook(_recorder(name, layers[name], run))
                stack.callback(hook.remove)
        stack.enter_context(restored_randomness())
        stack.enter_context(undisturbed(index, training=training))
        stack.enter_context(restored_parameters(index))
        stack.enter_context(plain_operators(index))
        seed_all(0)
        if norms is not None:
            stack.enter_context(norms.running.watching())
        with surely_left(mode):  # not before what the recorders open inside, also where Ctrl-C arrives in between
            outputs = call_model(index.model, given)
        named = [*named_tensors_in(outputs), *tensors_on_modules(index.modules)]
        run.outputs.update({name: tensor.detach() for name, tensor in named})
    if mode.read_foreign is not None:
        raise ArgumentError(
            f"model: a copy of it reads {mode.read_foreign} of the model itself, which its code, a hook or an object "
            "that copies share refers to; so a pruned copy would not use its own weights: let the code reach its "
            "layers by self"
        )
    return Run(run.outputs, run.layers, run.read, double and not mode.met_float32)


def names_by_storage(*networks: ModelIndex) -> dict[int, str]:
    """The names of the networks' parameters by their storage, which no copy of them may read.

    A buffer may be a constant that the code reads elsewhere too.
    """
    return {
        storage_id(tensor): name
        for network in networks
        for name, tensor in network.tensors.items()
        if isinstance(tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.numel()
    }


def kept_filters(modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, list[int] | None]:
    """The layers whose outputs are compared: narrowed convolutions, linear layers, batch and instance norms, and heads.

    Args:
        modules: The modules of the model by name.
        plan: The plan.

    Returns:
        For each layer the output channels that are kept; ``None`` for all.
    """
    layers: dict[str, list[int] | None] = {}
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        weight = weight_name(name, plan.keep)
        narrowed = [weight, *(f"{prefix}{own}" for own in ("bias", "running_mean"))]
        keep = [plan.keep[each] for each in narrowed if each in plan.keep]
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
            continue  # where its channels lie is not known
        if isinstance(module, NormBase) and keep:
            layers[name] = keep[0].get("0")
        elif isinstance(module, ConvolutionBase | nn.Linear) and (keep or name in plan.pinned):
            axes = plan.keep.get(weight or "", {})
            if not getattr(module, "transposed", False):
                layers[name] = axes.get("0")
            elif module.groups == 1:
                layers[name] = axes.get("1")
    return layers


def _recorder(name: str, kept: list[int] | None, run: Run) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not is_transformed(output):
            with without_dispatch_modes():
                keep(module, given, output)

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        channels = _channels_first(module, output.detach())
        if kept is not None and len(channels) > len(kept):  # of the masked original
            channels = channels[kept]
        run.layers[name].append(_combination(channels))
        if not isinstance(module, NormBase) and given and isinstance(given[0], Tensor):
            alive = (_channels_first(module, given[0].detach()) != 0).any(1)
            run.read[name] = alive | run.read[name] if name in run.read else alive

    return record


def _channels_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """The input or output of a layer as ``[C, rest]``; an input without a batch has its channels first."""
    if isinstance(module, nn.Linear):
        width = tensor.shape[-1]
        return tensor.movedim(-1, 0).reshape(width, tensor.numel() // max(1, width))  # some layers have no filters
    if isinstance(module, ConvolutionBase):
        spatial_dims = len(module.kernel_size)
    else:
        of_kind = (number for kind, number in _SPATIAL_DIMS.items() if isinstance(module, kind))
        spatial_dims = next(of_kind, tensor.dim() - 2)
    dim = tensor.dim() - spatial_dims - 1
    return tensor.movedim(dim, 0).flatten(1)


def _combination(channels: Tensor) -> Tensor:
    """A random combination of the elements of each channel, the same for both networks: ``[C, N]`` to ``[C]``."""
    return channels.double() @ _factors(channels.shape[1]).to(channels.device)


@functools.lru_cache(maxsize=64)
def _factors(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 0.5


def _reseed(operands: Any) -> None:
    """Seeds the generators that an operator may draw from. ``torch.manual_seed`` would format a traceback each time."""
    torch.default_generator.manual_seed(0)
    if any(tensor.is_cuda for tensor in tensors_in(operands)):
        torch.cuda.manual_seed_all(0)


class _WithoutChance(TorchDispatchMode):
    """Computes in float64 where the code asks for float32, and replaces random numbers by constants.

    ``model.double()`` converts parameters and buffers only. A ``torch.zeros(...)`` or ``x.to(torch.float32)`` in the
    forward method would still meet them with float32. Random numbers of a shape with channels cannot be the same in
    both networks, so a probability becomes 1 (nothing is dropped) and any other number 0.5.

    Attributes:
        met_float32: Whether anything was computed in float32 nevertheless.
        read_foreign: The name of a parameter that was read and may not be, or ``None``.
    """

    def __init__(self, double: bool, norms: KeptStatistics | None, foreign: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._double, self._norms, self._foreign = double, norms, foreign
        self.met_float32 = False
        self.read_foreign: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for tensor in tensors_in((args, kwargs)):
            if tensor.layout == torch.strided and storage_id(tensor) in self._foreign:
                self.read_foreign = self._foreign[storage_id(tensor)]
        if self._double and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        if func is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if is_random:
            _reseed(args)  # random numbers of equal shapes are equal in both networks, whatever came before
        result = func(*args, **kwargs) if self._norms is None else self._norms.call(func, args, kwargs)
        if is_random and isinstance(result, Tensor) and result.is_floating_point():
            result.fill_(1.0 if "bernoulli" in func.name() else 0.5)
        if not (self._double and isinstance(result, Tensor) and result.dtype == torch.float32):
            return result
        # A float32 result of float32 operands is left alone: it is computed from something that was float32 before.
        if any(tensor.dtype == torch.float32 for tensor in tensors_in((args, kwargs))):
            self.met_float32 = True
            return result
        return result.double()


def check_nan_of_masking(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Checks that masking alone makes no NaN, which other inputs would not change.

    Args:
        pairs: What the masked original and the pruned network computed, by place: outputs, then layers in order.

    Raises:
        EquivalenceError: It does.
    """
    of_mask = [where for where, (full, small) in pairs.items() if full.isnan().any() and not small.isnan().any()]
    if of_mask:
        where = next((where for where in of_mask if where.startswith("layer ")), of_mask[0])
        raise EquivalenceError(
            f"{where} is NaN in the masked original and not in the pruned network, so they cannot be compared: code "
            "before it divides by what is 0 for a channel of zeros, such as a scale by the largest weight of a filter; "
            "keep its channels (ignore=), or leave out the proof (verify=False)"
        )


@contextlib.contextmanager
def errors_of_unreached_parts() -> Iterator[None]:
    """Says what it means that the pruned network cannot be run with drawn weights, with which the original can be."""
    try:
        yield
    except InputError as error:
        if not isinstance(error.__cause__, _OF_SHAPES) or isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        cause = (str(error.__cause__ or error).strip().splitlines() or [""])[0]
        raise EquivalenceError(
            f"the pruned network cannot be run with drawn weights, where the masked original can: {cause}; a part that "
            "the example inputs do not reach may read a layer that is narrower now: give example inputs that reach "
            "every part, or name that layer in ignore="
        ) from error
