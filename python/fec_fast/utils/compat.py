"""Private interfaces of torch and accelerate, in one place: each entry says which public interface is missing.

No other module of the package imports or reads an underscore name of another library (tests/repo/test_layers.py).
Checked with torch 2.6 to 2.14 and accelerate 1.7 to 1.15.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

# BatchNormBase, NormBase (batch and instance norms), ConvolutionBase: the common classes of 1d, 2d and 3d (and lazy,
# transposed, synchronised) layers. The public classes would have to be listed by hand, and a new one would be missed.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvolutionBase
from torch.nn.utils.prune import BasePruningMethod

# The stack of function modes, to put it back after Ctrl-C.
from torch.overrides import _get_current_function_mode_stack, _pop_mode

# is_traceable_wrapper_subclass: the only test for a tensor made of other tensors (DTensor, quantised by torchao).
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# tree_leaves, tree_map: torch.utils.pytree is public only in newer versions than the oldest that is supported (2.6).
from torch.utils._pytree import tree_leaves, tree_map

from .critical_section import raise_lost_interrupt, surely_closed

__all__ = [
    "WEIGHT_NORM",
    "ACCELERATE_ATTRIBUTES",
    "ULTRALYTICS_AVERAGED",
    "ULTRALYTICS_RECOVERY",
    "BatchNormBase",
    "ConvolutionBase",
    "NormBase",
    "TorchDispatchMode",
    "accelerate_gradient_state",
    "active_modes",
    "base_of",
    "communication_hooks",
    "compiled_module",
    "forward_pre_hooks",
    "has_modules",
    "is_traceable_wrapper_subclass",
    "is_transformed",
    "not_persistent_buffers",
    "operator_arguments",
    "operator_name",
    "operator_returns",
    "own_buffers",
    "own_modules",
    "own_parameters",
    "pop_modes",
    "pruned_attribute",
    "reset_accelerator_state",
    "storage_id",
    "tree_leaves",
    "tree_map",
    "without_dispatch_modes",
    "without_function_modes",
]

# What weight norm calls, by hook and by parametrization (torch.nn.utils.weight_norm).
WEIGHT_NORM = torch.ops.aten._weight_norm_interface.default

# What accelerate's prepare puts on a model. Its unwrap_model leaves the first, which shadows the class's method, and
# the last; an exception leaves all.
ACCELERATE_ATTRIBUTES = ("forward", "_original_forward", "_is_accelerate_prepared")

# Of ultralytics: the lists of tensors of a ModelEMA, and the method of trainers that goes back to the last checkpoint.
ULTRALYTICS_AVERAGED = "_pairs"
ULTRALYTICS_RECOVERY = "_handle_nan_recovery"


class TorchDispatchMode(_python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Torch's dispatch mode: the documented way to see every ATen call, in a module whose name has an underscore.

    What ``__torch_dispatch__`` does must not be compiled where code of ``torch.compile`` calls an operator. Torch sees
    to it by importing ``torch._dynamo`` at the first operator that a mode meets, which takes seconds. Here that is put
    off until somebody else has imported it: nothing is compiled before.

    Inside ``torch.inference_mode()`` a mode is given what torch composes of other operators (``conv2d``, ``reshape``)
    in one piece. A subclass is given its parts here, as it is elsewhere.
    """

    _is_marked = False

    def __init_subclass__(cls) -> None:
        """Gives a subclass the parts of composed operators."""
        if "__torch_dispatch__" in vars(cls):
            cls.__torch_dispatch__ = _given_parts(cls.__torch_dispatch__)  # type: ignore[method-assign]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Any:
        """Switches the mode on."""
        cls = type(self)
        if not cls._is_marked and "torch._dynamo" in sys.modules:
            cls._is_marked = True
            uncompiled: Any = torch.compiler.disable(cls.__torch_dispatch__)  # type: ignore[no-untyped-call]
            cls.__torch_dispatch__ = uncompiled  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[no-untyped-call]


