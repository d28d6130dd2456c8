"""Checks of arguments that many functions share: numbers, names, paths, networks and loaders."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from .compat import is_fake
from .errors import ArgumentError, FecError, InputError, WeightError
from .files import check_writable


def check_number(name: str, value: Any, expected: str, *, least: float = 0.0, exclusive: bool = False) -> None:
    """Checks that an argument is a finite number, at least a bound.

    Args:
        name: The argument's name, for the message.
        value: Its value. NumPy's float64 is a float; truth values and other types are refused.
        expected: What to give instead, for the message, such as ``"a positive number of seconds"``.
        least: The bound.
        exclusive: Whether the bound itself is refused.

    Raises:
        ArgumentError: It is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared, not converted: an integer may be beyond the range of float.
    if not is_number or not (least <= value < math.inf) or (exclusive and value == least) or abs(value) > 1e300:
        raise ArgumentError(f"{name}={value!r:.80}: give {expected}")


def check_path(name: str, value: Any) -> Path:
    """Checks that an argument can be a path.

    Args:
        name: The argument's name, for the message.
        value: Its value: text or a path object.

    Returns:
        The path. Whether it exists is not looked at.

    Raises:
        ArgumentError: It is something else, or text that no file can be called.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise ArgumentError(f"{name}={value!r:.80}: give a path, as text or a pathlib.Path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name}={value!r:.80}: no file can have this name: {error}") from error
    return Path(text)


def check_file_to_write(name: str, value: Any) -> Path:
    """Checks that a file can be written, so that an error comes before a long computation.

    Args:
        name: The argument's name, for the message.
        value: Its value: text or a path object.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: It is not a path.
        InputError: It is a folder, a device or a pipe, or is in a folder that does not exist.
        PermissionError: Files cannot be made in its folder.
    """
    file = Path(os.path.abspath(check_path(name, value)))
    if file.is_dir():
        raise InputError(f"{name}={str(value)!r:.200}: that is a folder; give the name of a file")
    if file.exists() and not file.is_file():
        raise InputError(f"{name}={str(value)!r:.200}: that is a device or a pipe; give the name of a file")
    if not file.parent.is_dir():
        raise InputError(f"{name}={str(value)!r:.200}: there is no folder {file.parent!s:.200}; make it first")
    check_writable(Path(os.path.realpath(file)).parent)
    return file


def check_network(name: str, model: Any) -> None:
    """Checks that an argument is a network that can be run: all its tensors have values.

    Args:
        name: The argument's name, for the message.
        model: Its value.

    Raises:
        ArgumentError: It is not a module.
        WeightError: A parameter or buffer is on the meta device, fake, or not initialised.
    """
    if not isinstance(model, nn.Module):
        hint = "; give its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise ArgumentError(f"{name}: expected a torch.nn.Module, got a {type(model).__name__}{hint}")
    for own, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise WeightError(f"{name}: {own} is not initialised: run the model once on an input")
        if tensor.is_meta or is_fake(tensor):
            where = "on the meta device" if tensor.is_meta else "a fake tensor"
            raise WeightError(
                f"{name}: {own} is {where} and has no values: build the model outside of that mode, or "
                "model.to_empty(device='cpu') and load its weights"
            )


def batches_of(loader: Any, name: str) -> Iterator[Any]:
    """Reads a loader of the user's; what goes wrong in it becomes an error that names the argument.

    Args:
        loader: A DataLoader, a list of batches, or anything else that can be iterated.
        name: The argument's name, for the messages.

    Yields:
        The batches.

    Raises:
        ArgumentError: It cannot be iterated.
        InputError: It raised an error; that is the cause.
        OSError: It raised this.
    """
    if isinstance(loader, str | bytes):
        raise ArgumentError(f"{name}={loader!r:.80}: give a DataLoader or a list of batches")
    try:
        batches = iter(loader)
    except (FecError, OSError):
        raise
    except Exception as error:
        if not hasattr(type(loader), "__iter__"):
            raise ArgumentError(
                f"{name}: a {type(loader).__name__} is no loader: give a DataLoader or a list of batches"
            ) from error
        raise _unread(name, 0, error) from error
    for number in itertools.count():
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (FecError, OSError):
            raise
        except Exception as error:
            raise _unread(name, number, error) from error
        yield batch


def _unread(name: str, number: int, error: Exception) -> InputError:
    kind = type(error).__name__
    return InputError(f"{name}: batch {number} of the loader raised {kind}: {error}; repair the data set or the loader")


def first_batch(loader: Iterable[Any], name: str) -> Any:
    """Reads the first batch of a loader.

    Args:
        loader: The loader.
        name: The argument's name, for the messages.

    Returns:
        The batch.

    Raises:
        ArgumentError: It cannot be iterated.
        InputError: It raised an error, or yields nothing.
    """
    for batch in batches_of(loader, name):
        return batch
    raise InputError(f"{name} gives no batch: its data set is empty, or it was gone through before")
