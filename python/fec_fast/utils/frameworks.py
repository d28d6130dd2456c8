"""Networks of frameworks that build them anew from a description: what a plain pruning of one comes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from .errors import ArgumentError
from .user_warnings import warn_user

_REMEDY = "call fec_fast.integrations.ultralytics.prune(yolo, budget=..., imgsz=...)"
# Classes of ultralytics by the beginning of their module: the objects that users hold, and the networks in them.
_OBJECTS, _NETWORKS = ("ultralytics.engine.model", "ultralytics.models"), ("ultralytics.nn.tasks",)
_is_expected: ContextVar[bool] = ContextVar("_is_expected", default=False)


@contextmanager
def keeps_widths() -> Iterator[None]:
    """The caller sees to it that pruned widths last: nothing is said of the framework meanwhile."""
    token = _is_expected.set(True)
    try:
        yield
    finally:
        _is_expected.reset(token)


def check_framework(model: nn.Module) -> None:
    """Refuses an object that is no network, and warns of a network that its framework builds anew for a training.

    Args:
        model: What is to be pruned.

    Raises:
        ArgumentError: A ``YOLO`` or ``RTDETR`` object.
    """
    modules = {each.__module__ for each in type(model).__mro__}
    if any(module.startswith(_OBJECTS) for module in modules):
        raise ArgumentError(f"model: a {type(model).__name__} object of ultralytics is no network: {_REMEDY}")
    if not _is_expected.get() and any(module.startswith(_NETWORKS) for module in modules):
        warn_user(
            "this is a network of ultralytics, whose trainer builds it anew at full width: a YOLO object that is given "
            f"the pruned one loses the pruning when it trains; {_REMEDY}, which keeps the widths"
        )
