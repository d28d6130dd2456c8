"""Progress bar of a long computation, on the standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .critical_section import surely_closed
from .random_state import restored_randomness


@surely_closed
def progress_bar(description: str, steps: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Shows how many of some steps are done.

    Args:
        description: What is being done.
        steps: How many steps there are.
        shown: Whether anything is shown.

    Yields:
        A function to be called after each step.
    """
    # Imported here: rich adds 40 ms to the import of the package. It draws a random number when it is imported.
    with restored_randomness():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(description, total=steps)
        yield lambda: bar.advance(task)
