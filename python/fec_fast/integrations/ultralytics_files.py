"""The YAML file of a pruned detector, read within bounds: ultralytics builds, and calls, what it names.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..utils.errors import CheckpointError, InputError
from ..utils.reading import read_bytes
from ..utils.yaml_text import MOST_YAML_BYTES, parse_yaml

# Ultralytics' own networks have at most 99 layers and the number 2048. Classes are numbers too.
_MOST_REPEATS, _LARGEST_NUMBER = 1000, 65_536
_ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Z]\w*\((\w+=)?[\w.\-]*\)")  # such as nn.LeakyReLU(0.1)


def yaml_file(folder: Path) -> Path | None:
    """The only YAML file of a folder.

    Args:
        folder: The folder, which need not exist.

    Returns:
        The file; ``None`` if there is none, or more than one.
    """
    files = list(folder.glob("*.yaml")) if folder.is_dir() else []
    return files[0] if len(files) == 1 else None


def checked_yaml(file: Path) -> dict[str, Any]:
    """Reads the YAML file of a network. Ultralytics calls what it names, so this must be layers.

    Args:
        file: What :func:`fec_fast.integrations.ultralytics.save` wrote.

    Returns:
        Its content.

    Raises:
        CheckpointError: It is damaged, names what is no layer, or has more layers or larger numbers than are built.
    """
    from ultralytics.nn import tasks

    try:
        content = parse_yaml(read_bytes(file, MOST_YAML_BYTES, CheckpointError).decode(), number_keys=True)
    except (InputError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} {error}") from error
    try:
        names = [row[2] for part in ("backbone", "head") for row in content[part]]
        scales = [scale[0] for scale in (content.get("scales") or {}).values()]
        depth = max(1, content.get("depth_multiple") or 1, *scales)
        repeats = depth * sum(abs(row[1]) for part in ("backbone", "head") for row in content[part])
        complete = bool(content["head"]) and isinstance(content["task"], str) and isinstance(content["names"], dict)
        complete = complete and all(type(key) is int and type(name) is str for key, name in content["names"].items())
    except (TypeError, KeyError, IndexError, AttributeError):
        complete = False
    if not complete:
        raise CheckpointError(f"{file} was edited or damaged: give what save wrote")
    largest = max(_numbers(content), default=0)
    if repeats > _MOST_REPEATS or largest > _LARGEST_NUMBER:
        what = f"{repeats:,} layers" if repeats > _MOST_REPEATS else f"the number {largest:,}"
        raise CheckpointError(
            f"{file} has {what}; at most {_MOST_REPEATS:,} layers and {_LARGEST_NUMBER:,} are built: check where it "
            "comes from"
        )
    for name in names:
        home, plain = (nn, name[3:]) if str(name).startswith("nn.") else (tasks, str(name))
        kind = getattr(home, plain, None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise CheckpointError(f"{file} names {name!r:.80}, which is no layer of ultralytics")
    activation = content.get("activation")  # ultralytics evaluates it as Python
    if activation is not None and not _ACTIVATION.fullmatch(str(activation)):
        raise CheckpointError(f"{file} has the activation {activation!r:.80}, which is no layer of torch.nn")
    return dict(content)


def _numbers(value: Any) -> Iterator[float]:
    """The absolute values of all numbers in lists and mappings."""
    if isinstance(value, int | float):
        yield abs(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(inner)