def _given_parts(dispatch: Any) -> Any:
    @functools.wraps(dispatch)
    def of_parts(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise_lost_interrupt()
        if _is_composed(func):
            with mode:
                return func.decompose(*args, **(kwargs or {}))
        return dispatch(mode, func, types, args, kwargs)

    return of_parts


@functools.cache
def _is_composed(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor stands for others inside ``torch.vmap`` or ``torch.func.grad``; public torch does not say."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def active_modes() -> tuple[int, int]:
    """How many dispatch modes and function modes are active in this thread; public torch does not say."""
    function_modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return len(_python_dispatch._get_current_dispatch_mode_stack()), len(function_modes)


def pop_modes(number: tuple[int, int]) -> None:
    """Switches the innermost modes of this thread off that are more than there were.

    Args:
        number: What :func:`active_modes` returned before.
    """
    while active_modes()[0] > number[0]:
        _python_dispatch._pop_mode()
    while active_modes()[1] > number[1]:
        _pop_mode()  # type: ignore[no-untyped-call]


@surely_closed
def without_dispatch_modes() -> Iterator[None]:
    """Switches all active dispatch modes off, so that a mode's own computations are not dispatched to it again.

    Public torch has no such context manager, and its private one imports SymPy.

    Yields:
        Nothing.
    """
    modes = list(_python_dispatch._get_current_dispatch_mode_stack())
    try:
        for _ in modes:
            _python_dispatch._pop_mode()
        yield
    finally:
        try:
            _push_missing(modes)
        except BaseException:
            _push_missing(modes)
            raise


def _push_missing(modes: list[Any]) -> None:
    for mode in modes[len(_python_dispatch._get_current_dispatch_mode_stack()) :]:
        _python_dispatch._push_mode(mode)


def without_function_modes() -> contextlib.AbstractContextManager[None]:
    """Switches all ``TorchFunctionMode`` off, and the ``__torch_function__`` of tensors.

    Public torch can switch off a mode only by leaving it.

    Returns:
        A context manager.
    """
    return torch._C.DisableTorchFunction()


def _as_mapping(registered: Any) -> Any:
    """What a module registers, as a mapping: a scripted module has an object of another kind.

    Callers return a plain dict at once, because a walk over a model asks for thousands.
    """
    return registered if isinstance(registered, dict) else dict(registered.items())


# Tells whether a module has children, in a third of the time of own_modules: most of a model's modules have none.
has_modules = operator.attrgetter("_modules")


def own_modules(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The direct children of a module by name, as registered.

    ``named_children`` leaves out the second name of a child that is registered twice, and is slower.

    Args:
        module: The module.

    Returns:
        Its own mapping, not a copy, except of a scripted module; ``None`` for a child that was registered as absent.
    """
    registered: Any = module._modules
    return registered if type(registered) is dict else _as_mapping(registered)


def own_parameters(module: nn.Module) -> MutableMapping[str, nn.Parameter | None]:
    """The parameters that a module holds itself, by name.

    ``named_parameters(recurse=False)`` is slower, and offers no way to replace one.

    Args:
        module: The module.

    Returns:
        Its own mapping, not a copy, except of a scripted module; ``None`` for one that was registered as absent.
    """
    registered: Any = module._parameters
    return registered if type(registered) is dict else _as_mapping(registered)


def own_buffers(module: nn.Module) -> MutableMapping[str, Tensor | None]:
    """The buffers that a module holds itself, by name; otherwise as :func:`own_parameters`.

    Args:
        module: The module.

    Returns:
        Its own mapping, not a copy, except of a scripted module; ``None`` for one that was registered as absent.
    """
    registered: Any = module._buffers
    return registered if type(registered) is dict else _as_mapping(registered)


def not_persistent_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers that a module holds itself and that are no part of its state dict.

    Args:
        module: The module.
    """
    return module._non_persistent_buffers_set


def compiled_module(module: nn.Module) -> nn.Module | None:
    """The module inside the result of ``torch.compile``.

    It has no public accessor. It is found by its name, because importing the class of the wrapper takes a second.

    Args:
        module: Any module.

    Returns:
        The module inside; ``None`` if this is not the result of ``torch.compile``.
    """
    return own_modules(module).get("_orig_mod")


def is_compiled(module: nn.Module) -> bool:
    """Whether torch compiles a module where it is called: the result of ``torch.compile``, or ``module.compile()``.

    Args:
        module: Any module.
    """
    return compiled_module(module) is not None or vars(module).get("_compiled_call_impl") is not None


def communication_hooks(ddp: nn.parallel.DistributedDataParallel) -> list[Any]:
    """The communication hooks of a ``DistributedDataParallel``; they cannot be listed otherwise."""
    return list(getattr(ddp, "_comm_hooks", ()))


def forward_pre_hooks(module: nn.Module) -> list[Any]:
    """The hooks that run before a module's forward, in order; they cannot be listed otherwise.

    Args:
        module: Any module.
    """
    return list(module._forward_pre_hooks.values())


def pruned_attribute(method: BasePruningMethod) -> str:
    """The attribute that a mask of ``torch.nn.utils.prune`` is applied to; it is kept under a private name.

    Args:
        method: The hook that applies the mask.
    """
    return method._tensor_name


def operator_name(operator: Any) -> str:
    """The qualified name of a torch operator, such as ``"aten::add"``; the same for all its overloads.

    ``OpOverload.name()`` has the overload in it.

    Args:
        operator: A ``torch._ops.OpOverload``, as a dispatch mode receives it.

    Returns:
        Namespace and name.
    """
    name: str = operator._schema.name
    return name


def operator_arguments(operator: Any) -> list[Any]:
    """The declared arguments of a torch operator. Its schema has no public accessor.

    Args:
        operator: A ``torch._ops.OpOverload``, as a dispatch mode receives it.

    Returns:
        Arguments with ``name`` and ``default_value``, in the order of the schema.
    """
    arguments: list[Any] = operator._schema.arguments
    return arguments


def operator_returns(operator: Any) -> int:
    """How many values a torch operator returns, by its schema, which has no public accessor.

    Args:
        operator: A ``torch._ops.OpOverload``, as a dispatch mode receives it.
    """
    return len(operator._schema.returns)


def version_of(tensor: Tensor) -> int:
    """How often the memory of a tensor was written to; 0 for one of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor of which another is a view, which keeps it alive; ``None`` if it is no view."""
    return tensor._base


def storage_id(tensor: Tensor) -> int:
    """A number that is equal for tensors of one storage, while that storage exists.

    ``untyped_storage()`` makes a new Python object at each call, and ``data_ptr()`` is 0 for every storage on the meta
    device, so neither can be compared.

    Args:
        tensor: Any tensor with a storage.

    Returns:
        The address of the storage's C++ object.
    """
    return int(tensor.untyped_storage()._cdata)


def accelerate_gradient_state() -> dict[str, Any]:
    """The process-wide state of accelerate's gradient accumulation.

    accelerate offers no way to save and restore it, so that an accelerator of ours would change the caller's.

    Returns:
        The dictionary that all ``GradientState`` objects share, not a copy.
    """
    from accelerate.state import GradientState

    state: dict[str, Any] = GradientState._shared_state
    return state


def reset_accelerator_state() -> None:
    """Makes accelerate forget its process-wide ``AcceleratorState``, so that the next accelerator may differ.

    accelerate keeps the first accelerator's mixed precision for the whole process; its own tests reset it this way.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def is_fake(tensor: Any) -> bool:
    """Whether a tensor has a shape and no values, as those made under ``FakeTensorMode``."""
    # By name: to import the class takes half a second, and where nobody did there is no such tensor.
    return any(kind.__name__ == "FakeTensor" for kind in type(tensor).__mro__)
