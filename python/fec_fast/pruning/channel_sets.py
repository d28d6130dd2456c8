"""Channel sets: ``couplings`` lists the coupled channels of a model as data, for rules of your own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..graph.groups import CoupledChannels, Coupling, couple_channels
from ..graph.trace import Trace
from ..scoring.backends.registry import resolve
from ..scoring.formula import Formula
from ..utils.errors import list_some
from ..utils.html import html_panel
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.text import counted, text_table
from .allocation.allocate import AllocationRequest
from .arguments import check_ignore, check_norms
from .context import PruningContext
from .input_ties import trace_with_ties
from .trial import find_plan


@dataclass(frozen=True)
class ChannelSet:
    """Coupled channels: channels of the same layers, pruned unit by unit.

    A *unit* is one decision: all its indices are removed or all are kept. It holds the same number of indices on each
    axis as every other unit of its set: one in most layers, several in a grouped convolution or in a linear layer
    behind a flatten.

    Attributes:
        name: The first layer that makes the channels.
        units: The number of units.
        channels: For each layer that makes the channels, how many of them one unit holds.
        members: For each ``(tensor, axis)`` that is narrowed with the set, the indices of each unit. Tensors are
            parameters and buffers by their name in the model; a tied one stands under its first name.
    """

    name: str
    units: int
    channels: dict[str, int]
    members: dict[tuple[str, int], tuple[tuple[int, ...], ...]]

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<ChannelSet {self.name!r}: {self.units} units, made by {len(self.channels)} layers, "
            f"{len(self.members)} tensor axes>"
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that make the channels."""
        return tuple(self.channels)


@dataclass(frozen=True)
class Pinned:
    """A layer that keeps all or some of its channels in any pruning.

    Attributes:
        layer: Its name.
        width: The number of its output channels.
        channels: How many of them must be kept; all of them in a layer that cannot be pruned.
        reason: Why the first of them must be kept.
    """

    layer: str
    width: int
    channels: int
    reason: str


@dataclass(frozen=True)
class Couplings:
    """Which channels of a model are removed together, and which must be kept.

    Attributes:
        sets: The channels that can be removed, in the order in which the model uses them.
        pinned: The layers with channels that must be kept, in the same order; layers that the example inputs do not
            reach come last.
        notes: Operators that were not understood, and what follows from it.
    """

    sets: tuple[ChannelSet, ...]
    pinned: tuple[Pinned, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """One line; ``str()`` gives the table."""
        units = sum(coupled.units for coupled in self.sets)
        sets, pinned = counted(len(self.sets), "set"), counted(len(self.pinned), "layer")
        return f"<Couplings: {sets} of {counted(units, 'unit')}, {pinned} with channels to keep>"

    def _repr_html_(self) -> str:
        """For notebooks: the sets with the layers that make and read their channels; what must be kept."""
        rows = []
        for coupled in self.sets:
            holders = dict.fromkeys(tensor.rpartition(".")[0] or tensor for tensor, _ in coupled.members)
            others = [name for name in holders if name not in coupled.channels]
            rows.append((str(coupled.units), _some(coupled.layers), _some(others)))
        rows += [(f"{kept.channels} of {kept.width} kept", kept.layer, kept.reason) for kept in self.pinned]
        return html_panel(repr(self).strip("<>"), self.notes[:3], ("units", "made by", "narrowed too"), rows, "rll")

    def __str__(self) -> str:
        """A table: for each set its units, and by weight axis and indices per unit the modules that hold them."""
        rows: list[tuple[str, ...]] = []
        for coupled in self.sets:
            first = (coupled.name, str(coupled.units))
            holders: dict[tuple[int, int], dict[str, None]] = {}
            for (tensor, axis), indices in coupled.members.items():
                holders.setdefault((axis, len(indices[0])), {})[tensor.rpartition(".")[0] or tensor] = None
            for (axis, width), modules in holders.items():
                rows.append((*first, str(axis), str(width), ", ".join(modules)))
                first = ("", "")
        lines = [text_table(("set", "units", "axis", "per unit", "held by"), rows, "lrrrl")]
        for kept in self.pinned:
            share = f"all {kept.width}" if kept.channels == kept.width else f"{kept.channels} of {kept.width}"
            lines.append(f"pinned: {kept.layer}: {share} channels are kept: {kept.reason}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return list_some(names) if names else ""


@interruptible
def couplings(model: nn.Module, example_inputs: Any, *, ignore: Sequence[str] = (), norms: str = "exact") -> Couplings:
    """Lists the coupled channels that :func:`fec_fast.prune` would choose from.

    Args:
        model: The network, possibly inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``. It is
            run on the example inputs, as is a copy without half of its channels, and left as it was.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.
        ignore: Names of layers, or of modules that hold layers, that keep their channels.
        norms: What happens to channels that norms take statistics over, as for :func:`fec_fast.prune`: ``"exact"`` (the
            default) or ``"renormalise"``.

    Returns:
        The sets, the pinned layers, and notes.

    Raises:
        InputError: The model, or the pruned copy, cannot be run on the example inputs.
        LayerError: A name in ``ignore`` that is not, and does not hold, a layer the model uses.
        ArgumentError: An argument of the wrong kind.
    """
    check_ignore(ignore)
    check_norms(norms)
    index = ModelIndex.of(model)
    trace = trace_with_ties(index, example_inputs, ignore, norms)
    coupling = couple_channels(trace, ignore)
    if coupling.sets:
        # Some widths are written into the model's code: a trial shows them. Which half it removes does not matter.
        context = PruningContext(
            index,
            example_inputs,
            trace,
            coupling,
            scores=[torch.zeros(len(coupled.units), dtype=torch.float64) for coupled in coupling.sets],
            criterion="l1",
            criterion_name="l1",
            formula=Formula(),
            sides="both",
            ignore=tuple(ignore),
            backend=resolve("auto"),
        )
        context = find_plan(context, AllocationRequest(ratio=0.5), verify=False).context
        trace, coupling = context.trace, context.coupling
    sets = tuple(_channel_set(coupled) for coupled in coupling.sets)
    return Couplings(sets, _pinned(index, trace, coupling), coupling.notes)


def _channel_set(coupled: CoupledChannels) -> ChannelSet:
    members = {key: tuple(map(tuple, indices.tolist())) for key, indices in coupled.indices().items()}
    channels = dict(zip(coupled.layers, coupled.channels_per_unit, strict=True))
    return ChannelSet(coupled.name, len(coupled.units), channels, members)


def _pinned(index: ModelIndex, trace: Trace, coupling: Coupling) -> tuple[Pinned, ...]:
    reasons = {**coupling.partly_pinned, **coupling.pinned}
    is_pinned = coupling.partition.pinned
    pinned = []
    for use in trace.weight_uses.values():
        kept = int(is_pinned[use.outputs].sum())
        if kept:
            pinned.append(Pinned(use.layer, len(use.outputs), kept, reasons[use.layer]))
    for layer in trace.unreached:
        module = index.modules[layer]
        width = getattr(module, "out_channels", None) or int(module.out_features)  # type: ignore[arg-type]
        pinned.append(Pinned(layer, width, width, reasons[layer]))
    return tuple(pinned)
