"""Atomic writes: files and folders that appear whole or not at all, and checksums.

What is written lies in a scratch folder beside its final place until it is whole. The folder is locked by the process
that writes, and the system takes the lock away when that process ends, however it ends. So the scratch folders of
killed runs are recognised, on whatever machine they ran; the next write beside them removes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .critical_section import interrupts_deferred, put_back_by, surely_closed

try:
    import fcntl
except ImportError:  # not on POSIX: nothing is locked there, and no scratch folder is taken for abandoned
    fcntl = None  # type: ignore[assignment]

# The endings of the names of scratch folders, and of folders that were moved aside to be replaced.
_SCRATCH, _ASIDE = ".fec-scratch", ".fec-old"


@surely_closed
def atomic_file(path: Path) -> Iterator[Path]:
    """Writes a file so that it appears whole or not at all.

    The file is written in a scratch folder beside, flushed to the disk and renamed. Upon any error the scratch folder
    is removed, and a file that had the name before is unchanged. A kill leaves at most the scratch folder, a name that
    begins with a dot and ends in ``.fec-scratch``; the next write in that folder removes it.

    A symbolic link stays one: the file that it leads to is written. A device, a pipe or a folder is not replaced.

    Args:
        path: The file's final name. Its folder exists.

    Yields:
        The temporary path, to be written to and closed inside the context.

    Raises:
        OSError: The disk is full, the file cannot be written, or something of its name is no file.
    """
    _check_is_file(path)
    path = Path(os.path.realpath(path))
    with _scratch_folder(path) as scratch:
        yield scratch / path.name
        _flush(scratch / path.name, scratch.stat().st_mode & 0o666)
        os.replace(scratch / path.name, path)
        flush_folder(path.parent)


def _check_is_file(path: Path) -> None:
    """Checks that what has a name, if anything, is a file: a rename would put one in the place of ``/dev/stdout``."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "this is a device or a pipe, and is not replaced by a file", str(path))


def check_writable(folder: Path) -> None:
    """Checks that files can be made in a folder, or in the first of its parents that exists.

    Args:
        folder: The folder.

    Raises:
        PermissionError: They cannot: the user may not, or the file system is read-only.
    """
    existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "files cannot be made in this folder", str(existing))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 by :func:`atomic_file`.

    Args:
        path: The file's name. Its folder exists.
        text: The whole content.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@surely_closed
def atomic_folder(path: Path) -> Iterator[Path]:
    """Writes a folder of files so that it appears whole or not at all.

    The files are written into a scratch folder beside, flushed to the disk, and the folder is renamed. Upon any error
    the scratch folder is removed, and a folder that had the name before is unchanged. An older folder is replaced by
    one exchange of names on Linux. Elsewhere it is moved aside first, and a kill at that moment leaves it beside under
    a name that ends in ``.fec-old``. A kill leaves at most a scratch folder, as :func:`atomic_file` does.

    Args:
        path: The folder's final name. It may be absent, empty, or hold what is to be replaced as a whole; missing
            parents are made.

    Yields:
        The temporary folder, to be filled with files inside the context.
    """
    make_folders(path.parent)
    with _scratch_folder(path) as scratch:
        yield scratch
        mode = scratch.stat().st_mode & 0o666
        for entry in [*scratch.rglob("*"), scratch]:
            if entry.is_dir():
                flush_folder(entry)
            else:
                _flush(entry, mode)
        _replace_folder(path, scratch)
        flush_folder(path.parent)


def make_folders(folder: Path) -> None:
    """Makes a folder and its missing parents, and flushes their names to the disk.

    Args:
        folder: The folder; it may exist.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        flush_folder(each.parent)


def is_scratch(path: Path) -> bool:
    """Tells whether a folder is one that :func:`atomic_file` or :func:`atomic_folder` writes in, or has left behind.

    Args:
        path: Any path.
    """
    return path.name.startswith(".") and path.name.endswith(_SCRATCH) and path.is_dir() and not path.is_symlink()


def remove_abandoned(folder: Path) -> None:
    """Removes the scratch folders that killed processes have left in a folder. What cannot be removed stays.

    Args:
        folder: An existing folder.
    """
    for path in [path for path in folder.iterdir() if path.name.endswith(_SCRATCH) and is_scratch(path)]:
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                if _locked(lock, wait=False):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


@surely_closed
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Makes a locked scratch folder beside a path, and removes it, or what has its name at the end."""
    remove_abandoned(target.parent)
    scratch, lock = target, -1

    def remove() -> None:
        nonlocal lock
        if lock >= 0:
            lock, closed = -1, lock
            os.close(closed)
        if scratch != target:
            shutil.rmtree(scratch, ignore_errors=True)

    with put_back_by(remove):
        with interrupts_deferred():
            while lock < 0:
                # Not by tempfile: the folder has the permissions that the process gives to new folders.
                made = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SCRATCH}")
                os.mkdir(made)
                scratch = made
                with contextlib.suppress(FileNotFoundError):  # another writer removed it before it was locked
                    lock = os.open(scratch, os.O_RDONLY)
                    _locked(lock, wait=True)
                    if not scratch.exists():
                        os.close(lock)
                        lock = -1
        yield scratch


def _locked(descriptor: int, *, wait: bool) -> bool:
    """Locks an open folder until it is closed; False where it is locked already, or the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def sha256(file: Path) -> str:
    """The SHA-256 checksum of a file.

    Args:
        file: An existing file.

    Returns:
        64 hexadecimal digits.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path, mode: int) -> None:
    """Flushes a written file to the disk and gives it the usual permissions (safetensors writes for the owner only)."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    file.chmod(mode)


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk: without it a new or renamed file may be gone after a power cut.

    Args:
        folder: An existing folder.
    """
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system flushes no folders
            raise
    finally:
        os.close(descriptor)


def _replace_folder(path: Path, new: Path) -> None:
    """Renames the folder ``new`` to ``path``, and removes what had that name, or leaves it as ``new`` to the caller."""
    if not path.exists() or not any(path.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        new.rename(path)
    elif not _exchange(path, new):  # after an exchange, `new` is the old folder, which the caller removes
        old = new.with_suffix(_ASIDE)
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
