"""Ctrl-C during training: deferred while a step or a write is unfinished, and raised at once elsewhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from ..utils.critical_section import put_back_by, raises_interrupts, surely_closed


class Interrupt:
    """Whether Ctrl-C was pressed, and whether it may be raised at this moment.

    Attributes:
        pressed: Whether it was pressed.
    """

    def __init__(self) -> None:
        """Begins without Ctrl-C, deferring the first one."""
        self.pressed = False
        self._defers = True

    def handle(self, number: int, frame: Any) -> None:
        """The handler of SIGINT: raises ``KeyboardInterrupt``, unless this is the first one and it is deferred."""
        raises = self.pressed or not self._defers
        self.pressed = True
        if raises:
            signal.default_int_handler(number, frame)

    def raise_if_pressed(self) -> None:
        """Raises ``KeyboardInterrupt`` if Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises Ctrl-C in the block at once, and one that was deferred before it: for work that changes nothing."""
        self._defers = False
        try:
            self.raise_if_pressed()
            yield
        finally:
            self._defers = True


@surely_closed
def deferred_interrupt() -> Iterator[Interrupt]:
    """Records the first Ctrl-C instead of raising ``KeyboardInterrupt``. A second Ctrl-C raises at once.

    Nothing is deferred outside the main thread, where Python does not allow signal handlers, or where SIGINT already
    has a handler of the caller's.

    Yields:
        What tells whether Ctrl-C was pressed. Who defers has to ask for it at the end of the work.
    """
    interrupt = Interrupt()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not in_main_thread or not raises_interrupts(before):
        yield interrupt
        return

    def restore() -> None:
        signal.signal(signal.SIGINT, before)

    with put_back_by(restore):
        signal.signal(signal.SIGINT, interrupt.handle)
        yield interrupt
