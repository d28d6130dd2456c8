"""Ctrl-C at a random moment of a call, and exceptions at every line of it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


@contextmanager
def keyboard() -> Iterator[None]:
    """Installs Python's own handler, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Outcome(NamedTuple):
    """What came of a call: whether Ctrl-C was pressed during it, whether it raised, and how long that took."""

    pressed: bool
    raised: bool
    seconds: float


def press_during(call: Callable[[], Any], delay: float) -> Outcome:
    """Makes a call, and presses Ctrl-C after a delay, by a signal as the terminal sends it."""
    pressed: list[float] = []
    raised, ended = False, 0.0

    def press() -> None:
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(delay, press)
    try:
        timer.start()
        try:
            call()
        except KeyboardInterrupt:
            raised = True
        ended = time.perf_counter()
        timer.cancel()
        timer.join()
        time.sleep(0.001)  # a signal that came after the call is raised here at the latest
    except KeyboardInterrupt:
        # After the call: what was pressed too late to be the call's is not counted.
        timer.join()
        return Outcome(False, False, 0.0)
    return Outcome(bool(pressed), raised, ended - pressed[0] if pressed else 0.0)


def press_at_random(
    make: Callable[[], tuple[Callable[[], Any], Callable[[], None]]], rounds: int, seed: int = 0
) -> list[Outcome]:
    """Presses Ctrl-C at random moments of a call, and checks what it leaves, round after round.

    Args:
        make: Makes the call of one round and the check after it.
        rounds: How many times Ctrl-C is to be pressed during the call.
        seed: Of the moments.

    Returns:
        The outcomes of the rounds in which it was pressed during the call.
    """
    moments = random.Random(seed)
    call, check = make()
    start = time.perf_counter()
    call()  # also what a first call alone does, such as imports
    call, check = make()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    outcomes: list[Outcome] = []
    with keyboard():
        while len(outcomes) < rounds:
            call, check = make()
            outcome = press_during(call, moments.uniform(0, seconds))
            check()
            if outcome.pressed:
                assert outcome.raised, "Ctrl-C was swallowed"
                outcomes.append(outcome)
    return outcomes


def report(call: str, outcomes: list[Outcome]) -> None:
    """Prints what came of the rounds of a call, for docs/reliability.md."""
    late = max(outcome.seconds for outcome in outcomes)
    print(f"{call}: {len(outcomes)} times Ctrl-C, 0 changed, 0 swallowed, returned after {late:.3f} s at most")


class Interrupted(BaseException):
    """What is raised at a line; neither an Exception, which the code might catch, nor Ctrl-C, which it might defer."""


def _make_traced(call: Callable[[], Any], trace: Callable[[Any, str, Any], Any]) -> None:
    """Makes a call under a trace function, and puts the present one back."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def raise_at(call: Callable[[], Any], at: int | None, files: Container[str]) -> int:
    """Makes a call, raising just before its ``at``-th step: a line or a return of some files. Returns the steps."""
    steps = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in files:
            return None
        if event in ("line", "return"):
            steps += 1
            if steps == at:
                sys.settrace(None)
                raise Interrupted(f"{frame.f_code.co_filename}:{frame.f_lineno} {event}")
        return trace

    _make_traced(call, trace)
    return steps


class Place(NamedTuple):
    """A line of a file, or a return that follows it."""

    file: str
    line: int
    event: str


def places_of(call: Callable[[], Any], folder: str) -> dict[Place, int]:
    """Makes a call, and counts how often it comes to each place in the Python files of a folder."""
    places: dict[Place, int] = {}

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(folder):
            return None
        if event in ("line", "return"):
            place = Place(frame.f_code.co_filename, frame.f_lineno, event)
            places[place] = places.get(place, 0) + 1
        return trace

    _make_traced(call, trace)
    return places


def raise_before(call: Callable[[], Any], place: Place, number: int) -> bool:
    """Makes a call, raising when it comes to a place for the ``number``-th time.

    Returns:
        Whether the call came there and went on nevertheless: Python ignores what is raised in a destructor.

    Raises:
        Interrupted: It did not go on.
    """
    left, raised = number, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        return trace_lines if frame.f_code.co_filename == place.file else None

    def trace_lines(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left, raised
        if event == place.event and frame.f_lineno == place.line:
            left -= 1
            if not left:
                sys.settrace(None)
                raised = True
                raise Interrupted(f"{place.file}:{place.line} {place.event}, time {number}")
        return trace_lines

    _make_traced(call, trace)
    return raised
