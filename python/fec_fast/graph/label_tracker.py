"""The label tracker: which labels the tensors of a run carry, and what label rules do with them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..utils.code_lines import line_of_model_code
from ..utils.compat import ConvolutionBase, NormBase, storage_id
from ..utils.computed_weights import computation_of, owner_of
from ..utils.forward import call_model, tensors_in
from ..utils.model_index import ModelIndex
from .channel_statistics import StatisticsOfRun
from .cuts import Cut
from .head_choice import HeadChoice
from .held_sizes import HeldSize
from .label_sets import LabelSets
from .labels import FIXED, FREE, LabelMap, free_as_fixed
from .operator_call import OperatorCall
from .operator_trial import WithinChannels
from .weight_labels import ComputedWeights, ParameterView, WeightLabels, WeightUse, reason_of


class LabelTracker:
    """The labels of the tensors of a run. Label rules read them and set those of new tensors.

    A tensor is *zero when masked* if masking channels (setting them to zero where they are made) makes it exactly zero
    at their labels. Then a sum over its channels does not change when they are removed. It is kept beside the labels of
    each tensor.

    Attributes:
        sets: Which labels are removed together, and which must be kept.
        axes: For each parameter or buffer (first name) and axis, one label per index, int64.
        weight_uses: The first convolution or linear operation of each weight, by the name of the weight.
        further_uses: The first of each other way in which such a weight is used.
        notes: What was not understood, for the user; a dictionary for its order, without values.
        modules: The modules of the model by name.
        cuts: The operators that divide channels, or shape a tensor with channels, in order; rules add to them.
        lines: Where in the model's code the cuts are, as far as it is known.
        sizes: Attributes that are known to hold numbers of channels, by module and name; rules add to them.
        statistics: Statistics over channels that may go, by their places in the model's code.
        weights: The tensors that are computed from parameters alone.
        heads: Which modules lose whole heads, and what the run shows of it.
        zero_probes: For calls of element-wise operators, whether they keep zeros; kept for the rule in
            :mod:`fec_fast.graph.rules.elementwise`.
        operator_trials: For calls of operators without a rule, what a trial showed; kept for
            :mod:`fec_fast.graph.rules.by_trial`.
        believed: The channels of such calls, where the operator acts within each, with the operator and the layer.
    """

    def __init__(self, index: ModelIndex, norms: str = "exact", heads: Mapping[str, int] | None = None) -> None:
        """Starts without labels.

        Args:
            index: The index of the model that will be run.
            norms: See :data:`fec_fast.graph.channel_statistics.NORMS`.
            heads: See :class:`fec_fast.graph.head_choice.HeadChoice`.
        """
        self.sets = LabelSets(_place)
        self.axes: dict[tuple[str, int], np.ndarray] = {}
        self.weight_uses: dict[str, WeightUse] = {}
        self.further_uses: list[WeightUse] = []
        self.notes: dict[str, None] = {}
        self.modules = index.modules
        self.weights = ComputedWeights()
        self.heads = HeadChoice(heads or {})
        self.cuts: list[Cut] = []
        self.lines: dict[Cut, str] = {}
        self.sizes: dict[tuple[str, str], HeldSize] = {}
        self.statistics = StatisticsOfRun(norms)
        self._pinned_when_read: dict[int, tuple[weakref.ref[Tensor], np.ndarray, str]] = {}
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
        self._trained: set[str] = set()
        for identity, name in index.first_names.items():
            tensor = index.tensors[name]
            if isinstance(tensor, nn.Parameter):
                self._trained.add(name)
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

    # Computed weights -----------------------------------------------------------------------------------------------
    def is_from_parameters(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer, or was computed from some alone."""
        return self.parameter_view(tensor) is not None or self.weights.get(tensor) is not None

    def weight_labels(self, tensor: Tensor) -> WeightLabels | None:
        """The labels of a parameter on all its axes, or of what was computed from parameters alone; else ``None``."""
        found = self.weights.get(tensor)
        view = self.parameter_view(tensor) if found is None else None
        if view is None:
            return found
        axes = [self.axis_labels(view, axis) if view.tensor.shape[axis] > 1 else None for axis in view.axes]
        return WeightLabels(tuple(axes), (True,) * len(axes), view.name, view.axes)

    def set_weight_labels(self, tensor: Tensor, labels: WeightLabels) -> None:
        """Stores the labels of a tensor that was computed from parameters alone."""
        if self.parameter_view(tensor) is not None:
            return
        dims = labels.labelled
        if len(dims) <= 1:
            shape = tuple(tensor.shape)
            vector = labels.axes[dims[0]] if dims else None
            label_map = _without_channels(tensor) if vector is None else LabelMap.varying(vector, dims[0], shape)
            self.set_label_map(tensor, label_map, False)
        self.weights.set(tensor, labels)

    def is_trained(self, name: str) -> bool:
        """Whether a name is that of a parameter, and not of a buffer."""
        return name in self._trained

    def pin_weight(self, labels: WeightLabels, dims: Iterable[int], remedy: str = "") -> None:
        """Forbids the narrowing of a weight along dimensions that an operator takes together.

        Args:
            labels: The labels of the weight.
            dims: The dimensions.
            remedy: What would let the channels go, beside what makes the weight a plain one.
        """
        vectors = [vector for dim in dims if (vector := labels.axes[dim]) is not None]
        if vectors:
            reason = reason_of(computation_of(self.modules, labels.source)) + (f", or {remedy}" if remedy else "")
            for vector in vectors:
                self.sets.pin(vector, reason)

    # Tensors --------------------------------------------------------------------------------------------------------
    def label_map(self, tensor: Tensor) -> tuple[LabelMap, bool]:
        """The labels of a tensor, and whether it is zero when masked.

        A parameter that an element-wise operator reads (a scale per channel) has the labels of its only axis that is
        longer than 1. One with several such axes is a map with the labels of one of them, see :meth:`set_map_dim`, or a
        weight in an operator that has no rule for weights, whose axes are pinned. A tensor that no operator of the run
        made (an input, a constant) has a fixed width.
        """
        if self._pinned_when_read:
            awaited = self._pinned_when_read.get(id(tensor))
            if awaited is not None and awaited[0]() is tensor:
                self.sets.pin(*awaited[1:])
        entry = self._label_maps.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1], entry[2] and not (self._written and storage_id(tensor) in self._written)
        view = self.parameter_view(tensor)
        if view is not None:
            long_dims = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            dim = long_dims[0] if len(long_dims) == 1 else self._map_dim(tensor)
            if dim is not None:
                owner = self.modules[owner_of(view.name)]
                is_masked = isinstance(owner, ConvolutionBase | nn.Linear | NormBase | nn.MultiheadAttention)
                return LabelMap.varying(self.axis_labels(view, view.axes[dim]), dim, tensor.shape), is_masked
            reason = "its weight is used by an operator other than a convolution or linear one"
            for axis in range(view.tensor.dim()):
                self.pin_axis(view, axis, reason)
        weight = self.weights.get(tensor) if view is None else None
        if weight is not None:  # it has several axes with labels
            dim = self._map_dim(tensor)
            labels = None if dim is None else weight.axes[dim]
            if labels is not None:
                return LabelMap.varying(labels, dim or 0, tensor.shape), False
            self.pin_weight(weight, weight.labelled)
        return _without_channels(tensor), False

    def is_learned_map(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer with several axes longer than 1 that has no labels as a map."""
        is_parameter = self.parameter_view(tensor) is not None
        if not is_parameter and (weight := self.weights.get(tensor)) is not None:
            return len(weight.labelled) > 1 and self._map_dim(tensor) is None
        return is_parameter and sum(size > 1 for size in tensor.shape) > 1 and self._map_dim(tensor) is None

    def set_map_dim(self, tensor: Tensor, dim: int) -> None:
        """Makes a parameter that an element-wise operator reads a map of channels, whose other axes are pinned.

        Args:
            tensor: See :meth:`is_learned_map`.
            dim: The dimension along which it meets channels. Where it has none, or one of size 1, nothing is done.
        """
        if dim < 0 or tensor.shape[dim] == 1:
            return
        view, weight = self.parameter_view(tensor), self.weights.get(tensor)
        reason = "it is no axis of channels of a map that is added or multiplied"
        if view is not None:
            for axis in range(view.tensor.dim()):
                if axis != view.axes[dim]:
                    self.pin_axis(view, axis, reason)
        elif weight is not None:
            for other, labels in enumerate(weight.axes):
                if other != dim and labels is not None:
                    self.sets.pin(labels, reason)
        self._map_dims[id(tensor)] = weakref.ref(tensor), dim

    def _map_dim(self, tensor: Tensor) -> int | None:
        entry = self._map_dims.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def labels_of(self, tensor: Tensor) -> LabelMap:
        """The labels of a tensor, see :meth:`label_map`."""
        return self.label_map(tensor)[0]

    def extent_of(self, tensor: Tensor) -> LabelMap:
        """The labels that the size of a result depends on; that of a computed weight is taken to be constant."""
        weight = self.weights.get(tensor)
        if weight is not None and len(weight.labelled) > 1:
            return LabelMap.constant(FIXED, tensor.shape)
        return next(iter(self.known_label_maps([tensor])), None) or self.labels_of(tensor)

    def known_label_maps(self, tensors: Sequence[Tensor]) -> tuple[LabelMap, ...]:
        """The labels of those tensors that an operator of the run made; nothing is pinned."""
        entries = [(tensor, self._label_maps.get(id(tensor))) for tensor in tensors]
        return tuple(entry[1] for tensor, entry in entries if entry is not None and entry[0]() is tensor)

    def set_label_map(self, tensor: Any, label_map: LabelMap, zero_when_masked: bool) -> None:
        """Stores the labels of an operator's result; what is not a tensor is skipped."""
        if isinstance(tensor, Tensor):
            self.weights.forget(tensor)
            self._label_maps[id(tensor)] = weakref.ref(tensor), label_map, zero_when_masked

    def pin_when_read(self, tensor: Tensor, labels: np.ndarray, reason: str) -> None:
        """Forbids the removal of channels as soon as anything reads a tensor, whose labels are set already."""
        self._pinned_when_read[id(tensor)] = weakref.ref(tensor), labels, reason

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
        yield from self.weights.alive()

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

    def note_lines(self) -> None:
        """Notes the line that is being run for the last cut, unless it has one."""
        place = _place() if self.cuts and self.cuts[-1] not in self.lines else None
        if place is not None:
            self.lines[self.cuts[-1]] = place

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
        if self.statistics.renormalises:
            self.note_statistics(call, dim, labels, exact=False)
        return self.statistics.renormalises

    def note_statistics(self, call: OperatorCall, dim: int, labels: np.ndarray, *, exact: bool) -> None:
        """Notes statistics over channels that may go.

        Args:
            call: The call that takes them.
            dim: The dimension of the channels.
            labels: Their labels, int64, without ``FREE``.
            exact: See :class:`fec_fast.graph.channel_statistics.ChannelStatistics`.
        """
        self.statistics.note(self.sets, call, dim, labels, exact=exact)

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
