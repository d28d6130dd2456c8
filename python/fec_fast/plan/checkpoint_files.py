"""The files of a checkpoint: read once each, and compared with the checksums that ``checkpoint.json`` lists."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec

from ..utils.arguments import check_path
from ..utils.errors import CheckpointError
from ..utils.files import sha256
from ..utils.reading import MOST_JSON_BYTES, open_regular, parse_json, read_bytes
from ..utils.tensor_files import TensorFile, read_tensors
from .plan import Plan

FORMAT = "fec_fast.checkpoint"
VERSION = 1
MANIFEST, PLAN, WEIGHTS = "checkpoint.json", "plan.json", "model.safetensors"
CARD, ONNX = "README.md", "model.onnx"  # if they are asked for; load() does not look at them
FILES = (MANIFEST, PLAN, WEIGHTS, CARD, ONNX)
_MOST_MANIFEST_BYTES = 1 << 16


class _StoredFile(TypedDict):
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Head(TypedDict):
    format: str
    version: int


_Files = TypedDict(
    "_Files",
    {
        "plan.json": _StoredFile,
        "model.safetensors": _StoredFile,
        "README.md": NotRequired[_StoredFile],
        "model.onnx": NotRequired[_StoredFile],
    },
)


class Manifest(_Head):
    """The schema of ``checkpoint.json``."""

    files: _Files


def _read(folder: Path, name: str, most: int) -> bytes:
    """Reads a file of a checkpoint, which may have so many bytes."""
    with _of_checkpoint(folder, name):
        return read_bytes(folder / name, most, CheckpointError)


@contextlib.contextmanager
def _of_checkpoint(folder: Path, name: str) -> Iterator[None]:
    """Raises for a checkpoint what the reading of one of its files raises."""
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{folder} is a file; a checkpoint is a folder, which save or fec-fast prune wrote")
        raise CheckpointError(f"there is no checkpoint folder {folder}")
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        if name == MANIFEST:
            raise CheckpointError(f"{folder} is not a checkpoint: it has no {name}{_hint_inside(folder)}") from None
        raise CheckpointError(f"{folder} is incomplete: it has no {name}") from None
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error}") from error


def _hint_inside(folder: Path) -> str:
    """Which folder in a folder is a checkpoint, and how what an integration wrote is opened, for messages."""
    inner = next((each.parent.name for each in sorted(folder.glob(f"*/{MANIFEST}"))), None)
    if inner is None:
        return ""
    is_transformers, is_yolo = (folder / "config.json").is_file(), any(folder.glob("*.yaml"))
    if inner != "pruned" or not (is_transformers or is_yolo):
        return f"; its folder {inner!r} is one"
    opening = "from_pretrained of fec_fast.integrations.transformers"
    opening = opening if is_transformers else "load of fec_fast.integrations.ultralytics"
    return f"; its folder {inner!r} is one, and {folder.name} was written by an integration: open it with {opening}"


def check_can_be_replaced(folder: Path) -> None:
    """Checks that a new folder can take the name of one: a checkpoint is written beside, and then renamed.

    Args:
        folder: An absolute path; there need be nothing.

    Raises:
        CheckpointError: It is a symbolic link, a file system is mounted there, or a process would lose its folder.
    """
    if folder.is_symlink():
        raise CheckpointError(
            f"{folder} is not a folder but a symbolic link; give the folder {folder.resolve()} itself"
        )
    if not folder.is_dir():
        return
    inside = "give the name of a new folder in it, such as"
    if os.path.ismount(folder):
        raise CheckpointError(
            f"{folder} is a mounted file system, which cannot be replaced; {inside} {folder / 'pruned'}"
        )
    with contextlib.suppress(FileNotFoundError):  # the working folder itself was removed
        if any(folder.samefile(each) for each in (Path.cwd(), *Path.cwd().parents)):
            raise CheckpointError(
                f"{folder} is the working folder or has it inside, and would be replaced by another folder; {inside} "
                f"{folder / 'pruned'}"
            )


def check_replaceable(folder: Path) -> None:
    """Checks that a folder holds a checkpoint and nothing that would be lost if it were replaced.

    Args:
        folder: A folder with files.

    Raises:
        CheckpointError: A file is no part of the checkpoint, or its card was edited since it was written.
    """
    present = {entry.name for entry in folder.iterdir()}
    foreign = sorted(present - set(FILES))
    if not foreign:
        files = parse_manifest(folder, read_manifest(folder))["files"]  # they might still belong to another program
        foreign = sorted(name for name in present & {CARD, ONNX} if name not in files)
        if CARD in present and "README.md" in files and sha256(folder / CARD) != files["README.md"]["sha256"]:
            raise CheckpointError(
                f"{folder / CARD} was edited since it was written, and is not overwritten; move it, or give the name "
                "of a new folder"
            )
    if foreign:
        raise CheckpointError(
            f"{folder} holds {foreign[0]!r}, which is no part of a checkpoint, and is not overwritten; "
            f"give the name of a new folder"
        )


def read_manifest(folder: Path) -> bytes:
    """Reads ``checkpoint.json``.

    Args:
        folder: The checkpoint.

    Returns:
        Its content.

    Raises:
        CheckpointError: The folder or the file is missing, or the file is too large or cannot be read.
    """
    return _read(folder, MANIFEST, _MOST_MANIFEST_BYTES)


def parse_manifest(folder: Path, content: bytes) -> Manifest:
    """Checks the content of ``checkpoint.json``.

    Args:
        folder: The checkpoint, for messages.
        content: What :func:`read_manifest` returned.

    Returns:
        The document.

    Raises:
        CheckpointError: It is damaged, or of another format or version.
    """
    file = folder / MANIFEST
    damaged = f"{file} is damaged, save the checkpoint again: it"
    head = parse_json(content, _Head, damaged, CheckpointError)
    if (head["format"], head["version"]) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{file}: format {head['format']!r} version {head['version']!r}; expected {FORMAT!r} version {VERSION}"
        )
    return parse_json(content, Manifest, damaged, CheckpointError)


def verified_contents(folder: str | os.PathLike[str]) -> tuple[Path, Plan, TensorFile]:
    """Reads a checkpoint, whose files must match the manifest's checksums.

    Each file is read once, and what was compared is what is used: another process may replace the checkpoint at any
    moment, and the plan of one must not meet the weights of another.

    Args:
        folder: The checkpoint.

    Returns:
        Its path, plan and weights.

    Raises:
        CheckpointError: A file is missing, truncated or edited, or the checkpoint was replaced meanwhile.
    """
    path = check_path("folder", folder)
    with _plan_and_digest_check(path) as (plan, check):
        weights = read_tensors(path / WEIGHTS, check)
    return path, Plan.from_json(plan), weights


def verified_plan(folder: str | os.PathLike[str]) -> Plan:
    """Reads the plan of a checkpoint after comparing all checksums; the weights are not kept.

    Args:
        folder: The checkpoint.

    Returns:
        The plan.

    Raises:
        CheckpointError: As for :func:`verified_contents`.
    """
    path = check_path("folder", folder)
    with _plan_and_digest_check(path) as (plan, check), open_regular(path / WEIGHTS, CheckpointError) as weights:
        check(hashlib.file_digest(weights, "sha256").hexdigest())
    return Plan.from_json(plan)


@contextlib.contextmanager
def _plan_and_digest_check(path: Path) -> Iterator[tuple[bytes, Callable[[str], None]]]:
    """Reads the plan of a checkpoint, and yields it with the check of the weights' digest, which the block reads.

    Where an error has come because another checkpoint took the place, it says so.
    """
    manifest_content = read_manifest(path)
    files = parse_manifest(path, manifest_content)["files"]
    try:
        plan = _read_plan(path, files["plan.json"])
        with _of_checkpoint(path, WEIGHTS):
            file, expected = path / WEIGHTS, files["model.safetensors"]
            _check_size(file, expected)
            yield plan, lambda digest: _check_digest(file, digest, expected)
    except CheckpointError as error:
        if path.is_dir() and read_manifest(path) != manifest_content:
            raise CheckpointError(f"{path} was replaced by another checkpoint meanwhile; load it again") from error
        raise


def _read_plan(folder: Path, expected: _StoredFile) -> bytes:
    _check_size(folder / PLAN, expected)
    content = _read(folder, PLAN, min(expected["bytes"], MOST_JSON_BYTES))
    _check_digest(folder / PLAN, hashlib.sha256(content).hexdigest(), expected)
    return content


def _check_size(file: Path, expected: _StoredFile) -> None:
    size = file.stat().st_size if file.is_file() else expected["bytes"]
    if size != expected["bytes"]:
        raise CheckpointError(f"{file} has {size} bytes, {MANIFEST} says {expected['bytes']}: truncated?")


def _check_digest(file: Path, digest: str, expected: _StoredFile) -> None:
    if digest != expected["sha256"]:
        raise CheckpointError(f"{file} has another SHA-256 than {MANIFEST} says: edited or damaged")
