"""Index of a model: its modules and tensors by name, made once per public call and handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .compat import is_fake, not_persistent_buffers
from .errors import WeightError
from .modules import check_can_be_changed, check_not_made_for_inference, modules_of, tensors_of, unwrap

_ORDINARY = (nn.Parameter, Tensor)


@dataclass(frozen=True)
class ModelIndex:
    """The modules and tensors of a model by name.

    It is made once per public call, because a walk over a large model takes longer than its surgery. It is valid until
    the model changes: surgery in place makes it stale.

    Attributes:
        model: The model, out of its wrappers.
        modules: Its modules by first name, in the order of ``named_modules``; the model itself is ``""``.
        tensors: Its parameters and buffers by every name they have, parameters first.
        first_names: The first name of every parameter and buffer, by the identity of the tensor.
        not_persistent: The names of the buffers that are no part of a state dict.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    first_names: Mapping[int, str]
    not_persistent: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> ModelIndex:
        """Makes the index of a model.

        Args:
            model: A module, possibly inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

        Returns:
            The index of the model inside the wrappers.

        Raises:
            ArgumentError: The argument is not a module, or a module in it is one that cannot be changed.
            WeightError: A parameter or buffer was made in inference mode, which is not active, or has no shape or no
                values: it is not initialised, or fake.
        """
        model, by_every_name, modules = checked_modules(model)
        if not torch.is_inference_mode_enabled():
            check_not_made_for_inference(by_every_name)
        tensors = tensors_of(by_every_name)
        first_names: dict[int, str] = {}
        for name, tensor in tensors.items():
            if type(tensor) not in _ORDINARY and (is_lazy(tensor) or is_fake(tensor)):
                what = "is not initialised: run the model once on an input"
                if not is_lazy(tensor):
                    what = "is a fake tensor and has no values: build the model outside of FakeTensorMode"
                raise WeightError(f"{name} {what}", layer=name.rpartition(".")[0])
            first_names.setdefault(id(tensor), name)
        not_persistent = {
            f"{name}.{own}" if name else own
            for name, module in by_every_name.items()
            for own in not_persistent_buffers(module)
        }
        return cls(model, modules, tensors, first_names, frozenset(not_persistent))


def checked_modules(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules of a model: the index for callers that only read, and need no tensors by name.

    Args:
        model: A module, possibly inside wrappers; see :meth:`ModelIndex.of`.

    Returns:
        The model inside the wrappers; its modules by every name they have; and by first name, in the order of
        ``named_modules``.

    Raises:
        ArgumentError: The argument is not a module, or a module in it is one that cannot be changed.
    """
    model = unwrap(model)
    by_every_name = modules_of(model, every_name=True)
    check_can_be_changed(by_every_name)
    # A dictionary keeps the first place of a key and its last value: so the names are taken from the last to the first.
    first_names = {id(module): name for name, module in reversed(by_every_name.items())}
    if len(first_names) == len(by_every_name):
        return model, by_every_name, by_every_name
    modules = {name: module for name, module in by_every_name.items() if first_names[id(module)] == name}
    return model, by_every_name, modules
