"""The dispatch mode that carries channel labels beside the tensors of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from . import labels as lb


@dataclass
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


@dataclass
class Use:
    """A convolution or linear operation with a weight of the model.

    Attributes:
        layer: The module that owns the weight.
        weight: The name of the weight.
        out_axis: The weight axis of the filters.
        in_axis: The weight axis of the channels they read.
        groups: The groups of the convolution.
        whole_groups: Whether a group falls as a whole (and ``groups`` shrinks) instead of all groups shrinking alike.
        inputs: The label of each input channel.
        outputs: The label of each output channel.
    """

    layer: str
    weight: str
    out_axis: int
    in_axis: int
    groups: int
    whole_groups: bool
    inputs: list[int]
    outputs: list[int]


ApplyRule = Callable[["Tracer", Any, Any, Any, Any], None]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries planes beside tensors; the rules (``rules.py``, handed in) say how each operator moves them."""

    def __init__(self, model: nn.Module, apply_rule: ApplyRule) -> None:
        """Learns the parameters and buffers of a model.

        Args:
            model: The model that will be run.
            apply_rule: Called after every operator with it, its arguments and its result.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._apply_rule = apply_rule
        self.sets = lb.LabelSets()
        self.axes: dict[tuple[str, int], list[int]] = {}
        self.uses: dict[str, Use] = {}
        self.notes: dict[str, None] = {}
        self.history: list[tuple[str, list[Tensor]]] = []
        self.modules = dict(model.named_modules())
        # Weak keys compared by identity: a tensor that is freed takes its entry along.
        self._owned: MutableMapping[Tensor, Owned] = WeakTensorKeyDictionary()
        self._planes: MutableMapping[Tensor, tuple[Tensor, bool]] = WeakTensorKeyDictionary()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._owned[tensor] = Owned(name, tensor, tuple(range(tensor.dim())))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, then moves the planes."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._apply_rule(self, func, args, kwargs, out)
        return out

    # Planes -------------------------------------------------------------------------------------------------------
    def owned(self, tensor: Any) -> Owned | None:
        """The parameter or buffer behind a tensor."""
        return self._owned.get(tensor) if isinstance(tensor, Tensor) else None

    def own(self, tensor: Tensor, owned: Owned) -> None:
        """Marks a tensor as a permuted view of a parameter."""
        self._owned[tensor] = owned

    def plane(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """The plane of a tensor, and whether it is exactly zero wherever its channel is masked."""
        known = self._planes.get(tensor)
        if known is not None:
            return known
        owned = self.owned(tensor)
        if owned is not None:
            wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if len(wide) == 1:
                line = self.axis(owned, owned.axes[wide[0]])
                return lb.spread(line, wide[0], tensor.shape), False
            for axis in range(owned.tensor.dim()):
                self.pin_axis(owned, axis, "its weight is used by an operator other than a convolution or linear one")
        return lb.constant(lb.FREE if tensor.numel() == 1 else lb.FIXED, tensor.shape), False

    def put(self, tensor: Any, plane: Tensor, vanishes: bool) -> None:
        """Stores the plane of an operator's result."""
        if isinstance(tensor, Tensor):
            self._planes[tensor] = (plane, vanishes)

    def axis(self, owned: Owned, axis: int, proposal: Sequence[int] | None = None, reason: str = "") -> list[int]:
        """The labels of a parameter's axis; a first use may bring its own, a later one is united with it."""
        key = (owned.name, axis)
        known = self.axes.get(key)
        if known is None:
            size = owned.tensor.shape[axis]
            known = self.sets.fresh(size) if proposal is None else [max(label, lb.FIXED) for label in proposal]
            self.axes[key] = known
        elif proposal is not None:
            self.sets.unite_all(known, [max(label, lb.FIXED) for label in proposal], reason)
        return known

    def remember(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keeps the name of an operator and the planes that go into it, for :mod:`fec_fast.trial`."""
        planes = [self._planes[tensor][0] for tensor in tensors_in((args, kwargs)) if tensor in self._planes]
        self.history.append((str(func), planes))

    def pin_axis(self, owned: Owned, axis: int, reason: str) -> None:
        """Forbids the narrowing of a parameter's axis."""
        key = (owned.name, axis)
        if key in self.axes:
            self.sets.pin(self.axes[key], reason)
        else:
            self.axes[key] = [lb.FIXED] * owned.tensor.shape[axis]

    def pin(self, tensors: Any, reason: str, note: str | None = None) -> None:
        """Forbids the removal of every channel found in tensors; notes it where that took something away."""
        changed = False
        for tensor in tensors_in(tensors):
            changed |= self.sets.pin(lb.distinct(self.plane(tensor)[0]), reason)
        if changed and note is not None:
            self.notes[note] = None


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors of nested arguments or results, in order."""
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
