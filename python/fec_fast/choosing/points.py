"""Points of a sweep: one pruned network each, and their files: a point is written as soon as it is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from ..plan.plan import Plan
from ..utils.errors import FecError, InputError
from ..utils.files import write_text
from ..utils.reading import read_json

_FORMAT, _VERSION = "fec_fast.sweep_point", 1


NotNegative = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Time = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class DenseNetwork:
    """The network before pruning.

    Attributes:
        value: Its value in the metric.
        parameters: The number of its parameters.
        macs: Its multiply-accumulates in one call on the example inputs.
        latency_ms: The median time of one call, in milliseconds; ``None`` if it was not measured.
    """

    value: float
    parameters: NotNegative
    macs: NotNegative
    latency_ms: Time | None = None


@dataclass(frozen=True)
class SweepPoint:
    """One pruned network of a sweep.

    Attributes:
        budget: The budget that it meets, such as ``"macs=0.5"``.
        policy: What spread the budget over the layers.
        criterion: What decided which channels of a layer were removed.
        pruned: Its value in the metric before any training, recovered if the sweep has images for it.
        tuned: Its value after training; ``None`` if the sweep does not train.
        parameters: The number of its parameters.
        macs: Its multiply-accumulates in one call on the example inputs.
        latency_ms: The median time of one call, in milliseconds; ``None`` if it was not measured.
        plan: What is kept; :meth:`Sweep.make` makes the network from it. ``None`` in a sweep that was read from JSON.
    """

    budget: str
    policy: str
    criterion: str
    pruned: float
    tuned: float | None
    parameters: int
    macs: int
    latency_ms: float | None
    plan: Plan | None = field(repr=False)

    @property
    def value(self) -> float:
        """The value of the network that the sweep ends with: after training if there was one."""
        return self.pruned if self.tuned is None else self.tuned

    @property
    def name(self) -> str:
        """Budget, policy and criterion, such as ``"macs=0.5, entropy, fec_l1"``."""
        return f"{self.budget}, {self.policy}, {self.criterion}"

    def figures(self) -> dict[str, Any]:
        """Everything but the plan, by name, as JSON has it."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "plan"}


class StoredFigures(msgspec.Struct, forbid_unknown_fields=True):
    """The figures of a point as JSON has them; the attributes are those of :class:`SweepPoint`."""

    budget: str
    policy: str
    criterion: str
    pruned: float
    tuned: float | None
    parameters: NotNegative
    macs: NotNegative
    latency_ms: Time | None
    front: bool = False

    def to_point(self) -> SweepPoint:
        """The point, without a plan."""
        figures = {entry.name: getattr(self, entry.name) for entry in fields(SweepPoint) if entry.name != "plan"}
        return SweepPoint(**figures, plan=None)


class Beside(TypedDict):
    """What is remembered beside a point: the value of the dense network, by the same metric."""

    dense: float


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["fec_fast.sweep_point"]
    version: Literal[1]
    point: StoredFigures
    beside: Beside
    plan: msgspec.Raw


def point_key(conditions: Mapping[str, Any]) -> str:
    """A digest of what a point depends on.

    Args:
        conditions: Names and values that JSON can hold.

    Returns:
        The first 32 hexadecimal digits of the SHA-256.
    """
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:32]


class PointFolder:
    """A folder with one JSON file per point, named by its key; a file is complete or not there at all."""

    def __init__(self, folder: Path) -> None:
        """Checks the folder.

        Args:
            folder: Made with the first point, if it does not exist.

        Raises:
            InputError: It is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"results={str(folder)!r} is a file; name a folder")
        self._folder = folder

    def read(self, key: str) -> tuple[SweepPoint, Beside] | None:
        """Reads a point.

        Args:
            key: What :func:`point_key` returned.

        Returns:
            The point and what was stored beside it; ``None`` if it was not measured.

        Raises:
            InputError: The file was edited or damaged.
        """
        file = self._folder / f"{key}.json"
        if not file.is_file():
            return None
        try:
            document = read_json(file, _Stored, InputError)
            return replace(document.point.to_point(), plan=Plan.from_json(bytes(document.plan))), document.beside
        except FecError as error:
            raise InputError(f"{file} is damaged ({error}): delete it, and the point is measured again") from error

    def write(self, key: str, point: SweepPoint, beside: Beside) -> None:
        """Writes a point, and waits until it is on the disk.

        Args:
            key: What :func:`point_key` returned.
            point: The point.
            beside: What else is to be remembered, in values that JSON can hold.
        """
        assert point.plan is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "point": point.figures(),
            "beside": dict(beside),
            "plan": json.loads(point.plan.to_json()),
        }
        write_text(self._folder / f"{key}.json", json.dumps(document) + "\n")
