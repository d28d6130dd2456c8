"""Which channels stand or fall together: the coupled sets of a traced model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import LayerError, nearest
from .trace import Trace
from .tracer import Use


@dataclass(frozen=True)
class CoupledSet:
    """Channels of the same layers, one decision each.

    A *unit* is one decision: all the indices, on all the weight axes, that are removed together.

    Attributes:
        name: The first layer that makes these channels.
        layers: All layers that make them.
        units: The label of each unit.
        members: For each unit, the indices it holds on each ``(tensor, axis)``.
        widths: Channels per unit in each producing layer.
    """

    name: str
    layers: tuple[str, ...]
    units: tuple[int, ...]
    members: tuple[dict[tuple[str, int], list[int]], ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Coupling:
    """The coupled sets of a model and what must stay.

    Attributes:
        sets: The sets whose channels may be removed.
        pinned: For each layer none of whose channels may be removed, the reason.
        partly: For each layer some of whose channels may not, the reason.
        lengths: The length of each ``(tensor, axis)``, with what must stay.
    """

    sets: tuple[CoupledSet, ...]
    pinned: dict[str, str]
    partly: dict[str, str]
    lengths: dict[tuple[str, int], int]


def couple(trace: Trace, ignore: Sequence[str] = ()) -> Coupling:
    """Gathers labels into coupled sets.

    Args:
        trace: The traced model; the ignored layers are pinned in it.
        ignore: Names of layers, or of modules that hold layers, whose own channels are not removed.

    Returns:
        The sets in the order in which the model uses them.

    Raises:
        LayerError: A name in ``ignore`` that is not, and does not hold, a layer the model uses.
    """
    for name in ignore:
        inside = [use for use in trace.uses.values() if name in ("", use.layer) or use.layer.startswith(f"{name}.")]
        if not inside:
            raise LayerError(f"ignore: no layer {name!r}; {nearest(name, [u.layer for u in trace.uses.values()])}")
        for use in inside:
            trace.sets.pin(use.outputs, f"it is ignored as {name!r}")

    members: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, line in trace.axes.items():
        for index, label in enumerate(line):
            if trace.sets.reason(label) is None:
                members[trace.sets.find(label)][key].append(index)

    makers: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for use in trace.uses.values():
        for label in use.outputs:
            if trace.sets.reason(label) is None:
                makers[trace.sets.find(label)][use.layer] += 1

    gathered: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for root, layers in makers.items():
        signature = (tuple(layers.items()), tuple(sorted((key, len(at)) for key, at in members[root].items())))
        gathered[signature].append(root)
    sets = []
    for roots in gathered.values():
        layers = makers[roots[0]]
        found = tuple({key: at for key, at in members[root].items()} for root in roots)
        sets.append(CoupledSet(next(iter(layers)), tuple(layers), tuple(roots), found, tuple(layers.values())))
    pinned, partly = _pinned(trace)
    return Coupling(tuple(sets), pinned, partly, {key: len(line) for key, line in trace.axes.items()})


def _pinned(trace: Trace) -> tuple[dict[str, str], dict[str, str]]:
    pinned: dict[str, str] = {}
    partly: dict[str, str] = {}
    for use in trace.uses.values():
        reasons = [trace.sets.reason(label) for label in use.outputs]
        given = [reason for reason in reasons if reason is not None]
        if given:
            (pinned if len(given) == len(reasons) else partly)[use.layer] = given[0]
    for layer in trace.unreached:
        pinned[layer] = "the example inputs do not reach it"
    return pinned, partly


def kept_indices(line: Sequence[int], removed: set[int], trace: Trace) -> list[int]:
    """The indices of an axis that remain.

    Args:
        line: The labels of the axis.
        removed: The labels (representatives) of the units that go.
        trace: Knows the representatives.

    Returns:
        The remaining indices in order.
    """
    return [index for index, label in enumerate(line) if trace.sets.find(label) not in removed]


def new_attributes(use: Use, removed: set[int], trace: Trace) -> tuple[int, int, int]:
    """The input channels, output channels and groups of a layer after pruning.

    Args:
        use: The layer's use.
        removed: The labels (representatives) of the units that go.
        trace: Knows the representatives.

    Returns:
        ``(inputs, outputs, groups)``.
    """
    inputs = len(kept_indices(use.inputs, removed, trace))
    outputs = len(kept_indices(use.outputs, removed, trace))
    groups = use.groups * inputs // len(use.inputs) if use.whole_groups else use.groups
    return inputs, outputs, groups
