"""Targets: what every layer of the original computes at sampled positions, and what reads the layer's output."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..plan.plan import Plan
from ..utils.compat import storage_id
from ..utils.computed_weights import layer_with
from ..utils.forward import tensors_in
from ..utils.model_index import ModelIndex
from .layer_calls import LayerCall, LayerCallMode
from .least_squares import Rectifier
from .readers import Reader, ReaderTracker
from .rows import Positions, output_dims, output_rows, spread_positions, weight_matrices

# Operators that choose by values. What the pruned model chooses is not what the original chooses, so the rows of the
# layers behind (those of a detector's proposals) do not belong together.
_CHOOSING = {"topk", "sort", "argsort", "nonzero", "unique", "multinomial", "nms", "roi_align", "roi_pool"}


@dataclass(frozen=True, eq=False)
class CallTarget:
    """One call of a layer in the original.

    Attributes:
        positions: The sampled output positions.
        input_dims: The shape of the input without its channels.
        rows: ``[rows, kept outputs]``: the outputs there.
        reader: What reads the output.
    """

    positions: Positions
    input_dims: tuple[int, ...]
    rows: Tensor
    reader: Reader


@dataclass(eq=False)
class LayerTarget:
    """What the original says about a layer.

    Attributes:
        layer: The name of the layer.
        order: Its position in the order of the first calls.
        outputs: The output channels that are kept, int64; ``None`` for all.
        bias: The name of its bias.
        kind: What its calls are.
        calls: For each batch its calls, in order.
    """

    layer: str
    order: int
    outputs: Tensor | None
    bias: str | None
    kind: str
    calls: dict[int, list[CallTarget]] = field(default_factory=lambda: defaultdict(list))

    def readers(self) -> list[Reader]:
        """What reads its outputs, call by call."""
        return [call.reader for calls in self.calls.values() for call in calls]

    def norms(self) -> set[str]:
        """The running means of the batch norms that alone read its outputs; none if anything else does."""
        readers = self.readers()
        return {str(r.norm) for r in readers} if all(reader.feeds_norm_only for reader in readers) else set()

    def rectifier(self, rows: int, present_addend: Tensor | None, dtype: torch.dtype) -> Rectifier | None:
        """What follows the layer, if that is a sum or an activation with constant parts, the same in every call.

        Args:
            rows: How many rows the layer is fitted on; not those of all calls if some batches did not reach it.
            present_addend: ``[rows, outputs]``: what the pruned model adds; ``None`` if that is not known.
            dtype: The precision that the layer is fitted in.
        """
        readers = self.readers()
        first = readers[0]
        kinds = {(reader.interval, reader.norm, reader.addend is None) for reader in readers}
        if len(kinds) > 1 or not all(reader.is_chain for reader in readers):
            return None
        if first.interval is None and present_addend is None:
            return None
        scale, shift = first.scale, first.shift
        if scale is not None and shift is not None and self.outputs is not None:
            scale, shift = scale[self.outputs], shift[self.outputs]
        addends = [reader.addend for reader in readers if reader.addend is not None]
        addend = torch.cat(addends) if addends else None
        if addend is not None and len(addend) != rows:
            return None
        low, high = first.interval or (-math.inf, math.inf)
        # What is added may be of another precision, as the sum then is.
        scale, shift, addend, present = (
            None if tensor is None else tensor.to(dtype) for tensor in (scale, shift, addend, present_addend)
        )
        return Rectifier(scale, shift, addend, addend if present is None else present, low, high)


class TargetMode(LayerCallMode):
    """Gathers the targets of a run of the original."""

    def __init__(self, index: ModelIndex, plan: Plan, most_bytes: int) -> None:
        """Starts with nothing gathered.

        Args:
            index: The index of the original.
            plan: What is kept of it.
            most_bytes: How many bytes the input rows of one layer may take.
        """
        super().__init__(index)
        self.targets: dict[str, LayerTarget] = {}
        self.layers_of_bias: dict[str, set[str]] = defaultdict(set)
        self.readers = ReaderTracker(index.first_names)
        self.unfit: dict[str, str] = {}
        self.seen: set[str] = set()
        self.other_uses: dict[str, tuple[str, str]] = {}
        self.other_kinds: dict[str, str] = {}
        self.bytes_in_use = 1
        self._choice = ""
        self._reached: set[str] = set()
        self._plan, self._most_bytes = plan, most_bytes
        self._share = 1.0
        self._results: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._narrowed = False
        self._batch, self._most, self._seeds = 0, 0, torch.zeros(0, dtype=torch.int64)

    def begin(self, batch: int, most: int, share: float, seeds: Tensor) -> None:
        """Says what the next run is on.

        Args:
            batch: The number of the batch.
            most: How many positions of every layer are sampled in it.
            share: The share of all images that it has.
            seeds: Int64 ``[images]``, see :func:`fec_fast.recovery.rows.spread_positions`.
        """
        self._batch, self._most, self._share, self._seeds = batch, most, share, seeds
        self._narrowed, self._choice = False, ""
        self.path = 0

    def forget(self) -> None:
        """Forgets what was gathered, to begin anew."""
        self.targets.clear()

    def target_bytes(self) -> int:
        """How much memory the targets take that were gathered so far."""
        calls = [call for target in self.targets.values() for of_batch in target.calls.values() for call in of_batch]
        tensors = [call.rows for call in calls] + [c.reader.addend for c in calls if c.reader.addend is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def end(self, outputs: Any) -> None:
        """Notes that the model returns some of the layers' outputs.

        Args:
            outputs: What the run returned.
        """
        self.readers.read(outputs)
        for name in self.targets.keys() - self._reached:  # only now: a layer may be called again, further behind
            del self.targets[name]
        for name in self.targets.keys() & self.other_uses.keys():
            layer, function = self.other_uses[name]
            self.unfit[layer] = f"its weight is used by {function!r} too"
        for name in self.targets.keys() & self.other_kinds.keys():  # what is fitted for one would ruin the other
            kinds = f"as {self.targets[name].kind} and as {self.other_kinds[name]}"
            self.unfit[self.targets[name].layer] = f"its weight is used in several ways: {kinds}"

    def before_layer(self, call: LayerCall) -> None:
        """Notes that a layer reads another one's output, and how much memory the run holds here."""
        self.readers.read(call.input)
        if not self._batch:
            storages = {storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in self._results}
            self.bytes_in_use = max(self.bytes_in_use, sum(storages.values()))

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Keeps the outputs of a layer at sampled positions."""
        self._note_memory(output)
        self.readers.made(output, self.path)
        self.seen.add(call.name)
        if call.bias is not None and id(call.bias) in self.names:
            self.layers_of_bias[self.names[id(call.bias)]].add(call.name)
        # Before the first layer that loses a channel, the pruned model computes what the original does.
        if self._narrowed or "1" in self._plan.keep.get(call.name, {}):
            self._reached.add(call.name)
        self._narrowed = self._narrowed or call.name in self._plan.keep
        if self._choice:
            self.unfit[call.layer] = f"it lies behind {self._choice!r}, which chooses by values"
            return
        target = self.targets.get(call.name)
        if target is None:
            bias = None if call.bias is None else self.names.get(id(call.bias))
            kept = kept_outputs(call, self._plan.keep.get(call.name, {}))
            outputs = None if kept is None else torch.tensor(kept, device=output.device)
            target = self.targets[call.name] = LayerTarget(call.layer, len(self.targets), outputs, bias, call.kind)
        if target.kind != call.kind:
            self.other_kinds[call.name] = call.kind
            return
        if target.bias != (None if call.bias is None else self.names.get(id(call.bias))):
            self.unfit[call.layer] = "its weight is used with several biases"
        dims = output_dims(call, output)
        most = int(self._most_bytes * self._share / (4 * weight_matrices(call, call.weight)[0].shape[0] * call.groups))
        positions = spread_positions(dims, max(1, min(self._most, most)), self._seeds_of(dims[0]))
        reader = Reader(partial(_rows_of, output.shape, positions, target.outputs, call.is_linear))
        self.readers.follow(output, call.name, reader)
        rows = output_rows(output, positions, target.outputs, is_linear=call.is_linear)
        target.calls[self._batch].append(CallTarget(positions, input_dims(call), rows, reader))

    def before_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any]) -> None:
        """Follows the layers' outputs."""
        self.readers.before(function, arguments)

    def after_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Follows the layers' outputs."""
        self.readers.after(function, arguments, result)
        self.readers.made(result, self.path)
        if not self._batch:
            self._note_other_uses(function, arguments, result)
        name = getattr(function, "__name__", "").rpartition(".")[2]
        if self._narrowed and name in _CHOOSING:
            self._choice = name
        self._note_memory(result)

    def _note_other_uses(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Notes weights that a function other than a layer uses: they serve two purposes, and are fitted to neither."""
        if any(True for _ in tensors_in(result)):
            for tensor in tensors_in(list(arguments.values())):
                if id(tensor) in self.names and tensor.dim() > 1:
                    name = self.names[id(tensor)]
                    self.other_uses[name] = (layer_with(name), _name_of(function))

    def _note_memory(self, result: Any) -> None:
        """Notes what a function returned in the first batch: what is still there at a layer is held while it waits."""
        if not self._batch:
            for tensor in tensors_in(result):
                self._results[tensor] = None

    def _seeds_of(self, items: int) -> Tensor:
        """One seed for each item of a layer's batch, which may hold several items of one image."""
        images = len(self._seeds)
        if items == images or not images or items % images:
            return self._seeds if items == images else torch.arange(items)
        return self._seeds.repeat_interleave(items // images) + torch.arange(items // images).repeat(images)


def _name_of(function: Callable[..., Any]) -> str:
    """The name of a function of torch; for the getter of an attribute (``weight.T``) that of the attribute."""
    attribute = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "__get__" else None
    return str(getattr(function if attribute is None else attribute, "__name__", function))


def _rows_of(
    shape: Size, positions: Positions, channels: Tensor | None, is_linear: bool, tensor: Tensor
) -> Tensor | None:
    """The rows of a tensor like a layer's output. It holds no call: that would keep the layer's input in memory."""
    return output_rows(tensor, positions, channels, is_linear=is_linear) if tensor.shape == shape else None


def kept_outputs(call: LayerCall, keep: Mapping[str, list[int]]) -> list[int] | None:
    """The output channels of a layer that a plan keeps.

    Args:
        call: A call of the layer in the original.
        keep: The kept indices of its weight, by axis.

    Returns:
        The channels, rising; ``None`` if all are kept.
    """
    if not call.transposed:
        return keep.get("0")
    if call.groups == 1 or not keep:
        return keep.get("1")
    # Axis 0 has the inputs of all groups, axis 1 the outputs of one group.
    inputs, outputs = call.weight.shape[0] // call.groups, call.weight.shape[1]
    groups = sorted({index // inputs for index in keep["0"]}) if "0" in keep else range(call.groups)
    return [group * outputs + index for group in groups for index in keep.get("1", range(outputs))]


def input_dims(call: LayerCall) -> tuple[int, ...]:
    """The shape of a layer's input without its channels.

    Args:
        call: The call.
    """
    shape = tuple(call.input.shape)
    return shape[:-1] if call.is_linear else (shape[0], *shape[2:])
