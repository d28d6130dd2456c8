"""Recipes: a whole run (model, data, pruning, training) as YAML, validated before any work starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..training.settings import TrainingSettings
from ..training.tasks.base import Task
from ..training.tasks.classification import Classification
from ..training.tasks.detection import Detection
from ..utils.errors import FecError, InputError, missing_extra, nearest
from ..utils.reading import read_bytes
from ..utils.yaml_text import MOST_YAML_BYTES, parse_yaml

SCHEMA = "recipe.schema.json"


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        content: Keys and values of the file, overrides included.
    """

    content: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Name of the network, as :func:`fec_fast.vision.zoo.build` takes it."""
        return str(self.content["model"])

    @property
    def weights(self) -> Path | None:
        """File of the weights; ``None`` for random weights."""
        file = self.content.get("weights")
        return None if file is None else Path(file)

    @property
    def data(self) -> dict[str, Any]:
        """Arguments of :func:`fec_fast.vision.data.load`, ``spec`` among them."""
        arguments = {key: value for key, value in self.content["data"].items() if value is not None}
        return {"spec": arguments.pop("name"), "seed": self.training.seed, **arguments}

    @property
    def prune(self) -> dict[str, Any]:
        """Arguments of :func:`fec_fast.prune`, by the recipe's key ``prune``."""
        return {key: value for key, value in self.content.get("prune", {}).items() if value is not None}

    @property
    def task(self) -> Task:
        """Task that the network is trained for."""
        return Detection() if self.content.get("task") == "detection" else Classification()

    @property
    def training(self) -> TrainingSettings:
        """Settings of the fine-tuning."""
        return TrainingSettings(**self.content["finetune"])


def schema() -> dict[str, Any]:
    """Reads the JSON schema of recipes, a file of the package."""
    content: dict[str, Any] = json.loads((files(__package__) / SCHEMA).read_text(encoding="utf-8"))
    return content


def read_recipe(
    file: str | Path | None, overrides: Iterable[str] = (), given: Mapping[str, Any] | None = None
) -> Recipe:
    """Reads a recipe, applies overrides, and validates the result.

    Args:
        file: YAML file; ``None`` starts from an empty recipe.
        overrides: Assignments such as ``"finetune.epochs=1"``; the value is YAML.
        given: Values by dotted key, such as ``"finetune.epochs"``; ``None`` values are ignored.

    Returns:
        The recipe.

    Raises:
        InputError: The file is missing or is not YAML, or a key is missing, unknown, or has a wrong value. The message
            names the key and the expected value.
        MissingExtraError: pyyaml or jsonschema is not installed.
    """
    content = {} if file is None else _parsed(Path(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"--set {override!r}: give KEY=VALUE, such as finetune.epochs=1")
        try:
            value = parse_yaml(text)
        except InputError as error:
            raise InputError(f"--set {override!r}: the value {error}") from error
        _put(content, key, value)
    for key, value in (given or {}).items():
        if value is not None:
            _put(content, key, value)
    name = "of the command line" if file is None else str(file)
    validate(content, name)
    recipe = Recipe(content)
    try:
        _ = recipe.training  # the schema cannot compare one value with another; the settings do
    except FecError as error:
        changed = "--set finetune.KEY=VALUE gives a value for this call"
        raise InputError(f"recipe {name}: finetune: {error}; {changed}") from error
    return recipe


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content_bytes = read_bytes(path, MOST_YAML_BYTES, InputError)
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from error
    try:
        content = parse_yaml(content_bytes.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {path} is not YAML: {error}") from error
    except InputError as error:
        raise InputError(f"recipe {path} {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"recipe {path} must hold keys and values, such as model: zoo:vgg16-cifar")
    return content


def validate(content: Any, name: str) -> None:
    """Validates a recipe against the schema.

    Args:
        content: The recipe, as read from YAML.
        name: Name of the recipe in messages.

    Raises:
        InputError: A key is missing, unknown or has a wrong value. The message names the key and the expected value.
        MissingExtraError: jsonschema is not installed.
    """
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except (ImportError, AttributeError) as error:
        raise missing_extra("jsonschema", "train", "recipes", error) from error
    wrong = best_match(Draft202012Validator(schema()).iter_errors(content))
    if wrong is None:
        return
    path = [str(part) for part in wrong.absolute_path]
    if wrong.validator == "additionalProperties":
        allowed = list(wrong.schema["properties"])
        unknown = str(next(key for key in wrong.instance if key not in allowed))
        raise InputError(f"recipe {name}: there is no key {'.'.join([*path, unknown])}; {nearest(unknown, allowed)}")
    if wrong.validator == "required":
        missing = next(key for key in wrong.validator_value if key not in wrong.instance)
        description = wrong.schema["properties"][missing]["description"]
        raise InputError(f"recipe {name}: {'.'.join([*path, missing])} is missing: give {description}")
    description = wrong.schema.get("description", "")
    raise InputError(
        f"recipe {name}: {'.'.join(path) or 'it'}: {wrong.message}" + (f"; give {description}" if description else "")
    )


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value by its dotted key; sections that do not exist yet are made."""
    *sections, last = key.split(".")
    section = content
    for name in sections:
        inner = section.setdefault(name, {})
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {key}: {name} is {inner!r} and holds no keys")
        section = inner
    section[last] = value
