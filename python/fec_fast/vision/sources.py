"""Sources of files: a folder or a zip archive, read by the same methods."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

from ..utils.errors import InputError
from ..utils.reading import MEGABYTE, open_archive, read_bytes

MOST_BYTES = 48 * MEGABYTE  # of one picture, packed or not
_MOST_DIRECTORY_BYTES = 256 * MEGABYTE  # some 2 million files


class Source(Protocol):
    """Files by name."""

    def names(self) -> list[str]:
        """Lists all files and folders.

        Returns:
            Paths with slashes, in alphabetical order; those of folders end in a slash.
        """

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The content of a file.

        Args:
            name: One of :meth:`names`.
            most: The largest size in bytes.

        Raises:
            InputError: The file is larger, damaged, or missing.
            OSError: It cannot be read.
        """

    def describe(self, name: str) -> str:
        """Describes where a file is, for messages."""


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        """Stores the path.

        Args:
            root: The folder.
        """
        self.root = root

    def names(self) -> list[str]:
        """Lists all files and folders below, also those behind symbolic links, as :meth:`Source.names` does."""
        paths = []
        seen: set[tuple[int, int]] = set()
        for parent, folders, files in os.walk(self.root, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above would be followed without end
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            relative = Path(parent).relative_to(self.root)
            paths += [(relative / file).as_posix() for file in files]
            paths += [f"{(relative / folder).as_posix()}/" for folder in folders]
        return sorted(paths)

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The content of a file, as :meth:`Source.read` returns it."""
        return read_bytes(self.root / name, most, InputError)

    def describe(self, name: str) -> str:
        """The path of a file."""
        return str(self.root / name)


class Archive:
    """Files in a zip archive.

    Every process opens the archive for itself. Worker processes that share one open file would move each other's
    position in it, and read each other's bytes.
    """

    def __init__(self, file: Path) -> None:
        """Opens the archive, to check that it is one.

        Args:
            file: The zip archive.

        Raises:
            InputError: It cannot be read as a zip archive.
        """
        self.file = file
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            self._archive()
        except Exception as error:  # zipfile raises many kinds on damaged bytes
            raise InputError(f"{file} cannot be read as a zip archive: {error}") from error

    def _archive(self) -> zipfile.ZipFile:
        # A forked worker inherits the open file of its parent: the process id tells whether it is this process's own.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_archive(self.file, _MOST_DIRECTORY_BYTES))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open archive, for processes that are spawned."""
        return {"file": self.file, "_opened": None}

    def names(self) -> list[str]:
        """Lists all files and folders in the archive, as :meth:`Source.names` does."""
        return sorted(self._archive().namelist())

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The content of a file, as :meth:`Source.read` returns it."""
        try:
            entry = self._archive().getinfo(name)
            if entry.file_size > most:
                raise InputError(
                    f"{self.describe(name)} has {entry.file_size:,} bytes once unpacked; such a file may have at most "
                    f"{most:,}: check where it comes from"
                )
            return self._archive().read(entry)  # never more than the size that is announced
        except InputError:
            raise
        except Exception as error:  # unpacking raises many kinds on damaged bytes
            kind = type(error).__name__
            raise InputError(
                f"{self.describe(name)} cannot be unpacked ({kind}: {error}): make the zip again"
            ) from error

    def describe(self, name: str) -> str:
        """The name of a file and its archive."""
        return f"{name} in {self.file}"
