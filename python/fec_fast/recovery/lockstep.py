"""Lock step: several runs of a model that wait for one another at every layer, so that it can be changed there.

A layer can be fitted when its inputs of all batches are there, and the next layer's inputs depend on the fit.
Therefore each batch runs in a thread of its own that stops at the layer. The threads are coroutines: one of them, or
the caller, runs at a time, in an order that never changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

Pause = Callable[[str], None]


def run_in_lock_step(
    runs: Sequence[Callable[[Pause], None]], between: Callable[[str], None], order: Mapping[str, int]
) -> None:
    """Runs functions that stop at named points, and calls another function when all of them have stopped.

    Args:
        runs: The functions. Each is called with a function ``pause(point)`` that returns when the run may go on.
        between: Is called with a point at which runs have stopped, in the calling thread; then these runs go on. It is
            called when every run has stopped or ended; of several points, with the first in ``order``.
        order: The points' positions.

    Raises:
        BaseException: What a run or ``between`` raised. The other runs are ended first, by an exception out of
            ``pause``.
    """
    turn = threading.Semaphore(0)
    workers = [_Worker(run, turn) for run in runs]
    try:
        for worker in workers:
            worker.start()
            worker.go_on()
        while waiting := [worker for worker in workers if worker.point is not None]:
            point = min((worker.point for worker in waiting if worker.point is not None), key=order.__getitem__)
            between(point)
            for worker in waiting:
                if worker.point == point:
                    worker.go_on()
    finally:
        for worker in workers:
            worker.end()


class _Ended(BaseException):
    """Ends a run at the point where it waits; not an Exception, which the model's code might catch."""


class _Worker:
    """One run, in a thread that runs only while :meth:`go_on` waits."""

    def __init__(self, run: Callable[[Pause], None], turn: threading.Semaphore) -> None:
        self.point: str | None = None
        self._run = run
        self._turn = turn
        self._go = threading.Semaphore(0)
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._body, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def go_on(self) -> None:
        """Lets the run go on until it stops or ends; raises what it raised."""
        self._go.release()
        self._turn.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ends the run where it waits."""
        self._ended = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _body(self) -> None:
        self._go.acquire()
        try:
            if not self._ended:
                self._run(self._pause)
        except _Ended:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.point = None
            self._turn.release()

    def _pause(self, point: str) -> None:
        if self._ended:  # the model's code caught the first one
            raise _Ended
        self.point = point
        self._turn.release()
        self._go.acquire()
        if self._ended:
            raise _Ended
        self.point = None
