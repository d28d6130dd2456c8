"""A pruning plan: pure data that says what remains of every tensor, and can be read, compared and kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from .errors import PlanError

FORMAT = "fec_fast.plan"
VERSION = 1
ATTRIBUTES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by every name they have.

    Args:
        model: The model.

    Returns:
        Names to tensors; a tied tensor stands under each of its names.
    """
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def fingerprint(model: nn.Module) -> str:
    """A digest of the names and shapes of a model's parameters and buffers.

    Args:
        model: The model, not wrapped.

    Returns:
        ``"sha256:..."``; equal for models a plan can serve alike, whatever their values, dtype and device.
    """
    tensors = sorted(named_tensors(model).items(), key=lambda item: item[0])
    text = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What remains of a model.

    Attributes:
        fingerprint: Of the model before pruning, see :func:`fingerprint`.
        shapes: The shape, before pruning, of each tensor that is narrowed, by its name in the model.
        keep: For each such tensor and axis (as text, as JSON has it), the kept indices in order.
        attributes: For each module, the numbers that change with its weight (``in_channels`` and so on).
        sets: What was decided: for each coupled set its ``name``, ``layers``, number of ``units``, those ``removed``
            and the ``scores`` all units had.
        criterion: The name of the criterion.
        formula: The fields of the :class:`fec_fast.Formula`, for the criterion ``"fec"``.
        sides: ``"both"`` or ``"producer"``.
        pinned: For each layer that kept all its filters, the reason.
        notes: What else the user should know.
    """

    fingerprint: str
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
        _validate(self)

    @property
    def new_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape, after pruning, of each tensor that is narrowed."""
        return {
            name: tuple(
                len(self.keep[name][str(axis)]) if str(axis) in self.keep[name] else size
                for axis, size in enumerate(shape)
            )
            for name, shape in self.shapes.items()
        }

    def check(self, model: nn.Module) -> None:
        """Makes sure that the plan was made for a model of this shape.

        Args:
            model: The model, not wrapped, before pruning.

        Raises:
            PlanError: The plan is for another model; the first difference is named.
        """
        if fingerprint(model) == self.fingerprint:
            return
        tensors = named_tensors(model)
        for name, shape in self.shapes.items():
            found = list(tensors[name].shape) if name in tensors else None
            if found != shape:
                where = f"has {name} of shape {found}" if found else f"has no {name}"
                pruned = tuple(found or ()) == self.new_shapes[name]
                hint = "it is already pruned by this plan" if pruned else "build the model the plan was made for"
                raise PlanError(f"the plan is for another model: this one {where}, the plan expects {shape}; {hint}")
        raise PlanError("the plan is for another model: the names or shapes of its parameters differ")

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


def _validate(plan: Plan) -> None:
    """Raises PlanError unless the plan is consistent in itself."""
    if not isinstance(plan.keep, dict) or not isinstance(plan.shapes, dict) or set(plan.keep) != set(plan.shapes):
        raise PlanError("a plan names the shape of every tensor it narrows, and of no other")
    for name, axes in plan.keep.items():
        shape = plan.shapes[name]
        for axis, indices in axes.items():
            where = f"{name}, axis {axis}"
            if not axis.isdigit() or int(axis) >= len(shape):
                raise PlanError(f"{where}: the tensor has {len(shape)} axes")
            if not indices or any(type(index) is not int for index in indices):
                raise PlanError(f"{where}: the kept indices must be a list of at least one whole number")
            if any(b <= a for a, b in zip(indices, indices[1:], strict=False)):
                raise PlanError(f"{where}: the kept indices must be rising and without repetition")
            if indices[0] < 0 or indices[-1] >= shape[int(axis)]:
                raise PlanError(f"{where}: an index lies outside 0 to {shape[int(axis)] - 1}")
    new_shapes = plan.new_shapes
    for module, values in plan.attributes.items():
        weight = new_shapes.get(f"{module}.weight" if module else "weight")
        for attribute, value in values.items():
            if attribute not in ATTRIBUTES or type(value) is not int or value < 1:
                raise PlanError(f"{module}: {attribute}={value!r} is not an attribute a plan may set")
        if weight is None:
            raise PlanError(f"{module}: its attributes change but its weight does not")
        groups = values.get("groups", 1)
        wide = values.get("out_channels", values.get("out_features", values.get("num_features")))
        narrow = values.get("in_channels", values.get("in_features"))
        if len(weight) == 1 or narrow is None or wide is None:
            fits = wide == weight[0]
        else:
            # A transposed convolution holds its input channels first.
            fits = (weight[0], weight[1] * groups) in ((wide, narrow), (narrow, wide))
        if not fits:
            raise PlanError(f"{module}: {values} does not fit its weight of shape {list(weight)}")
