"""Critical sections: what is put back is put back whole, Ctrl-C or not, and only one thread is in at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar

_LOCK = threading.RLock()
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Opened(threading.local):
    """The contexts that this thread has opened inside a public function, in order; ``None`` outside of such."""

    generators: list[Generator[Any, None, None]] | None = None


_opened = _Opened()


def surely_closed(function: Callable[_P, Iterator[_R]]) -> Callable[_P, contextlib.AbstractContextManager[_R]]:
    """Does what ``contextlib.contextmanager`` does, for contexts that must be left whatever happens.

    A ``with`` statement does not leave its context if Ctrl-C arrives when it has just been entered, or is about to be
    left. Then the generator waits until Python drops it, which may be never, or when its values are old. Inside a
    public function (:class:`OpenedContexts`) it is closed in time: before the context around it is left, which has the
    older values, or when the function ends.

    Args:
        function: A generator function with one ``yield``.

    Returns:
        A function that makes a context manager.
    """
    make = contextlib.contextmanager(function)

    @functools.wraps(function)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> contextlib.AbstractContextManager[_R]:
        return _SurelyClosed(make(*args, **kwargs))

    return made


class _SurelyClosed(contextlib.AbstractContextManager[_R]):
    """A context that first leaves those that were entered in its block and were not left."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._opened: list[Generator[Any, None, None]] = []
        self._own_start = self._block_start = 0

    def __enter__(self) -> _R:
        self._opened = [] if _opened.generators is None else _opened.generators
        self._own_start = len(self._opened)
        self._opened.append(self._manager.gen)
        value: _R = self._manager.__enter__()
        self._block_start = len(self._opened)  # between are the contexts that this one is made of
        return value

    def __exit__(self, *error: Any) -> bool | None:
        try:
            _close(self._opened, self._block_start)
        except BaseException as other:
            self._manager.__exit__(type(other), other, other.__traceback__)
            raise
        try:
            is_handled: bool | None = self._manager.__exit__(*error)
            return is_handled
        finally:
            if self._manager.gen.gi_frame is None:  # it has ended, Ctrl-C or not
                del self._opened[self._own_start :]


def _close(generators: list[Generator[Any, None, None]], start: int) -> None:
    """Closes generators from the last one to that at a position, and forgets them."""
    for generator in reversed(generators[start:]):
        generator.close()
    del generators[start:]


@surely_closed
def surely_left(manager: contextlib.AbstractContextManager[_R]) -> Iterator[_R]:
    """Makes a context of another library one that is left whatever happens, as :func:`surely_closed` says.

    Args:
        manager: Such as ``warnings.catch_warnings()``.

    Yields:
        What it yields.
    """
    with manager as value:
        yield value


class OpenedContexts:
    """The contexts that this thread opens from now on, until they are left."""

    def __init__(self) -> None:
        """Begins to remember them."""
        self._before, self._own = _opened.generators, []  # type: ignore[var-annotated]
        _opened.generators = self._own

    def close(self) -> None:
        """Leaves those that were not left, the last one first, and ends the remembering. It may be called twice."""
        _close(self._own, 0)
        _opened.generators = self._before


class InterruptKeeper:
    """A handler of SIGINT that raises ``KeyboardInterrupt``, and once more if that gets lost.

    Python ignores what is raised in the callback of a weak reference or a destructor, and a model's code may catch
    everything. The second Ctrl-C is not raised: the first one is on its way, and must not be kept from undoing.
    """

    active: InterruptKeeper | None = None

    def __init__(self) -> None:
        """Is no handler yet."""
        self._times = 0

    def __call__(self, number: int, frame: Any) -> None:
        """Handles SIGINT."""
        self._times += 1
        if self._times != 2:
            signal.default_int_handler(number, frame)

    def install(self) -> None:
        """Becomes the handler, if that is Python's own, in the main thread."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            InterruptKeeper.active = self
            signal.signal(signal.SIGINT, self)

    def remove(self) -> None:
        """Makes Python's own handler the handler again, if this is it."""
        if InterruptKeeper.active is self:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            InterruptKeeper.active = None

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed since this is the handler."""
        return self._times > 0

    def raise_if_lost(self) -> None:
        """Raises a Ctrl-C that was raised before and is not on its way."""
        if self.pressed and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise KeyboardInterrupt


def raise_lost_interrupt() -> None:
    """Does what :meth:`InterruptKeeper.raise_if_lost` does, of the active one; to be called now and then."""
    keeper = InterruptKeeper.active
    if keeper is not None and threading.current_thread() is threading.main_thread():
        keeper.raise_if_lost()


def raises_interrupts(handler: Any) -> bool:
    """Tells whether a handler of SIGINT raises ``KeyboardInterrupt``, as far as is known.

    Args:
        handler: What ``signal.getsignal`` has returned.
    """
    return handler is signal.default_int_handler or isinstance(handler, InterruptKeeper)


@surely_closed
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
        yield lambda: bool(arrived) and raises_interrupts(own)
    finally:
        if signal.getsignal(signal.SIGINT) is remember:  # else this comes late, and the handler is set back already
            signal.signal(signal.SIGINT, own)
        if arrived:
            own(signal.SIGINT, arrived[0])


@surely_closed
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


@surely_closed
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
