"""The dispatch mode that carries channel labels beside the tensors of a run."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ..utils.compat import TorchDispatchMode
from ..utils.forward import tensors_in
from ..utils.model_index import ModelIndex
from . import labels as lb
from .activation_memory import AllocationTracker
from .macs import macs_of


@dataclass(slots=True)
class Owned:
    """A parameter or buffer of the model, or a permuted view of one.

    Attributes:
        name: Its first name in the model.
        tensor: The parameter or buffer itself.
        axes: For each dimension of the view, the axis of ``tensor`` it shows.
    """

    name: str
    tensor: Tensor
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WeightUse:
    """A convolution or linear operation with a weight of the model.

    Attributes:
        layer: The module that owns the weight.
        weight: The name of the weight.
        out_axis: The weight axis of the filters.
        in_axis: The weight axis of the channels they read.
        groups: The groups of the convolution.
        whole_groups: Whether a group falls as a whole (and ``groups`` shrinks) instead of all groups shrinking alike.
        inputs: The label of each input channel, int64.
        outputs: The label of each output channel, int64.
    """

    layer: str
    weight: str
    out_axis: int
    in_axis: int
    groups: int
    whole_groups: bool
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """The multiply-accumulates of one operator.

    Attributes:
        layer: The module in whose code it ran.
        macs: How many.
        weight: The name of the weight in :attr:`Trace.weight_uses` whose widths it grows with; ``None`` for another
            operator, whose widths are pinned.
    """

    layer: str
    macs: int
    weight: str | None


@dataclass(frozen=True, slots=True, eq=False)
class TracedOperator:
    """One operator of the run.

    Attributes:
        operator: The ATen operator.
        inputs: The label maps of its operands, of those that have one.
    """

    operator: Any
    inputs: tuple[lb.LabelMap, ...]


ApplyRule = Callable[["Tracer", Any, Any, Any, Any], None]
Evaluate = Callable[[Any, Any, Any], Any]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries planes beside tensors; the rules (``rules.py``, handed in) say how each operator moves them."""

    def __init__(self, index: ModelIndex, apply_rule: ApplyRule, evaluate: Evaluate) -> None:
        """Learns the parameters and buffers of a model.

        Args:
            index: The index of the model that will be run.
            apply_rule: Called after every operator with it, its arguments and its result.
            evaluate: Calls an operator with its arguments, as :func:`fec_fast.graph.shape_only.call_shape_only` does.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._apply_rule, self.evaluate = apply_rule, evaluate
        self.sets = lb.LabelSets()
        self.axes: dict[tuple[str, int], np.ndarray] = {}
        self.weight_uses: dict[str, WeightUse] = {}
        self.costs: list[OperatorCost] = []
        self.allocations: AllocationTracker | None = AllocationTracker(index.tensors.values())
        self.notes: dict[str, None] = {}
        self.vanishing: dict[Any, bool] = {}  # what the rule of element-wise operators has found out
        self.operators: list[TracedOperator] = []
        self.modules = index.modules
        self._names = {id(module): name for name, module in self.modules.items()}
        self._inside = [""]
        # By identity. The model holds its own tensors; others may die and leave their number to a new one, which the
        # weak reference beside it tells.
        self._of_model: dict[int, Owned] = {}
        self._views: dict[int, tuple[weakref.ref[Tensor], Owned]] = {}
        self._planes: dict[int, tuple[weakref.ref[Tensor], lb.LabelMap, bool]] = {}
        for name, tensor in index.tensors.items():
            if id(tensor) not in self._of_model:
                self._of_model[id(tensor)] = Owned(name, tensor, tuple(range(tensor.dim())))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, then moves the planes."""
        kwargs = kwargs or {}
        # Before it is called, because afterwards the old strides are lost.
        stays = func is torch.ops.aten.as_strided_.default and _moves_nothing(*args)
        out = self.evaluate(func, args, kwargs)
        macs = macs_of(func, args, kwargs, out)
        if macs is not None:
            self.costs.append(OperatorCost(self._inside[-1], macs, None))
        if stays:
            self.remember(func, args[:1])
        else:
            self._apply_rule(self, func, args, kwargs, out)
        if self.allocations is not None:
            results = operands_of(out if isinstance(out, tuple) else (out,))
            self.allocations.record(results, operands_of(args, kwargs), lambda tensor: self.plane(tensor)[0])
        return out

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Watches a run on this thread: the operators, and in which module each of them is."""
        thread = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                self._inside.append(self._names.get(id(module), self._inside[-1]))

        def leave(module: nn.Module, _inputs: Any, _outputs: Any) -> None:
            if threading.get_ident() == thread:
                self._inside.pop()

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._inside = [""]

    # Planes -------------------------------------------------------------------------------------------------------
    def owned(self, tensor: Any) -> Owned | None:
        """The parameter or buffer behind a tensor."""
        known = self._of_model.get(id(tensor))
        if known is None:
            view = self._views.get(id(tensor))
            if view is not None and view[0]() is tensor:
                known = view[1]
        return known

    def own(self, tensor: Tensor, owned: Owned) -> None:
        """Marks a tensor as a permuted view of a parameter."""
        self._views[id(tensor)] = weakref.ref(tensor), owned

    def plane(self, tensor: Tensor) -> tuple[lb.LabelMap, bool]:
        """The plane of a tensor, and whether it is exactly zero wherever its channel is masked."""
        known = self._planes.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1], known[2]
        owned = self.owned(tensor)
        if owned is not None:
            wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if len(wide) == 1:
                line = self.axis(owned, owned.axes[wide[0]])
                return lb.LabelMap.varying(line, wide[0], tensor.shape), False
            for axis in range(owned.tensor.dim()):
                self.pin_axis(owned, axis, "its weight is used by an operator other than a convolution or linear one")
        return lb.LabelMap.constant(lb.FREE if tensor.numel() == 1 else lb.FIXED, tensor.shape), False

    def put(self, tensor: Any, plane: lb.LabelMap, vanishes: bool) -> None:
        """Stores the plane of an operator's result."""
        if isinstance(tensor, Tensor):
            self._planes[id(tensor)] = weakref.ref(tensor), plane, vanishes

    def axis(self, owned: Owned, axis: int, proposal: np.ndarray | None = None, reason: str = "") -> np.ndarray:
        """The labels of a parameter's axis; a first use may bring its own, a later one is united with it."""
        key = (owned.name, axis)
        known = self.axes.get(key)
        if known is None:
            known = self.sets.new_labels(owned.tensor.shape[axis]) if proposal is None else lb.free_as_fixed(proposal)
            self.axes[key] = known
        elif proposal is not None:
            self.sets.unite(known, lb.free_as_fixed(proposal), reason)
        return known

    def remember(self, func: Any, operands: Sequence[Tensor]) -> None:
        """Keeps an operator and the planes that go into it, for :mod:`fec_fast.graph.hardcoded_widths`."""
        entries = [self._planes.get(id(tensor)) for tensor in operands]
        self.operators.append(TracedOperator(func, tuple(entry[1] for entry in entries if entry is not None)))

    def pin_axis(self, owned: Owned, axis: int, reason: str) -> None:
        """Forbids the narrowing of a parameter's axis."""
        key = (owned.name, axis)
        if key in self.axes:
            self.sets.pin(self.axes[key], reason)
        else:
            self.axes[key] = np.full(owned.tensor.shape[axis], lb.FIXED)

    def pin(self, tensors: Any, reason: str, note: str | None = None) -> None:
        """Forbids the removal of every channel found in tensors; notes it where that took something away."""
        changed = False
        for tensor in tensors_in(tensors):
            changed |= self.sets.pin(self.plane(tensor)[0].labels, reason)
        if changed and note is not None:
            self.notes[note] = None


def _moves_nothing(tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> bool:
    """Whether new strides are those of dimensions of size 1 alone, as pooling sets them for a channels-last input."""
    same = zip(size, stride, tensor.stride(), strict=False)
    return (
        tuple(size) == tuple(tensor.shape)
        and offset in (None, tensor.storage_offset())
        and all(new == old for number, new, old in same if number > 1)
    )


def operands_of(args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> list[Tensor]:
    """The tensors among an ATen operator's arguments, or in its result, which are nested in one list at most."""
    found = []
    for value in [*args, *kwargs.values()] if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found
