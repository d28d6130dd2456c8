"""Critical sections: what is put back is put back whole, Ctrl-C or not, and only one thread is in at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LOCK = threading.RLock()


class _KeepsInterrupt:
    """A handler of SIGINT that raises ``KeyboardInterrupt`` and remembers it.

    The second Ctrl-C is not raised: the first one is on its way, and what it undoes must not be interrupted.
    """

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, number: int, frame: Any) -> None:
        self.times += 1
        if self.times != 2:
            signal.default_int_handler(number, frame)


_keeper: _KeepsInterrupt | None = None


@contextlib.contextmanager
def interrupt_kept() -> Iterator[None]:
    """Raises a Ctrl-C that arrives in the block at the end of the block at the latest, wherever it arrives.

    Python ignores what is raised in the callback of a weak reference or a destructor, and a model's code may catch
    everything. Only where the handler of SIGINT is Python's own, in the main thread.

    Yields:
        Nothing.
    """
    global _keeper
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    keeper = _keeper = _KeepsInterrupt()
    signal.signal(signal.SIGINT, keeper)
    try:
        yield
        if keeper.times:
            raise KeyboardInterrupt
    finally:
        _keeper = None
        signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_lost_interrupt() -> None:
    """Raises a Ctrl-C that was raised before and got lost; to be called now and then where it is kept."""
    if _keeper is None or not _keeper.times or threading.current_thread() is not threading.main_thread():
        return
    # Where it is just being handled, it is on its way, and what is undone now must be undone.
    if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
        raise KeyboardInterrupt


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
        yield lambda: bool(arrived) and (own is signal.default_int_handler or own is _keeper)
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
        except BaseException:
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
