"""A trial run of a pruned network, which finds widths that are written into a model's code.

A model may reshape to a number of its own, or assert one. Such a run stops at the operator that met it, or just before;
the original's run passed the same operators in the same order, so it is known which channels went into that one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from torch import nn

from ..utils.compat import TorchDispatchMode
from ..utils.errors import InputError
from ..utils.forward import call_model, undisturbed
from . import shape_only as hollow
from .trace import Trace, unfused_attention


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operators that were passed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        return result


class _Hollow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return hollow.evaluate(func, args, kwargs or {})


def runs(pruned: nn.Module, example_inputs: Any) -> bool:
    """Whether a pruned network can be run.

    Args:
        pruned: The pruned network; left as it was.
        example_inputs: What the trace was made with.
    """
    with contextlib.suppress(InputError), undisturbed(pruned), _Hollow(), hollow.ReadingRefused():  # type: ignore[no-untyped-call]
        call_model(pruned, example_inputs)
        return True
    with contextlib.suppress(InputError), undisturbed(pruned):
        call_model(pruned, example_inputs)
        return True
    return False


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
        with undisturbed(pruned), unfused_attention(), watcher:
            call_model(pruned, example_inputs)
    except InputError as error:
        cause = error.__cause__
        message = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
        reached = len(watcher.names)
        same = [str(func) for func, _ in trace.history[:reached]] == watcher.names
        # The operator that was not passed, or the nearest before it that has removable channels: a check in the model's
        # own code may have stopped the run, or attention, whose operators keep their width, reshaped to that of what
        # came in. Further back, the blame would be a guess.
        suspects = trace.history[max(0, reached - _REACH) : reached + 1] if same else []
        for func, planes in reversed(suspects):
            labels = np.concatenate([plane.line for plane in planes] or [np.zeros(0, dtype=np.int64)])
            if trace.sets.pin(labels, f"the model's code wants its width at {func} ({message})"):
                trace.notes.append(f"{func}: the model's code wants the width that it was written for ({message})")
                return
        raise InputError(
            f"the pruned {type(pruned).__name__} cannot be run ({message}): its code wants a width that was pruned; "
            "name the layer that makes it in ignore="
        ) from error
    raise InputError(f"the pruned {type(pruned).__name__} runs on these inputs at one time and not at another")


_REACH = 64  # operators; attention takes some twenty from its input to its output, a lambda layer more than forty
