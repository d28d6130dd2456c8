"""Values of the proof: the pruned tensors against the original's, masked channels, and drawn weights and inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import ConvolutionBase, NormBase, storage_id
from ..utils.copying import copied_model
from ..utils.errors import EquivalenceError
from ..utils.forward import map_tensors
from ..utils.model_index import ModelIndex
from .plan import Plan
from .surgery import select_kept

_BLOCK = 1_048_583  # a prime number, so that the rows of a weight differ when the block is repeated
_OF_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_SMALLEST_IMAGE = 3  # dimensions of an input that is drawn; smaller ones may be steps, sizes or coordinates


def check_values(index: ModelIndex, pruned: ModelIndex, plan: Plan) -> None:
    """Checks that every tensor of a pruned model is the part of the original's that a plan keeps, bit for bit.

    Args:
        index: The index of the model before pruning.
        pruned: The index of the model after pruning.
        plan: The plan.

    Raises:
        EquivalenceError: A tensor is missing, or differs in shape, dtype or value; an attribute is not the plan's; the
            plan keeps different channels of the tensors of one batch or instance norm.
    """
    if index.tensors.keys() != pruned.tensors.keys():
        names = ", ".join(sorted(index.tensors.keys() ^ pruned.tensors.keys())[:3])
        raise EquivalenceError(f"the pruned network and the original do not have the same tensors, such as {names}")
    for name, tensor in index.tensors.items():
        other, axes = pruned.tensors[name].detach(), plan.keep.get(name)
        kept = tensor.detach() if axes is None else select_kept(tensor.detach(), axes)
        if kept.shape != other.shape or kept.dtype != other.dtype:
            raise EquivalenceError(
                f"{name} of the pruned network is {other.dtype} {list(other.shape)}, the plan keeps {kept.dtype} "
                f"{list(kept.shape)} of the original's"
            )
        if kept.is_meta or other.is_meta:
            raise EquivalenceError(
                f"{name} is on the meta device and has no values: model.to_empty(device='cpu') first"
            )
        other = other.to(kept.device)
        if not torch.equal(kept, other) and not bool(((kept == other) | ((kept != kept) & (other != other))).all()):
            raise EquivalenceError(
                f"{name} of the pruned network differs from what the plan keeps of the original's; the proof is for a "
                "network right after pruning, before training or compensation, as prune(..., recover=None) returns it"
            )
    for name, module in index.modules.items():
        prefix = f"{name}." if name else ""
        own = [plan.keep.get(prefix + each) for each in _OF_BATCH_NORM if prefix + each in index.tensors]
        if isinstance(module, NormBase) and any(axes != own[0] for axes in own):
            raise EquivalenceError(f"the plan keeps different channels of the tensors of the norm {name!r}")
    for name, values in plan.attributes.items():
        for attribute, value in values.items():
            found = getattr(pruned.modules[name], attribute, None)
            if found != value:
                raise EquivalenceError(f"{attribute} of {name!r} is {found} in the pruned network, {value} in the plan")


class NetworkPair:
    """Copies of a model and of its pruned network that are given the same weights.

    Parameters take memory only while they have values (:meth:`filled`), so that a large model is in memory once more in
    the precision of the proof, and not for both networks at a time.

    Attributes:
        full: The index of the copy of the original; its removed channels are masked.
        small: The index of the copy of the pruned network.
    """

    def __init__(self, index: ModelIndex, pruned: ModelIndex, plan: Plan, *, double: bool, left: str = "") -> None:
        """Copies both.

        Args:
            index: The index of the model before pruning.
            pruned: The index of the model after pruning.
            plan: The plan.
            double: Whether the copies compute in float64.
            left: Which parameters keep their values at removed channels: ``"scales"``, with one axis longer than 1, or
                ``"matrices"``, with several; never those of convolutions, linear layers, batch and instance norms. A
                model that divides by them is compared with the values that they have.
        """
        self.full, self.small = (_copy_without_values(each, double) for each in (index, pruned))
        self._plan, self._left = plan, left
        self._index = index
        self._narrowed_in: dict[str, list[str]] = {}  # by module
        for name in plan.keep:
            self._narrowed_in.setdefault(name.rpartition(".")[0], []).append(name)
        self._drawn_with: int | None = None
        self._uniform: dict[torch.dtype, Tensor] = {}
        self._normal: dict[torch.dtype, Tensor] = {}
        self._start = 0

    @contextlib.contextmanager
    def filled(self, network: ModelIndex, seed: int | None) -> Iterator[None]:
        """Gives one of the networks weights inside the context.

        Args:
            network: :attr:`full` or :attr:`small`.
            seed: ``None``: the weights of the original. A number: drawn weights, with which every channel is alive, as
                far as weights decide it. Filters are normal, with a sum of zero and a variance of one over the number
                of their inputs: what they compute varies around their bias. Biases, and the weights and biases of batch
                norms, are positive. Other parameters, and buffers that are narrowed, keep half to one and a half times
                their value; a zero becomes small and positive. Equal seeds give both networks equal weights.

        Yields:
            Nothing.
        """
        for storage, size in _storages(network):
            storage.resize_(size)
        if seed is not None:
            self._prepare_draws(seed)
        with torch.no_grad():
            for name in self._index.first_names.values():
                self._set(network, name, self._value(name, is_drawn=seed is not None))
        yield
        for storage, _ in _storages(network):
            storage.resize_(0)

    def _prepare_draws(self, seed: int) -> None:
        self._start = 0
        if self._drawn_with == seed:
            return
        self._drawn_with = seed
        generator = torch.Generator().manual_seed(seed)
        for dtype in dict.fromkeys(t.dtype for t in self.full.tensors.values() if t.is_floating_point()):
            self._uniform[dtype] = torch.rand(_BLOCK, generator=generator).to(dtype)
            self._normal[dtype] = torch.randn(_BLOCK, generator=generator).to(dtype)

    def _value(self, name: str, *, is_drawn: bool) -> Tensor:
        """The value of a tensor of the original, or a drawn one."""
        own = self._index.tensors[name].detach()
        is_drawn = is_drawn and (isinstance(self._index.tensors[name], nn.Parameter) or name in self._plan.keep)
        if not (is_drawn and own.is_floating_point()):
            return own
        self._start = (self._start + 7919) % _BLOCK  # tensors of one shape differ
        return self._drawn(name, own)

    def _drawn(self, name: str, own: Tensor) -> Tensor:
        module, attribute = self._owner(name)
        dtype = self.full.tensors[name].dtype
        is_layer = isinstance(module, ConvolutionBase | nn.Linear)
        filters = 1 if is_layer and getattr(module, "transposed", False) else 0
        inputs = own.numel() // max(1, own.shape[filters]) if own.dim() > 1 else 1
        if is_layer and inputs > 1:
            normal = self._repeated(self._normal[dtype], own)
            others = [dim for dim in range(own.dim()) if dim != filters]
            return normal.sub_(normal.mean(others, keepdim=True)).mul_(inputs**-0.5)
        uniform = self._repeated(self._uniform[dtype], own)
        if is_layer or isinstance(module, NormBase):
            return 0.2 * uniform if attribute == "running_mean" else uniform + 0.5
        own = own.to(dtype)
        return torch.where(own == 0, 0.1 * uniform, own * (uniform + 0.5))

    def _repeated(self, block: Tensor, like: Tensor) -> Tensor:
        """A block of random numbers, from where this tensor begins, repeated to the tensor's shape."""
        count = like.numel()
        if count <= _BLOCK - self._start:
            values = block[self._start : self._start + count].clone()
        else:
            rolled = torch.cat([block[self._start :], block[: self._start]])
            values = rolled.repeat(-(-count // _BLOCK))[:count]
        return values.view(like.shape).to(like.device)

    def _owner(self, name: str) -> tuple[nn.Module | None, str]:
        prefix, _, attribute = name.rpartition(".")
        return self._index.modules.get(prefix), attribute

    def _set(self, network: ModelIndex, name: str, value: Tensor) -> None:
        """Gives a tensor of a network a value: what the plan keeps of it, or the whole with other channels masked."""
        target = network.tensors[name]
        if network is self.small:
            axes = self._plan.keep.get(name, {})
            target.copy_(select_kept(value, axes) if axes else value)
        else:
            target.copy_(value)
            mask(name, target, self._masked_axes(name, value))

    def _masked_axes(self, name: str, value: Tensor) -> Mapping[str, list[int]]:
        """What the plan keeps of a tensor, along the axes on which its removed channels are masked."""
        axes = self._plan.keep.get(name, {})
        known = isinstance(self._owner(name)[0], ConvolutionBase | nn.Linear | NormBase)
        kind = "scales" if sum(size > 1 for size in value.shape) < 2 else "matrices"
        if kind == self._left and not known:
            return {}
        return {axis: kept for axis, kept in axes.items() if not self._is_scaled(name, value, axis)}

    def _is_scaled(self, name: str, value: Tensor, axis: str) -> bool:
        """Whether another tensor scales this one for each index of an axis, and is masked there (weight norm).

        The filters of such a tensor are divided by their norm, which would be zero for a masked one.
        """
        kept = self._plan.keep[name][axis]
        scale = [size if dim == int(axis) else 1 for dim, size in enumerate(value.shape)]
        prefix = name.rpartition(".")[0]
        return (
            value.dim() > 1
            and scale != list(value.shape)
            and any(
                self._plan.shapes[other] == scale and self._plan.keep[other] == {axis: kept}
                for other in self._narrowed_in.get(prefix, ())
            )
        )


def _copy_without_values(index: ModelIndex, double: bool) -> ModelIndex:
    """The index of a copy of a model whose parameters have no memory yet, in float64 or as precise as the original."""
    memo: dict[int, Any] = {}
    with torch.inference_mode(False):
        for tensor in index.tensors.values():
            if type(tensor) is nn.Parameter and tensor.is_floating_point() and tensor.layout == torch.strided:
                dtype = torch.float64 if double else tensor.dtype
                memo[id(tensor)] = nn.Parameter(torch.empty_like(tensor, dtype=dtype), tensor.requires_grad)
    copied = copied_model(index, memo)
    if double:
        copied.double()
    found = ModelIndex.of(copied)
    for storage, _ in _storages(found):
        storage.resize_(0)
    return found


def _storages(index: ModelIndex) -> list[tuple[torch.UntypedStorage, int]]:
    """The storages that belong to one parameter of a copy each, and the bytes that they need."""
    parameters = {id(tensor): tensor for tensor in index.tensors.values() if type(tensor) is nn.Parameter}
    found: dict[int, tuple[torch.UntypedStorage, int]] = {}
    shared: set[int] = set()
    for parameter in parameters.values():
        if parameter.layout != torch.strided or not parameter.untyped_storage().resizable():
            continue
        storage, size, key = (
            parameter.untyped_storage(),
            parameter.numel() * parameter.element_size(),
            storage_id(parameter),
        )
        if key in found or storage.nbytes() not in (0, size):
            shared.add(key)
        found[key] = storage, size
    return [entry for key, entry in found.items() if key not in shared]


def mask(name: str, tensor: Tensor, axes: Mapping[str, list[int]]) -> None:
    """Sets the removed channels of a tensor to zero.

    Args:
        name: Its name. A running variance keeps its values: batch norm divides by it, and its weight, bias and mean are
            zero for the channel.
        tensor: A tensor of the shape before pruning, which is changed.
        axes: The kept indices by axis.
    """
    if not name.endswith("running_var"):
        for axis, kept in axes.items():
            is_removed = torch.ones(tensor.shape[int(axis)], dtype=torch.bool)
            is_removed[kept] = False
            tensor.index_fill_(int(axis), is_removed.nonzero().flatten().to(tensor.device), 0)


def drawn_inputs(example_inputs: Any, seed: int) -> Any:
    """Example inputs whose images are drawn in the range of their values; of a constant image, in [c, c + 1).

    Args:
        example_inputs: Nested inputs. Integers, and tensors with fewer than three dimensions, are left as they are.
        seed: Of the draw.

    Returns:
        The same structure.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() < _SMALLEST_IMAGE or not tensor.numel():
            return tensor
        low, high = tensor.min(), tensor.max()
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        return low + share * torch.where(high > low, high - low, torch.ones_like(high))

    return map_tensors(drawn, example_inputs)
