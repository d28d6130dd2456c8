"""Progress bar of a training, on the standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from ..utils.progress import SECONDS_BETWEEN_LINES, is_quiet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .history import Epoch


class ProgressBar:
    """One line with the epoch, the loss, the main metric of the epoch before, the speed, a bar and the remaining time.

    A context manager: the bar is shown while the context lasts. A pipe or a file gets a line without the bar, every
    half minute and at the end.
    """

    def __init__(self, epochs: int, main_metric: str, *, shown: bool) -> None:
        """Prepares the bar.

        Args:
            epochs: Number of epochs of the training.
            main_metric: Name of the metric that is shown.
            shown: False shows nothing, for example in all processes of a machine but one.
        """
        self.epochs, self.main_metric = epochs, main_metric
        self.bar: Progress | None = None
        self.row: TaskID | None = None
        self.console: Console | None = None  # of a pipe or a file, which gets a line now and then
        self._text, self._written = "", time.monotonic()
        if shown and not is_quiet():
            # Imported here: rich adds 40 ms to the import of the package.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            if console.is_interactive:
                self.bar = Progress(*columns, console=console)
            else:
                self.console = console

    def __enter__(self) -> ProgressBar:
        """Shows the bar."""
        if self.bar is not None:
            self.bar.start()
            self.row = self.bar.add_task("", total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the bar as it is on the screen and ends its updates."""
        if self.bar is not None:
            self.bar.stop()
        self._write()

    def update(self, history: list[Epoch], share: float, loss: float, images_per_second: float) -> None:
        """Shows the state after a step.

        Args:
            history: The finished epochs.
            share: Share of the training that is done, in [0, 1].
            loss: Loss of the step.
            images_per_second: Speed since the beginning of the epoch, over all processes.
        """
        if self.bar is None and self.console is None:
            return
        text = f"epoch {len(history) + 1}/{self.epochs}  loss {loss:.3f}"
        if history and (metric := self._metric(history[-1])):
            text += f"  after epoch {history[-1].epoch}: {metric}"
        self._show(f"{text}  {images_per_second:,.0f} images/s", share)

    def end_epoch(self, row: Epoch) -> None:
        """Shows the figures of a finished epoch, until the next step.

        Args:
            row: The epoch.
        """
        if self.bar is not None or self.console is not None:
            text = "  ".join([f"epoch {row.epoch}/{self.epochs}  loss {row.loss:.3f}", self._metric(row)])
            self._show(text.rstrip(), row.epoch / self.epochs)

    def _metric(self, row: Epoch) -> str:
        """The main metric of an epoch, such as ``"held-out accuracy 0.9712"``, or nothing."""
        metrics, data = (row.metrics, "training") if row.held_out is None else (row.held_out, "held-out")
        return f"{data} {self.main_metric} {metrics[self.main_metric]:.4f}" if self.main_metric in metrics else ""

    def _show(self, text: str, share: float) -> None:
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, completed=share, description=text)
            return
        self._text = f"{text}  {share:.0%}"
        if time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._write()

    def _write(self) -> None:
        """Writes the state as a line, if there is a new one."""
        if self.console is not None and self._text:
            self.console.print(self._text, soft_wrap=True)
            self._text, self._written = "", time.monotonic()
