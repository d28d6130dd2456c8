"""Weight files: state dicts from safetensors or PyTorch files, read without running code and within bounds."""

from __future__ import annotations

import functools
import os
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.torch_version import TorchVersion

from ..utils.errors import CheckpointError
from ..utils.reading import MEGABYTE, check_tensor_file, open_archive
from ..utils.user_warnings import warn_user

_T = TypeVar("_T")
# Tensors are stored as they are, so a file cannot unfold into more than its size. What can is the description of the
# tensors in a PyTorch file: about 150 bytes each, of which a single one may stand for 70 bytes of memory.
_MOST_DESCRIPTION_BYTES = 2 * MEGABYTE
_MOST_DIRECTORY_BYTES = 4 * MEGABYTE
_MOST_READS = 600_000  # two readings; about 60 reads per tensor in each
# The first pickle of a file of torch before 1.6.
_OLD_MARK = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_SAFE_READER = "2.10"  # the first version of torch without the fault CVE-2026-24747
_MORE_THAN_TENSORS = (
    "{} holds more than tensors (or is damaged) and is not read, because that could run code: save model.state_dict(), "
    "preferably as safetensors"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state dict.

    Args:
        path: A safetensors file, or a .pth or .pt file with a state dict, plain or under the key ``"state_dict"``. Its
            names may begin with ``"module."``, as DataParallel writes them.

    Returns:
        The tensors by name, on the CPU, without that ``"module."``.

    Raises:
        CheckpointError: The file is missing, cannot be read, holds more than tensors, or is too large.

    Warns:
        FecWarning: Once, for a PyTorch file: torch is older than 2.10, whose reader of such files has a fault.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    if path.suffix != ".safetensors":
        _warn_of_old_torch(str(torch.__version__))
    try:
        if path.suffix == ".safetensors":
            check_tensor_file(path, CheckpointError)
            loaded: Any = load_file(path)
        else:
            loaded = _read_torch(path)
    except CheckpointError:
        raise
    except Exception as error:  # both libraries raise many kinds on damaged bytes
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(_MORE_THAN_TENSORS.format(path)) from error
        kind = type(error).__name__
        raise CheckpointError(f"{path} cannot be read, it may be truncated ({kind}: {error})") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    are_tensors = isinstance(loaded, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    )
    if not are_tensors or not loaded:
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors): save model.state_dict()")
    for name, value in loaded.items():
        if value.layout is not torch.strided or value.is_quantized or not value.is_cpu:
            raise CheckpointError(f"{path}: {name!r} is not a dense tensor with values: save dense tensors")
    return without_wrapper(loaded)


@functools.cache  # once in a process
def _warn_of_old_torch(version: str) -> None:
    if TorchVersion(version) < _SAFE_READER:
        warn_user(
            f"torch {version} reads .pth files with a fault (CVE-2026-24747): a file that was made for it can corrupt "
            "memory and run code. Read files of strangers with torch 2.10 or newer, or as safetensors"
        )


def _read_torch(path: Path) -> Any:
    """Reads a PyTorch file of either format with ``weights_only=True``, which runs no code of the file's."""
    size = path.stat().st_size
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_torch_archive(path)
    left = size

    def place(storage: Any, location: str) -> Any:
        """Takes the place of ``map_location="cpu"``, and counts what the file lets torch allocate."""
        nonlocal left
        left -= storage.nbytes()
        if left < 0:
            raise CheckpointError(f"{path} describes larger tensors than the file holds: it is truncated or damaged")
        if not storage.nbytes() or not storage.resizable():
            return storage
        # A tensor larger than its storage would enlarge it, whatever the file's size.
        return torch.frombuffer(bytearray(storage.nbytes()), dtype=torch.uint8).untyped_storage()

    with path.open("rb") as stream:
        counted: Any = _CountedReads(path, stream)
        if not is_archive:
            _check_old_format(path, counted, size)
            stream.seek(0)
        return torch.load(counted, map_location=place, weights_only=True)


def _check_old_format(path: Path, stream: Any, size: int) -> None:
    """Checks the numbers in a file of torch before 1.6: torch allocates a storage before it looks whether it is there.

    Such a file begins with four pickles: a mark, a version, the machine, and the description of the tensors. They are
    only taken apart here, not executed, so it is not known which numbers are sizes: all of them are compared.
    """
    if stream.read(len(_OLD_MARK)) != _OLD_MARK:
        raise CheckpointError(_MORE_THAN_TENSORS.format(path))
    stream.seek(0)
    for _ in range(3):
        for _ in pickletools.genops(stream):
            pass
    for _, argument, _ in pickletools.genops(stream):
        if isinstance(argument, int) and abs(argument) > size:
            raise CheckpointError(
                f"{path} has {size:,} bytes and the number {argument:,} among the sizes of its tensors: it is damaged, "
                "or holds more than weights: save model.state_dict() alone"
            )


def _check_torch_archive(path: Path) -> None:
    with open_archive(path, _MOST_DIRECTORY_BYTES) as archive:
        entries = archive.infolist()
    size = path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise CheckpointError(f"{path} unfolds to more than its size, which torch.save never writes: save it again")
    for entry in entries:
        if entry.filename.endswith(".pkl") and entry.file_size > _MOST_DESCRIPTION_BYTES:
            raise CheckpointError(
                f"{path} describes its tensors in {entry.file_size:,} bytes; at most {_MOST_DESCRIPTION_BYTES:,} are "
                "read, enough for 10,000: save model.state_dict() as safetensors"
            )


class _CountedReads:
    """A file that may be read a bounded number of times: torch reads a description piece by piece."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream, self._left = path, stream, _MOST_READS
        self._size = os.fstat(stream.fileno()).st_size

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(f"{self._path} describes too many tensors: save model.state_dict() as safetensors")

    def read(self, size: int = -1) -> bytes:
        self._count()
        # Python takes the memory before it looks how much there is: a length in the file may be any number.
        return self._stream.read(size if size < 0 else min(size, self._size))

    def readline(self) -> bytes:
        self._count()
        return self._stream.readline()

    def readinto(self, buffer: Any) -> int:
        self._count()
        return self._stream.readinto(buffer)  # type: ignore[attr-defined, no-any-return]  # a file opened by open has it

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def without_wrapper(state: Mapping[str, _T]) -> dict[str, _T]:
    """Takes off the ``module.`` that DataParallel puts before all names.

    Args:
        state: Tensors, or descriptions of them, by name.

    Returns:
        The same by the names that the model inside gives them.
    """
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in state.items()}
