"""Atomic writes: files and folders that appear whole or not at all, and checksums."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Writes a file so that it appears whole or not at all.

    The file is written under a temporary name in the same folder, flushed to the disk and renamed. Upon any error the
    temporary file is removed, and a file that had the name before is unchanged. A crash leaves at most the temporary
    file, whose name ends in ``.part``.

    Args:
        path: The file's final name. Its folder exists.

    Yields:
        The temporary path, to be written to and closed inside the context.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 by :func:`atomic_file`.

    Args:
        path: The file's name. Its folder exists.
        text: The whole content.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Writes a folder of files so that it appears whole or not at all.

    The files are written into a temporary folder beside, flushed to the disk, and the folder is renamed. Upon any error
    the temporary folder is removed, and a folder that had the name before is unchanged. An older folder is replaced by
    one exchange of names on Linux. Elsewhere it is moved aside first, and a crash at that moment leaves it beside under
    a name that ends in ``.old``. A crash while the files are written leaves a folder whose name ends in ``.new``.

    Args:
        path: The folder's final name. It may be absent, empty, or hold what is to be replaced as a whole; missing
            parents are made.

    Yields:
        The temporary folder, to be filled with files inside the context.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~umask())  # mkdtemp makes a folder for its owner alone
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        _replace_folder(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(file: Path) -> str:
    """The SHA-256 checksum of a file.

    Args:
        file: An existing file.

    Returns:
        64 hexadecimal digits.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    """Flushes a written file to the disk and gives it the usual permissions (safetensors writes for the owner only)."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    file.chmod(0o666 & ~umask())


def umask() -> int:
    """The permission bits that new files of this process do not get.

    Returns:
        The bits; the system lets them be read only by setting them, so they are set and set back.
    """
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace_folder(path: Path, new: Path) -> None:
    """Renames the folder ``new`` to ``path``, and removes what had that name, or leaves it as ``new`` to the caller."""
    if not path.exists() or not any(path.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        new.rename(path)
    elif not _exchange(path, new):  # after an exchange, `new` is the old folder, which the caller removes
        old = new.with_suffix(".old")
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Lets two folders swap names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
