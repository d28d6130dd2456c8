"""Progress bar of a long computation, on the standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .critical_section import surely_closed
from .random_state import restored_randomness

# Not in the context of click: newer versions of typer have a copy of click inside, older ones use click itself.
# None outside a call of the program: options that are parsed there must not silence a process that uses the library.
_quiet: ContextVar[bool | None] = ContextVar("quiet", default=None)


@contextmanager
def quiet_until_end() -> Iterator[None]:
    """Ends with the block, one call of the program, what :func:`be_quiet` does in it."""
    token = _quiet.set(False)
    try:
        yield
    finally:
        _quiet.reset(token)


def be_quiet() -> None:
    """Leaves out texts for people, and progress bars, for the rest of this call of the program, if there is one."""
    if _quiet.get() is not None:
        _quiet.set(True)


def is_quiet() -> bool:
    """Whether texts for people, and progress bars, are left out."""
    return bool(_quiet.get())


@surely_closed
def progress_bar(description: str, steps: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Shows how many of some steps are done: a bar in a terminal; in a pipe or file a line now and then.

    Args:
        description: What is being done.
        steps: How many steps there are.
        shown: Whether anything is shown.

    Yields:
        A function to be called after each step.
    """
    if not shown or is_quiet():
        yield lambda: None
        return
    # Imported here: rich adds 40 ms to the import of the package. It draws a random number when it is imported.
    with restored_randomness():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_interactive:  # a pipe, a file, or a terminal that cannot go back (TERM=dumb)
        yield _occasional_lines(description, steps, console.print)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=steps)
        yield lambda: bar.advance(task)


SECONDS_BETWEEN_LINES = 30.0


def _occasional_lines(description: str, steps: int, write: Callable[[str], None]) -> Callable[[], None]:
    """A function to be called after each step, which writes a line at the end and every half minute until then."""
    done, last = 0, time.monotonic()

    def step() -> None:
        nonlocal done, last
        done += 1
        if done == steps or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            write(f"{description}: {done} of {steps}")

    return step
