"""A trial run of a pruned network, which finds widths that are written into a model's code.

A model may reshape to a number of its own, or assert one. Such a run stops at the operator that met it, or just before;
the original's run passed the same operators in the same order, so it is known which channels went into that one.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import labels as lb
from .errors import InputError
from .inputs import call_model, undisturbed
from .trace import Trace


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operators that were passed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        return result


def pin_where_it_stops(pruned: nn.Module, example_inputs: Any, trace: Trace) -> None:
    """Runs a pruned network that cannot be run, and forbids the removal of the channels that it stops at.

    Args:
        pruned: The pruned network; left as it was.
        example_inputs: What the trace was made with.
        trace: Of the original. Its labels are pinned, and the reason noted, where the run stops: another plan can then
            be made.

    Raises:
        InputError: No channel can be held responsible for it.
    """
    watcher = _Names()
    try:
        with undisturbed(pruned), watcher:
            call_model(pruned, example_inputs)
    except InputError as error:
        cause = error.__cause__
        message = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
        reached = len(watcher.names)
        same = [name for name, _ in trace.history[:reached]] == watcher.names
        # The operator that was not passed, or one of the few before it: what stopped the run may be a check in the
        # model's own code. Further back, the blame would be a guess.
        suspects = trace.history[max(0, reached - 3) : reached + 1] if same else []
        for name, planes in reversed(suspects):
            labels = [label for plane in planes for label in lb.distinct(plane)]
            if trace.sets.pin(labels, f"the model's code wants its width at {name} ({message})"):
                trace.notes.append(f"{name}: the model's code wants the width that it was written for ({message})")
                return
        raise InputError(
            f"the pruned {type(pruned).__name__} cannot be run ({message}): its code wants a width that was pruned; "
            "name the layer that makes it in ignore="
        ) from error
    raise InputError(f"the pruned {type(pruned).__name__} runs on these inputs at one time and not at another")
