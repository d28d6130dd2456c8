"""Pruning plan: pure data that says which indices of every tensor are kept; it can be read, compared and stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from ..utils.compat import ConvolutionBase, NormBase
from ..utils.errors import ArgumentError, PlanError, list_some
from ..utils.html import html_panel, share_bar
from ..utils.model_index import ModelIndex
from ..utils.number_attributes import as_numbers
from ..utils.reading import check_json_text, parse_json
from ..utils.text import counted
from .shapes import persistent_shapes, pruned_shapes, shapes_fingerprint, weight_name
from .validation import validate_entries

FORMAT = "fec_fast.plan"
VERSION = 3
# The attributes that hold the widths of a module.
_WIDTHS: dict[type[nn.Module], set[str]] = {
    ConvolutionBase: {"in_channels", "out_channels", "groups"},
    NormBase: {"num_features"},
    nn.Linear: {"in_features", "out_features"},
}


@dataclass(frozen=True)
class Plan:
    """The channels that pruning keeps in a model.

    Attributes:
        fingerprint: Fingerprint of the model before pruning: a hash of the names and shapes of its parameters and
            buffers, see :func:`fec_fast.plan.shapes.fingerprint`.
        pruned_fingerprint: Fingerprint of the model after pruning.
        shapes: The shape before pruning of each tensor that becomes smaller, by its name in the model.
        keep: For each such tensor and axis (as text, as in JSON), the kept indices in ascending order. Axes of coupled
            tensors may share one list object.
        attributes: For each module, the integer attributes that change with its weight (``in_channels`` and so on).
        sizes: For each module, attributes of its own in which its code holds numbers of channels that change: their
            values ``before`` and ``after``, each a number or a list of numbers.
        sets: The decisions. For each coupled set: its ``name``, its ``layers``, its number of ``units``, the
            ``removed`` units, the ``scores`` of all units, for each layer the unit that each of its ``filters``
            belongs to (``None`` for the filters of other sets), and the ``round``: 1, or more in a plan made by
            :func:`fec_fast.compose`.
        criterion: The name of the criterion; of the last round.
        formula: The fields of the :class:`fec_fast.Formula` for the criteria ``"fec_l1"`` and ``"fec"``, otherwise
            ``None``; of the last round.
        sides: ``"both"`` or ``"producer"``; of the last round.
        norms: For each module whose code takes statistics over channels of which some are removed (a group norm, a
            layer norm, a mean): which ``kept`` channels the statistics run over in the pruned network, along which
            ``dim`` (counted from the last), in which ``operator``, and the ``number`` of calls of it before, in one
            call of the module; and whether they are ``exact``, the same as before. They are where a group norm loses
            whole groups; others need ``norms="renormalise"``.
        pinned: For each layer that keeps all its filters, the reason.
        notes: Further messages for the user.
    """

    fingerprint: str
    pruned_fingerprint: str
    shapes: dict[str, list[int]]
    keep: dict[str, dict[str, list[int]]]
    attributes: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, dict[str, Any]]]
    sets: list[dict[str, Any]]
    criterion: str
    formula: dict[str, Any] | None
    sides: str
    norms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Checks that the entries are of the right types and consistent with one another."""
        validate_entries(vars(self))

    def __repr__(self) -> str:
        """One line; :meth:`to_json` gives the whole plan."""
        counts = self._units_removed()
        removed, units = sum(row[0] for row in counts), counted(sum(row[1] for row in counts), "unit")
        rounds = max((int(record["round"]) for record in self.sets), default=1)
        # A unit that is kept in one round is decided on again in the next.
        how_many = f"{removed:,} of {units}" if rounds == 1 else counted(removed, "unit")
        sets = counted(len({record["name"] for record in self.sets}), "coupled set")
        in_rounds = f" in {rounds} rounds" if rounds > 1 else ""
        return f"<Plan: {how_many} removed, {sets}{in_rounds}, criterion {self.criterion}>"

    def _repr_html_(self) -> str:
        """For notebooks: the sets, and how many units each keeps."""
        rows = [
            (
                record["name"],
                share_bar(1 - removed / units, f"{units - removed} of {units}"),
                str(len(record["layers"])),
                str(record["round"]),
            )
            for record, (removed, units) in zip(self.sets, self._units_removed(), strict=True)
        ]
        facts = [f"keep all their filters: {list_some(list(self.pinned))}" if self.pinned else "", *self.notes[:3]]
        facts.append(f"and {counted(len(self.notes) - 3, 'more note')}" if len(self.notes) > 3 else "")
        header = ("coupled set", "units kept", "layers", "round")
        return html_panel(repr(self).strip("<>"), [fact for fact in facts if fact], header, rows, "llrr")

    def _units_removed(self) -> list[tuple[int, int]]:
        """For each record of a set, how many units are removed, and of how many."""
        return [(len(record["removed"]), len(record["scores"])) for record in self.sets]

    @property
    def new_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape after pruning of each tensor that becomes smaller."""
        return pruned_shapes(self.shapes, self.keep)

    @property
    def changed_norms(self) -> list[str]:
        """The modules in which statistics run over the kept channels alone and are others than before."""
        changed = [name for name, records in self.norms.items() if not all(record["exact"] for record in records)]
        return [name or "the model itself" for name in changed]

    def with_notes(self, *notes: str) -> Plan:
        """The same plan with further messages for the user.

        Args:
            *notes: They come after the notes that are there.

        Returns:
            Another plan; this one is not changed.
        """
        return replace(self, notes=[*self.notes, *notes])

    def check(self, model: nn.Module) -> None:
        """Checks that the plan was made for a model with these names and shapes.

        Args:
            model: The model before pruning.

        Raises:
            PlanError: The plan is for another model; the message names the first difference.
        """
        check_plan(self, ModelIndex.of(model))

    def to_json(self) -> str:
        """Writes the plan as JSON.

        Returns:
            Text with one line per tensor axis, so that two plans can be compared line by line.
        """
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return _to_json_lines(document) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Reads and validates a plan.

        Args:
            text: What :meth:`to_json` wrote, also in UTF-8; at most 48 MB and 4 million values.

        Returns:
            The plan.

        Raises:
            PlanError: The text is not a plan, the plan has another version, or its entries contradict one another.
            ArgumentError: ``text`` is not text.
        """
        check_json_text(text)
        # The types are checked by validate_entries: its messages name layers, where a schema's name positions.
        document: Any = parse_json(text, Any, "the plan", PlanError)
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise PlanError(f"not a plan: expected a JSON object with format {FORMAT!r}")
        version = document.pop("version", None)
        if version != VERSION:
            raise PlanError(f"a plan of version {version!r}; this release reads version {VERSION}")
        names = {entry.name for entry in fields(cls)}
        if set(document) != names:
            different = list_some(sorted(map(repr, set(document) ^ names)))
            raise PlanError(f"a plan has the entries {sorted(names)}; this one lacks, or has besides, {different}")
        return cls(**document)


