"""Critical sections: what is put back is put back whole, Ctrl-C or not, and only one thread is in at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LOCK = threading.RLock()


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Defers Ctrl-C: the handler of SIGINT is called at the end of the block, if there was one meanwhile.

    For work of milliseconds that must not be left half done, such as putting a model back as it was. Nothing is
    deferred outside the main thread, where Python runs no handlers, nor where SIGINT is ignored or ends the process.

    Yields:
        A function that tells whether Ctrl-C was pressed and will raise ``KeyboardInterrupt`` at the end, so that the
        work can be given up in order. A handler of the caller's may do something else.
    """
    own = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(own):
        yield lambda: False
        return
    arrived: list[Any] = []  # the frames in which it was pressed

    def remember(number: int, frame: Any) -> None:
        arrived.append(frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(arrived) and own is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, own)
        if arrived:
            own(signal.SIGINT, arrived[0])


@contextlib.contextmanager
def put_back_by(restore: Callable[[], None]) -> Iterator[None]:
    """Calls a function at the end of the block, also if Ctrl-C comes in the middle of it.

    Args:
        restore: Puts back what the block has changed. It may be called twice.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        # CPython looks for Ctrl-C at calls and jumps: between the block and this call there is none.
        try:
            restore()
        except KeyboardInterrupt:
            restore()
            raise


@contextlib.contextmanager
def one_thread_at_a_time() -> Iterator[None]:
    """Lets one thread of the process in, which may enter again.

    What runs a user's model sets torch's global switches and random state, and the model's modes and buffers, and puts
    them back. Two threads at once would each take what the other has set for the user's.

    Yields:
        Nothing.
    """
    with _LOCK:
        yield


def _renew_lock() -> None:
    """Gives a forked process a free lock: the thread that held it does not exist there."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
