"""A pruning plan: pure data that says what remains of every tensor, and can be read, compared and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from ..utils.errors import PlanError
from ..utils.modules import named_tensors
from .validation import validate

FORMAT = "fec_fast.plan"
VERSION = 2


def fingerprint(model: nn.Module) -> str:
    """A digest of the names and shapes of a model's parameters and buffers.

    Args:
        model: The model, not wrapped.

    Returns:
        ``"sha256:..."``; equal for models a plan can serve alike, whatever their values, dtype and device.
    """
    return digest({name: tensor.shape for name, tensor in named_tensors(model).items()})


def digest(shapes: Mapping[str, Sequence[int]]) -> str:
    """A digest of names and shapes, as :func:`fingerprint` has it for a model.

    Args:
        shapes: The shape of each parameter and buffer by name.

    Returns:
        ``"sha256:..."``.
    """
    text = "\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def narrowed_shapes(
    shapes: Mapping[str, Sequence[int]], keep: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that tensors have after pruning.

    Args:
        shapes: The shape of each narrowed tensor before.
        keep: For each of them and axis (as text), the kept indices.

    Returns:
        The shape of each of them after.
    """
    return {
        name: tuple(len(keep[name][str(axis)]) if str(axis) in keep[name] else size for axis, size in enumerate(shape))
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Plan:
    """What remains of a model.

    Attributes:
        fingerprint: Of the model before pruning, see :func:`fingerprint`.
        pruned_fingerprint: Of the model after pruning.
        shapes: The shape, before pruning, of each tensor that is narrowed, by its name in the model.
        keep: For each such tensor and axis (as text, as JSON has it), the kept indices in order; axes that belong to
            one another may share a list.
        attributes: For each module, the numbers that change with its weight (``in_channels`` and so on).
        sets: What was decided: for each coupled set its ``name``, ``layers``, number of ``units``, those ``removed``,
            the ``scores`` all units had, for each layer the unit that each of its ``filters`` belongs to (``None``
            for the filters of other sets), and the ``round``: 1, or more in a plan made by :func:`fec_fast.compose`.
        criterion: The name of the criterion; of the last round.
        formula: The fields of the :class:`fec_fast.Formula`, for ``"fec_l1"`` and ``"fec"``; of the last round.
        sides: ``"both"`` or ``"producer"``; of the last round.
        pinned: For each layer that kept all its filters, the reason.
        notes: What else the user should know.
    """

    fingerprint: str
    pruned_fingerprint: str
    shapes: dict[str, list[int]]
    keep: dict[str, dict[str, list[int]]]
    attributes: dict[str, dict[str, int]]
    sets: list[dict[str, Any]]
    criterion: str
    formula: dict[str, Any] | None
    sides: str
    pinned: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuses a plan that is inconsistent in itself."""
        validate(self)

    @property
    def new_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape, after pruning, of each tensor that is narrowed."""
        return narrowed_shapes(self.shapes, self.keep)

    def check(self, model: nn.Module) -> None:
        """Makes sure that the plan was made for a model of this shape.

        Args:
            model: The model, not wrapped, before pruning.

        Raises:
            PlanError: The plan is for another model; the first difference is named.
        """
        tensors = named_tensors(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if digest(shapes) != self.fingerprint:
            raise PlanError(f"the plan is for another model: {self._difference(shapes)}")
        if digest({**shapes, **self.new_shapes}) != self.pruned_fingerprint:
            raise PlanError("the plan was edited: what it keeps is not what its pruned_fingerprint was made from")
        seen: dict[int, str] = {}
        for name, tensor in tensors.items():
            other = seen.setdefault(id(tensor), name)
            if self.keep.get(other) != self.keep.get(name):
                raise PlanError(f"the model shares {other!r} and {name!r}, of which the plan keeps different indices")

    def _difference(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Words for the first difference between the model the plan was made for and that of these shapes."""
        if digest(shapes) == self.pruned_fingerprint:
            return "this one is already pruned by this plan, or by one that leaves the same shapes"
        for name, shape in self.shapes.items():
            found = shapes.get(name)
            if found != tuple(shape):
                where = f"has no {name}" if found is None else f"has {name} of shape {list(found)}"
                return f"this one {where}, the plan expects {shape}; build the model the plan was made for"
        return "the names or shapes of its parameters differ; build the model the plan was made for"

    def to_json(self) -> str:
        """The plan as JSON.

        Returns:
            Text with sorted keys; a line a tensor axis, so that two plans can be compared line by line.
        """
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return _dump(document) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads and validates a plan.

        Args:
            text: What :meth:`to_json` wrote.

        Returns:
            The plan.

        Raises:
            PlanError: Not a plan, of another version, or inconsistent in itself.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise PlanError(f"not a plan: expected a JSON object with format {FORMAT!r}")
        version = document.pop("version", None)
        if version != VERSION:
            raise PlanError(f"a plan of version {version!r}; this release reads version {VERSION}")
        names = {entry.name for entry in fields(cls)}
        if set(document) != names:
            raise PlanError(f"a plan has the entries {sorted(names)}, this one {sorted(document)}")
        return cls(**document)


def _dump(value: Any, indent: int = 0) -> str:
    """JSON with one line for every list of plain values."""
    pad = "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(str(key))}: {_dump(value[key], indent + 1)}" for key in value]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"{pad}{_dump(item, indent + 1)}" for item in value) + "\n" + "  " * indent + "]"
    return json.dumps(value, allow_nan=False)
