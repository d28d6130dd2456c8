"""Models of other packages, as tables in ``registry/*.toml``: how each is built, and its example inputs.

A table is a package: ``install`` lists the distributions that pip installs (without their dependencies, so that torch
stays as it is), ``licence`` its licence where it is not permissive, ``setup`` the imports. Each entry of its ``models``
has ``inputs`` and either ``names`` with one ``build`` (in which ``name`` stands for the name), or a table ``each`` of
names and expressions. Expressions see torch, nn and the functions ``image``, ``video``, ``sound`` and ``random`` below.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

REGISTRY = Path(__file__).parent / "registry"


@dataclass(frozen=True)
class Package:
    """A package whose models are tried.

    Attributes:
        name: Its distribution, the first that is installed.
        domain: The title of its file: what its models are for.
        install: The distributions that pip installs, without their dependencies.
        licence: Its licence where it is not permissive, else ``""``.
        setup: Statements that bind the names in its models' expressions.
        models: Its models.
    """

    name: str
    domain: str
    install: tuple[str, ...]
    licence: str
    setup: str
    models: tuple[Model, ...]

    def missing(self) -> list[str]:
        """The distributions that are not installed."""
        return [name for name in self.install if installed_version(name) is None]

    def namespace(self) -> dict[str, Any]:
        """Runs the imports; what expressions of the models are evaluated in."""
        names: dict[str, Any] = {"torch": torch, "nn": nn, "image": image, "video": video, "sound": sound}
        names["random"] = random
        exec(self.setup, names)
        return names


@dataclass(frozen=True)
class Model:
    """A model of a package.

    Attributes:
        name: Its name in the table.
        build: The expression of a new instance, with random weights.
        inputs: The expression of the example inputs.
    """

    name: str
    build: str
    inputs: str

    def built(self, names: dict[str, Any]) -> nn.Module:
        """A new instance in evaluation mode; ``names`` is the namespace of its package."""
        model = eval(self.build, names | {"name": self.name})
        assert isinstance(model, nn.Module)
        return model.eval()

    def made_inputs(self, names: dict[str, Any]) -> Any:
        """The example inputs, equal in every call."""
        torch.manual_seed(0)
        return eval(self.inputs, names | {"name": self.name})


def packages() -> Iterator[Package]:
    """All packages, in the order of the files and of the tables in them."""
    for file in sorted(REGISTRY.glob("*.toml")):
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        domain = tables.pop("domain")
        for name, table in tables.items():
            install = tuple(table.get("install", [name]))
            models = tuple(model for entry in table["models"] for model in _models(entry))
            yield Package(name, domain, install, table.get("licence", ""), table.get("setup", ""), models)


def _models(entry: dict[str, Any]) -> Iterator[Model]:
    for name in entry.get("names", "").split():
        yield Model(name, entry["build"], entry["inputs"])
    for name, build in entry.get("each", {}).items():
        yield Model(name, build, entry["inputs"])


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; ``None`` if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_command(distributions: list[str], side: Path) -> list[str]:
    """The command that installs distributions to the side folder, without what they depend on."""
    target = ["--no-deps", "--upgrade", "--target", str(side)]
    return [sys.executable, "-m", "pip", "install", "--quiet", *target, *distributions]


def shown(command: list[str]) -> str:
    """A command as it is typed."""
    return shlex.join(["python", *command[1:]])


def random(*shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape)


def image(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    """Images in [0, 1), ``[batch, channels, size, size]``."""
    return torch.rand(batch, channels, size, size)


def video(size: int, frames: int = 8, channels: int = 3, batch: int = 2) -> Tensor:
    """Videos or volumes, ``[batch, channels, frames, size, size]``."""
    return torch.rand(batch, channels, frames, size, size)


def sound(length: int, channels: int = 1, batch: int = 2) -> Tensor:
    """Sounds or other series, ``[batch, channels, length]``."""
    return torch.randn(batch, channels, length)