def check_plan(plan: Plan, index: ModelIndex) -> None:
    """Checks that a plan was made for a model with these names and shapes.

    Args:
        plan: The plan.
        index: The index of the model before pruning.

    Raises:
        PlanError: The plan is for another model; the message names the first difference.
        ArgumentError: It is no plan.
    """
    expect_plan(plan)
    shapes = persistent_shapes(index)
    if shapes_fingerprint(shapes) != plan.fingerprint:
        raise PlanError(f"the plan is for another model: {_first_difference(plan, shapes)}")
    for name, expected in plan.shapes.items():
        tensor = index.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != tuple(expected):
            found = "has no such tensor" if tensor is None else f"has it with shape {list(tensor.shape)}"
            raise PlanError(f"the plan is for another model: it expects {name} of shape {expected}, this one {found}")
    new_shapes = plan.new_shapes
    after = {name: new_shapes.get(name, shape) for name, shape in shapes.items()}
    if shapes_fingerprint(after) != plan.pruned_fingerprint:
        raise PlanError("the plan was edited: its kept indices do not match its pruned_fingerprint")
    # A tied tensor is pruned once, so the plan must keep the same indices under each of its names.
    for name, tensor in index.tensors.items():
        first_name = index.first_names[id(tensor)]
        if plan.keep.get(first_name) != plan.keep.get(name):
            raise PlanError(
                f"the model shares {first_name!r} and {name!r}, but the plan keeps different indices of them"
            )
    _check_attributes_of(plan, index)
    for module, attributes in plan.sizes.items():
        for attribute, values in attributes.items():
            held = as_numbers(vars(index.modules[module]).get(attribute)) if module in index.modules else None
            if held != values["before"]:
                name = f"{module}.{attribute}" if module else attribute
                raise PlanError(
                    f"the plan is for another model: {name} is {held}, the plan expects {values['before']}; build the "
                    "model the plan was made for"
                )


def _check_attributes_of(plan: Plan, index: ModelIndex) -> None:
    """Raises where the attributes of a module are not those of its class, or lack in a convolution or norm of torch."""
    for name, module in index.modules.items():
        given = plan.attributes.get(name, {})
        expected = next((names for kind, names in _WIDTHS.items() if isinstance(module, kind)), set(given))
        if given and (set(given) != expected or not all(hasattr(module, own) for own in given)):
            raise PlanError(f"the plan was edited: it sets {sorted(given)} of {name!r}, a {type(module).__name__}")
        # A subclass may compute with its weight as it likes, and so may code that takes the weight of a linear layer.
        is_plain = type(module).__module__.startswith("torch.") and isinstance(module, ConvolutionBase | NormBase)
        if is_plain and not given and weight_name(name, plan.keep) is not None:
            raise PlanError(f"the plan was edited: it narrows {name!r} and does not set its {sorted(expected)}")


def expect_plan(plan: Any, name: str = "plan") -> None:
    """Checks that an argument is a plan.

    Args:
        plan: The argument.
        name: Its name, for the message.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(
            f"{name}: expected a fec_fast.Plan, got a {type(plan).__name__}: give result.plan, or Plan.from_json(text)"
        )


def _first_difference(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describes the first difference between the model that a plan was made for and a model of these shapes."""
    if shapes_fingerprint(shapes) == plan.pruned_fingerprint:
        return "this one is already pruned by this plan, or by one that leaves the same shapes"
    for name, expected in plan.shapes.items():
        actual = shapes.get(name)
        if actual != tuple(expected):
            difference = f"has no {name}" if actual is None else f"has {name} of shape {list(actual)}"
            return (
                f"this one {difference}, the plan expects {expected}; build the model the plan was made for (if that "
                "was pruned already: fec_fast.compose joins two plans)"
            )
    return "the names or shapes of its parameters differ; build the model the plan was made for"


def _to_json_lines(value: Any, indent: int = 0) -> str:
    """Formats JSON with every list of plain values on one line; ``json.dumps(indent=...)`` gives each number a line."""
    pad = "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(str(key))}: {_to_json_lines(value[key], indent + 1)}" for key in value]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        rows = [f"{pad}{_to_json_lines(item, indent + 1)}" for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + "  " * indent + "]"
    return json.dumps(value, allow_nan=False)
