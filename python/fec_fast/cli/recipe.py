"""Recipes: a whole run (model, data, pruning, training) as YAML, validated before anything is done."""

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
from ..utils.errors import InputError, missing_extra, nearest

SCHEMA = "recipe.schema.json"


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        content: What the file says, overrides included.
    """

    content: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The name of the network, as :func:`fec_fast.vision.zoo.build` takes it."""
        return str(self.content["model"])

    @property
    def weights(self) -> Path | None:
        """The file of its weights."""
        file = self.content.get("weights")
        return None if file is None else Path(file)

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of :func:`fec_fast.vision.data.load`, ``spec`` among them."""
        given = {key: value for key, value in self.content["data"].items() if value is not None}
        return {"spec": given.pop("name"), "seed": self.training.seed, **given}

    @property
    def prune(self) -> dict[str, Any]:
        """What ``prune`` says."""
        return {key: value for key, value in self.content.get("prune", {}).items() if value is not None}

    @property
    def task(self) -> Task:
        """What the network is trained for."""
        return Detection() if self.content.get("task") == "detection" else Classification()

    @property
    def training(self) -> TrainingSettings:
        """How to fine-tune."""
        return TrainingSettings(**self.content["finetune"])


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, as it comes with the package."""
    content: dict[str, Any] = json.loads((files(__package__) / SCHEMA).read_text(encoding="utf-8"))
    return content


def read(file: str | Path | None, overrides: Iterable[str] = (), given: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe, puts in what is given otherwise, and validates the whole.

    Args:
        file: YAML; ``None`` starts from nothing.
        overrides: Such as ``"finetune.epochs=1"``; the value is YAML.
        given: Values by such paths; those that are ``None`` are left out.

    Returns:
        The recipe.

    Raises:
        InputError: The file is missing or no YAML, or a key is missing, unknown, or has a wrong value; the message
            names the key and says what it should be.
        MissingExtraError: pyyaml or jsonschema is not installed.
    """
    yaml = _yaml()
    content = {} if file is None else _parsed(Path(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"--set {override!r}: write KEY=VALUE, such as finetune.epochs=1")
        try:
            _put(content, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise InputError(f"--set {override!r}: the value is no YAML: {error}") from error
    for key, value in (given or {}).items():
        if value is not None:
            _put(content, key, value)
    validate(content, "of the command line" if file is None else str(file))
    recipe = Recipe(content)
    _ = recipe.training  # numbers that contradict each other
    return recipe


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("pyyaml", "train", "recipes") from error
    return yaml


def _parsed(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"recipe {path} must hold keys and values, such as model: zoo:vgg16-cifar")
    return content


def validate(content: Any, name: str) -> None:
    """Compares a recipe with the schema.

    Args:
        content: The recipe, as read from YAML.
        name: What to call it in messages.

    Raises:
        InputError: Something is wrong; the message names the key and says what it should be.
        MissingExtraError: jsonschema is not installed.
    """
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as error:
        raise missing_extra("jsonschema", "train", "recipes") from error
    wrong = best_match(Draft202012Validator(schema()).iter_errors(content))
    if wrong is None:
        return
    where = [str(part) for part in wrong.absolute_path]
    if wrong.validator == "additionalProperties":
        known = list(wrong.schema["properties"])
        odd = next(key for key in wrong.instance if key not in known)
        raise InputError(f"recipe {name}: there is no key {'.'.join([*where, str(odd)])}; {nearest(str(odd), known)}")
    if wrong.validator == "required":
        lacking = next(key for key in wrong.validator_value if key not in wrong.instance)
        words = wrong.schema["properties"][lacking]["description"]
        raise InputError(f"recipe {name}: {'.'.join([*where, lacking])} is missing: give {words}")
    words = wrong.schema.get("description", "")
    raise InputError(
        f"recipe {name}: {'.'.join(where) or 'it'}: {wrong.message}" + (f"; give {words}" if words else "")
    )


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = content
    for part in path:
        inner = place.setdefault(part, {})
        if inner is None:
            inner = place[part] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {key}: {part} is {inner!r} and holds no keys")
        place = inner
    place[last] = value
