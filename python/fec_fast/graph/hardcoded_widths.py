"""Hard-coded widths: a trial run of a pruned network finds the widths that are written into a model's code.

A model may reshape to a number of its own, or assert one. The run of the pruned network then stops at the operator that
meets this number, or just before it. The run of the original passed the same operators in the same order, so the trace
knows which channels went into that operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from ..utils.code_lines import line_that_raised
from ..utils.errors import InputError
from ..utils.forward import call_model, copied_inputs
from ..utils.model_index import ModelIndex
from .dispatch_mode import TracedOperator
from .label_sets import LabelPartition, Pin
from .recorded_run import RecordingMode, unchanged
from .shape_only import call_with_values
from .trace import Trace

# How many operators before the one that stopped the run are searched for removable channels. Attention has some twenty
# from its input to its output, a lambda layer more than forty.
REACH = 64


def find_hardcoded_width(
    pruned: ModelIndex, example_inputs: Any, trace: Trace, partition: LabelPartition, *, training: bool = False
) -> Pin:
    """Runs a pruned network that cannot be run, and finds the channels that it stops at.

    Args:
        pruned: The index of the pruned network, which is left as it was.
        example_inputs: What the trace was made with.
        trace: The trace of the original.
        partition: What is known so far of the labels that must be kept, see :class:`fec_fast.graph.groups.Coupling`.
        training: Whether it is training mode that the network cannot be run in. Then the trace has such a run too.

    Returns:
        The labels that must be kept, of which at least one could be removed so far; the reason; a note for the user.

    Raises:
        InputError: No channel can be held responsible for it.
    """
    watcher, given = RecordingMode(pruned, call_with_values), copied_inputs(example_inputs)
    try:
        with unchanged(pruned, watcher, watcher.guard, training):
            call_model(pruned.model, given)
    except InputError as error:
        cause = error.__cause__
        if cause is None:  # of the model's code itself, see unchanged
            raise
        message = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
        operators = (trace.training_operators or ()) if training else trace.operators
        reached = _position_behind(watcher.passed, operators)
        found = None if reached is None else removable_before(operators, reached, partition, pruned)
        if found is not None:
            operator, labels = found
            line = line_that_raised(cause)
            where = "" if line is None else f" ({line})"
            return Pin(
                labels,
                f"the model's code wants its width at {operator} ({message}){where}",
                f"{operator}: the model's code wants the width that it was written for ({message})",
            )
        raise InputError(
            f"the pruned {type(pruned.model).__name__} cannot be run ({message}): its code wants a width that was "
            "pruned; name the layer that makes it in ignore="
        ) from error
    raise InputError(f"the pruned {type(pruned.model).__name__} runs on these inputs at one time and not at another")


def only_lays_out(operator: Any) -> bool:
    """Whether an operator moves no element from one index to another: a view, or a copy; sizes decide which it is."""
    return operator.is_view or operator.overloadpacket.__name__ in ("clone", "_unsafe_view", "_to_copy", "contiguous")


def _position_behind(passed: Sequence[Any], operators: Sequence[TracedOperator]) -> int | None:
    """The position in a trace behind operators that a run has passed; ``None`` if the run passed others."""
    if [traced.operator for traced in operators[: len(passed)]] == passed:
        return len(passed)
    made = [operator for operator in passed if not only_lays_out(operator)]
    expected = [number for number, traced in enumerate(operators) if not only_lays_out(traced.operator)]
    if len(made) > len(expected) or made != [operators[number].operator for number in expected[: len(made)]]:
        return None
    return expected[len(made)] if len(made) < len(expected) else len(operators)


def removable_before(
    operators: Sequence[TracedOperator], position: int, partition: LabelPartition, network: ModelIndex
) -> tuple[Any, np.ndarray] | None:
    """The channels that a run most likely stops at, or turns another way for.

    The operator that was not passed is examined first, then those before it, until one has removable channels. A check
    in the model's own code may have decided, or attention, whose operators keep their width, reshaped to the width of
    its input. Further back than ``REACH``, the choice would be a guess.

    A network of equal blocks stops in each of them. So the channels at the same place of other modules of the same
    class and settings belong to the result, where the operator has the same numbers and shapes there: one run finds all
    of them.

    Args:
        operators: The operators of the trace.
        position: The first that was not passed.
        partition: What is known so far of the labels that must be kept.
        network: The index of the network, or of a pruned copy.

    Returns:
        The operator, and the labels of its operands; ``None`` if none of them can be removed.
    """
    for at in range(position, max(0, position - REACH) - 1, -1):
        if at < len(operators) and not partition.all_pinned(_labels_of(operators[at])):
            alike = _at_same_place(operators, at, network)
            return operators[at].operator, np.concatenate([_labels_of(operators[other]) for other in alike])
    return None


def _labels_of(traced: TracedOperator) -> np.ndarray:
    return np.concatenate([of_input.labels for of_input in traced.inputs] or [np.zeros(0, dtype=np.int64)])


def _at_same_place(operators: Sequence[TracedOperator], position: int, network: ModelIndex) -> list[int]:
    """The positions of an operator and of its like in other modules of the same kind, the given one first."""
    made: Counter[str] = Counter()
    places = []
    for traced in operators:
        shapes = tuple(of_input.shape for of_input in traced.inputs)
        places.append((made[traced.layer], traced.operator, traced.numbers, shapes))
        made[traced.layer] += 1
    layer = operators[position].layer
    others = (at for at, place in enumerate(places) if place == places[position] and at != position)
    return [position, *(at for at in others if _is_alike(network, layer, operators[at].layer))]


def _is_alike(network: ModelIndex, name: str, other: str) -> bool:
    """Whether two modules lie at the same place of blocks of one kind, such as ``blocks.3.norm`` and ``blocks.5.norm``.

    The blocks, and everything between them and the modules, have the same classes and settings.
    """
    parts, others = name.split("."), other.split(".")
    first = next((level for level, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1]), None)
    if first is None or parts[first + 1 :] != others[first + 1 :]:
        return False
    if first == len(parts) - 1 and next(network.modules[name].children(), None) is None:
        return False  # two layers of one block: its code may treat them differently
    return all(
        _kind(network.modules[".".join(parts[:end])]) == _kind(network.modules[".".join(others[:end])])
        for end in range(first + 1, len(parts) + 1)
    )


def _kind(module: nn.Module) -> tuple[type, dict[str, Any]]:
    """The class of a module, and those of its attributes that may decide which code runs."""
    plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | None)}
    return type(module), plain
