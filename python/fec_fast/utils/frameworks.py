"""Networks of frameworks that build them anew from a description: what a plain pruning of one comes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from torch import nn

from .critical_section import put_back_by, surely_closed
from .errors import ArgumentError
from .user_warnings import warn_user

_REMEDY = "call fec_fast.integrations.ultralytics.prune(yolo, budget=..., imgsz=...)"
# The modules of ultralytics' base classes: of the objects that users hold, and of the networks in them.
_OBJECT, _NETWORK = "ultralytics.engine.model", "ultralytics.nn.tasks"
_is_expected: ContextVar[bool] = ContextVar("_is_expected", default=False)


@surely_closed
def keeps_widths() -> Iterator[None]:
    """The caller sees to it that pruned widths last: nothing is said of the framework meanwhile."""
    before = _is_expected.get()

    def restore() -> None:
        _is_expected.set(before)

    with put_back_by(restore):
        _is_expected.set(True)
        yield


def check_framework(model: nn.Module) -> None:
    """Refuses an object that is no network, and warns of a network that its framework builds anew for a training.

    Args:
        model: What is to be pruned.

    Raises:
        ArgumentError: A ``YOLO`` or ``RTDETR`` object.
    """
    modules = {each.__module__ for each in type(model).__mro__}
    if _OBJECT in modules:
        raise ArgumentError(f"model: a {type(model).__name__} object of ultralytics is no network: {_REMEDY}")
    if _NETWORK in modules and not _is_expected.get():
        warn_user(
            "this is a network of ultralytics, whose trainer builds it anew at full width: a YOLO object that is given "
            f"the pruned one loses the pruning when it trains; {_REMEDY}, which keeps the widths"
        )
