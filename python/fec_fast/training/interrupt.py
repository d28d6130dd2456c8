"""Ctrl-C during training: the interrupt is deferred until the current step has finished."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Records the first Ctrl-C instead of raising ``KeyboardInterrupt``. A second Ctrl-C raises at once.

    Nothing is deferred outside the main thread, where Python does not allow signal handlers, or where SIGINT already
    has a handler other than Python's own: that one belongs to the caller.

    Yields:
        A function that returns True once Ctrl-C was pressed.
    """
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
