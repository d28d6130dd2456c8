"""Standard streams that a command outlives: a reader that leaves, or a full disk, must not end a training."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LastingStream:
    """A standard stream that raises nothing: what cannot be shown is escaped, what cannot be written is left out.

    Attributes:
        failure: Why nothing more is written; ``None`` while all was.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Takes the place of a stream.

        Args:
            stream: The stream; ``None``, as Python has it where the program was started without one.
        """
        self.failure: OSError | None = None
        if stream is None:
            self.failure = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._stream = io.StringIO() if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the stream has it."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text. Characters that the encoding of the stream does not have are written as escapes.

        Args:
            text: The text.

        Returns:
            Its length.
        """
        if self.failure is not None:
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            shown = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self.write(shown)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Writes what is in the stream's buffer."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def check(self) -> None:
        """Raises the failure, if there was one.

        Raises:
            OSError: Something was not written.
        """
        self.flush()
        if self.failure is not None:
            raise OSError(self.failure.errno, f"the standard output was not written: {self.failure.strerror}")

    def _give_up(self, error: OSError) -> None:
        """Lets the buffer run out into nothing: Python would report it at its end, and change the exit code."""
        self.failure = error
        with contextlib.suppress(OSError):  # io.UnsupportedOperation among them: not a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
                self._stream.flush()
            finally:
                os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Puts lasting streams in the place of the standard output and the standard error, until the end of the context.

    Yields:
        The standard output.
    """
    before = sys.stdout, sys.stderr
    output, errors = LastingStream(before[0]), LastingStream(before[1])
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        sys.stdout, sys.stderr = before
