"""The label tracker: which labels the tensors of a run carry, and what label rules do with them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..utils.code_lines import line_of_model_code
from ..utils.compat import storage_id
from ..utils.forward import call_model, tensors_in
from ..utils.model_index import ModelIndex
from .channel_statistics import ChannelStatistics
from .cuts import Cut
from .held_sizes import HeldSize
from .label_sets import LabelSets
from .labels import FIXED, FREE, LabelMap, free_as_fixed
from .operator_call import OperatorCall
from .operator_trial import WithinChannels


@dataclass(slots=True)
class ParameterView:
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
        groups: The groups of the convolution; 1 for a linear operation.
        whole_groups: Whether whole groups are removed (and ``groups`` shrinks) instead of the same channels of every
            group.
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


class LabelTracker:
    """The labels of the tensors of a run. Label rules read them and set those of new tensors.

    A tensor is *zero when masked* if masking channels (setting them to zero where they are made) makes it exactly zero
    at their labels. Then a sum over its channels does not change when they are removed. It is kept beside the labels of
    each tensor.

    Attributes:
        sets: Which labels are removed together, and which must be kept.
        axes: For each parameter or buffer (first name) and axis, one label per index, int64.
        weight_uses: The first convolution or linear operation of each weight, by the name of the weight.
        notes: What was not understood, for the user; a dictionary for its order, without values.
        modules: The modules of the model by name.
        cuts: The operators that divide channels, or shape a tensor with channels, in order; rules add to them.
        sizes: Attributes that are known to hold numbers of channels, by module and name; rules add to them.
        statistics: Statistics over channels that may go, by their places in the model's code.
        zero_probes: For calls of element-wise operators, whether they keep zeros; kept for the rule in
            :mod:`fec_fast.graph.rules.elementwise`.
        operator_trials: For calls of operators without a rule, what a trial showed; kept for
            :mod:`fec_fast.graph.rules.by_trial`.
        believed: The channels of such calls, where the operator acts within each, with the operator and the layer.
    """

    def __init__(self, index: ModelIndex, norms: str = "exact") -> None:
        """Starts without labels.

        Args:
            index: The index of the model that will be run.
            norms: See :data:`fec_fast.graph.channel_statistics.NORMS`.
        """
        self.sets = LabelSets(_place)
        self.axes: dict[tuple[str, int], np.ndarray] = {}
        self.weight_uses: dict[str, WeightUse] = {}
        self.notes: dict[str, None] = {}
        self.modules = index.modules
        self.cuts: list[Cut] = []
        self.sizes: dict[tuple[str, str], HeldSize] = {}
        self.statistics: dict[tuple[str, str, int], ChannelStatistics] = {}
        self._renormalises = norms == "renormalise"
        self._held: dict[tuple[str, int], np.ndarray] = {}
        self.zero_probes: dict[Any, bool] = {}
        self.operator_trials: dict[Any, WithinChannels | str] = {}
        self.believed: list[tuple[np.ndarray, str]] = []
        # By identity of the tensor, because hashing and comparing tensors is slow or not possible. The model keeps its
        # own tensors alive. Others may be released, and their identity given to a new tensor: the weak reference beside
        # an entry tells whether it is still about the same tensor.
        self._parameters: dict[int, ParameterView] = {}
        self._views: dict[int, tuple[weakref.ref[Tensor], ParameterView]] = {}
        self._label_maps: dict[int, tuple[weakref.ref[Tensor], LabelMap, bool]] = {}
        self._written: set[int] = set()  # storages that were written to with what is not zero when masked
        self._map_dims: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        for identity, name in index.first_names.items():
            tensor = index.tensors[name]
            self._parameters[identity] = ParameterView(name, tensor, tuple(range(tensor.dim())))

    # Parameters -----------------------------------------------------------------------------------------------------
    def parameter_view(self, tensor: Any) -> ParameterView | None:
        """The parameter or buffer behind a tensor; ``None`` for any other value."""
        view = self._parameters.get(id(tensor))
        if view is None:
            entry = self._views.get(id(tensor))
            if entry is not None and entry[0]() is tensor:
                view = entry[1]
        return view

    def set_parameter_view(self, tensor: Tensor, view: ParameterView) -> None:
        """Marks a tensor as a permuted view of a parameter."""
        self._views[id(tensor)] = weakref.ref(tensor), view

    def axis_labels(
        self, view: ParameterView, axis: int, proposal: np.ndarray | None = None, reason: str = ""
    ) -> np.ndarray:
        """The labels of a parameter's axis.

        The first operator that uses the axis may propose labels (a batch norm proposes those of its input); without a
        proposal they are new. Labels proposed later are united with them.

        Args:
            view: The parameter.
            axis: The axis.
            proposal: Labels that the axis must have, one per index.
            reason: Why the axis is pinned if it meets a fixed width.

        Returns:
            One label per index, int64.
        """
        key = (view.name, axis)
        labels = self.axes.get(key)
        if labels is None:
            size = view.tensor.shape[axis]
            labels = self.sets.new_labels(size) if proposal is None else free_as_fixed(proposal)
            self.axes[key] = labels
        elif proposal is not None:
            self.sets.unite(labels, free_as_fixed(proposal), reason)
        return labels

    def pin_axis(self, view: ParameterView, axis: int, reason: str) -> None:
        """Forbids the narrowing of a parameter's axis."""
        key = (view.name, axis)
        if key in self.axes:
            self.sets.pin(self.axes[key], reason)
        else:
            self.axes[key] = np.full(view.tensor.shape[axis], FIXED)

    # Tensors --------------------------------------------------------------------------------------------------------
    def label_map(self, tensor: Tensor) -> tuple[LabelMap, bool]:
        """The labels of a tensor, and whether it is zero when masked.

        A parameter that an element-wise operator reads (a scale per channel) has the labels of its only axis that is
        longer than 1. One with several such axes is a map with the labels of one of them, see :meth:`set_map_dim`, or a
        weight in an operator that has no rule for weights, whose axes are pinned. A tensor that no operator of the run
        made (an input, a constant) has a fixed width.
        """
        entry = self._label_maps.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1], entry[2] and not (self._written and storage_id(tensor) in self._written)
        view = self.parameter_view(tensor)
        if view is not None:
            long_dims = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            dim = long_dims[0] if len(long_dims) == 1 else self._map_dim(tensor)
            if dim is not None:
                return LabelMap.varying(self.axis_labels(view, view.axes[dim]), dim, tensor.shape), False
            for axis in range(view.tensor.dim()):
                self.pin_axis(view, axis, "its weight is used by an operator other than a convolution or linear one")
        return _without_channels(tensor), False

    def is_learned_map(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer with several axes longer than 1 that has no labels as a map."""
        is_parameter = self.parameter_view(tensor) is not None
        return is_parameter and sum(size > 1 for size in tensor.shape) > 1 and self._map_dim(tensor) is None

    def set_map_dim(self, tensor: Tensor, dim: int) -> None:
        """Makes a parameter that an element-wise operator reads a map of channels, whose other axes are pinned.

        Args:
            tensor: See :meth:`is_learned_map`.
            dim: The dimension along which it meets channels. Where it has none, or one of size 1, nothing is done.
        """
        view = self.parameter_view(tensor)
        if view is None or dim < 0 or tensor.shape[dim] == 1:
            return
        for axis in range(view.tensor.dim()):
            if axis != view.axes[dim]:
                self.pin_axis(view, axis, "it is no axis of channels of a map that is added or multiplied")
        self._map_dims[id(tensor)] = weakref.ref(tensor), dim

    def _map_dim(self, tensor: Tensor) -> int | None:
        entry = self._map_dims.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def labels_of(self, tensor: Tensor) -> LabelMap:
        """The labels of a tensor, see :meth:`label_map`."""
        return self.label_map(tensor)[0]

    def known_label_maps(self, tensors: Sequence[Tensor]) -> tuple[LabelMap, ...]:
        """The labels of those tensors that an operator of the run made; nothing is pinned."""
        entries = [(tensor, self._label_maps.get(id(tensor))) for tensor in tensors]
        return tuple(entry[1] for tensor, entry in entries if entry is not None and entry[0]() is tensor)

    def set_label_map(self, tensor: Any, label_map: LabelMap, zero_when_masked: bool) -> None:
        """Stores the labels of an operator's result; what is not a tensor is skipped."""
        if isinstance(tensor, Tensor):
            self._label_maps[id(tensor)] = weakref.ref(tensor), label_map, zero_when_masked

    def note_write(self, tensor: Tensor) -> None:
        """Notes that an operator wrote to a tensor in place: its views are zero when masked only if it still is.

        Args:
            tensor: The tensor, after its new labels were set.
        """
        entry = self._label_maps.get(id(tensor))
        if entry is not None and entry[0]() is tensor and not entry[2]:
            self._written.add(storage_id(tensor))

    def note_new_memory(self, call: OperatorCall) -> None:
        """Forgets what was noted of memory that was released and is now that of new results."""
        if self._written:
            given = {storage_id(tensor) for tensor in call.operands}
            self._written -= {storage_id(tensor) for tensor in call.results} - given

    def outliving(self) -> Iterator[Tensor]:
        """The tensors that operators of the run made, or views of parameters, that something still refers to."""
        references = [entry[0] for entry in self._label_maps.values()] + [entry[0] for entry in self._views.values()]
        yield from (tensor for reference in references if (tensor := reference()) is not None)

    def label_results(self, call: OperatorCall, labels: np.ndarray, dim: int | None, zero_when_masked: bool) -> None:
        """Gives every result of a call the labels along ``dim``; with ``dim=None`` the one label everywhere."""
        for tensor in call.results:
            shape = tuple(tensor.shape)
            label_map = LabelMap(shape, None, labels) if dim is None else LabelMap.varying(labels, dim, shape)
            self.set_label_map(tensor, label_map, zero_when_masked)

    # Cuts -----------------------------------------------------------------------------------------------------------
    def unite_held(self, size: tuple[str, int], labels: np.ndarray, reason: str) -> None:
        """Unites the channels of parts whose size is one number of a module: they shrink together.

        Args:
            size: The module, and the size.
            labels: The channels of a part of that size, int64.
            reason: Why the channels must be kept where they meet a fixed width.
        """
        labels = free_as_fixed(labels)
        self.sets.unite(self._held.setdefault(size, labels), labels, reason)

    def hold(self, size: HeldSize) -> None:
        """Notes that an attribute holds a number of channels, unless it was noted before."""
        self.sizes.setdefault((size.module, size.attribute), size)

    def run_over_kept(self, call: OperatorCall, dim: int, labels: np.ndarray) -> bool:
        """Lets channels go that an operator takes statistics over, if norms may run over the kept channels alone.

        Args:
            call: The call.
            dim: The dimension of the channels.
            labels: Their labels, int64, without ``FREE``.

        Returns:
            Whether they may go; if not, nothing has changed.
        """
        if self._renormalises:
            self.note_statistics(call, dim, labels, exact=False)
        return self._renormalises

    def note_statistics(self, call: OperatorCall, dim: int, labels: np.ndarray, *, exact: bool) -> None:
        """Notes statistics over channels that may go.

        Args:
            call: The call that takes them.
            dim: The dimension of the channels.
            labels: Their labels, int64, without ``FREE``.
            exact: See :class:`fec_fast.graph.channel_statistics.ChannelStatistics`.
        """
        own_dim = dim - call.args[0].dim()
        found = ChannelStatistics(call.layer, str(call.operator), call.repetition, own_dim, labels, exact)
        key = found.layer, found.operator, found.number
        known = self.statistics.setdefault(key, found)
        reason = f"{call.layer or 'the model'} normalises different channels with the same code"
        if known.dim == found.dim and len(known.labels) == len(labels):
            self.sets.unite(known.labels, labels, reason)
        else:
            for each in (known, found):
                self.sets.pin(each.labels, reason)

    # Pins -----------------------------------------------------------------------------------------------------------
    def pin(self, tensors: Any, reason: str, note: str | None = None) -> None:
        """Forbids the removal of every channel in tensors.

        Args:
            tensors: Tensors, nested in any way.
            reason: Why, as reported for the layers that make the channels.
            note: Added to the notes if any of the channels could have been removed before.
        """
        changed = False
        for tensor in tensors_in(tensors):
            changed |= self.sets.pin(self.labels_of(tensor).labels, reason)
        if changed and note is not None:
            self.notes[note] = None

    def pin_call(self, call: OperatorCall, why: str) -> None:
        """Forbids the removal of every channel that a call reads; its results have no channels to remove.

        Args:
            call: The call.
            why: Completes the sentence "The operator ...".
        """
        operator = call.operator
        place = _place()
        where = "" if place is None else f" ({place})"
        note = f"{operator} {why}{where}: the channels it reads keep their width"
        self.pin((call.args, call.kwargs), f"it feeds {operator}, which {why}", note)
        for tensor in call.results:
            self.set_label_map(tensor, _without_channels(tensor), False)


def _place() -> str | None:
    return line_of_model_code(call_model.__code__)


def _without_channels(tensor: Tensor) -> LabelMap:
    """A single element is broadcast to whatever it meets; any other extent is fixed."""
    return LabelMap.constant(FREE if tensor.numel() == 1 else FIXED, tensor.shape)
