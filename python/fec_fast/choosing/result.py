"""``Sweep``: the measured networks, those that no other beats, and the smallest that is good enough."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from ..pruning.pruner import PruneResult
from ..utils.arguments import check_number, check_path
from ..utils.errors import ArgumentError, BudgetError, InputError, nearest
from ..utils.html import html_panel
from ..utils.reading import check_json_text, parse_json
from ..utils.text import text_table
from .figure import draw_sweep
from .points import DenseNetwork, StoredFigures, SweepPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = ("parameters", "macs", "latency_ms")


@dataclass(frozen=True, repr=False)
class Sweep:
    """What :func:`fec_fast.sweep` measured.

    Attributes:
        metric: The name of the metric, such as ``"accuracy"``; higher is better.
        dense: The network before pruning.
        points: The pruned networks, in the order of the budgets, policies and criteria.
        failed: For each combination that gave no network, the reason.
    """

    metric: str
    dense: DenseNetwork
    points: tuple[SweepPoint, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    _remake: Callable[[SweepPoint], PruneResult] | None = field(default=None, compare=False)

    def front(self, cost: str = "macs") -> list[SweepPoint]:
        """The Pareto front: the points that no other point beats.

        Args:
            cost: ``"macs"`` (the default), ``"parameters"`` or ``"latency_ms"``.

        Returns:
            The points to which no other is at least equal in cost and value and better in one of them, by rising
            cost. Of points equal in both, the first.

        Raises:
            ArgumentError: There is no such cost, or it was not measured.
        """
        self._check_cost(cost)
        best: list[SweepPoint] = []
        for point in sorted(self.points, key=lambda point: (getattr(point, cost), -point.value)):
            if not best or point.value > best[-1].value:
                best.append(point)
        return best

    def smallest(self, within: float = 1.0, cost: str = "macs") -> SweepPoint:
        """The smallest network whose value is at most some points below that of the dense network.

        Args:
            within: The points: hundredths of the metric, which are percentage points if it is a share in [0, 1].
                Default: 1.
            cost: What is to be small: ``"macs"`` (the default), ``"parameters"`` or ``"latency_ms"``.

        Returns:
            The point; :meth:`make` makes its network.

        Raises:
            BudgetError: No network of the sweep is so good; the message names the best.
            ArgumentError: There is no such cost, or it was not measured; or ``within`` is not a number.
        """
        check_number("within", within, "the points that may be lost, such as 1.0")
        # The values are sums of shares: a loss of exactly `within` must not fail for its last bit.
        needed = self.dense.value - within / 100 - 1e-9
        good = [point for point in self.front(cost) if point.value >= needed]
        if not good:
            best = max(self.points, key=lambda point: point.value)
            raise BudgetError(
                f"no network of the sweep is within {within:g} points of the dense network's {self.metric} of "
                f"{self.dense.value:.4f}: the best ({best.name}) has {best.value:.4f}. Sweep smaller budgets, train "
                "with tune=, or allow more points"
            )
        return good[0]

    def make(self, point: SweepPoint) -> PruneResult:
        """Makes the network of a point again: prunes by its plan, recovers and, if the sweep did so, trains.

        Args:
            point: A point of this sweep.

        Returns:
            The network, its plan and its counts, as :func:`fec_fast.prune` returns them and :func:`fec_fast.save`
            takes them.

        Raises:
            ArgumentError: The point is of another sweep, or this sweep was read from JSON.
            PlanError: The model has changed since.
        """
        if self._remake is None:
            raise ArgumentError(
                "make: this sweep has no plans, for JSON does not hold them: run the sweep again, or prune by the "
                "budget, policy and criterion of the point"
            )
        if point not in self.points:
            raise ArgumentError("make: give a point of this sweep, such as sweep.make(sweep.smallest())")
        return self._remake(point)

    def plot(self, path: str | os.PathLike[str] | None = None, cost: str = "macs") -> Figure:
        """Draws value against cost: a line per policy and criterion, the dense network, and the front.

        Args:
            path: A file to write; its ending (``.png``, ``.svg``, ``.pdf``) decides the format. ``None`` writes none.
            cost: ``"macs"`` (the default), ``"parameters"`` or ``"latency_ms"``.

        Returns:
            The figure of matplotlib, which notebooks show.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArgumentError: There is no such cost, or it was not measured; or ``path`` is not a path.
            InputError: matplotlib does not write files of this ending, or there is no such folder.
            OSError: The file cannot be written.
        """
        self._check_cost(cost)
        file = None if path is None else check_path("path", path)
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"path={str(path)!r}: there is no folder {file.absolute().parent}; make it first")
        figure = draw_sweep(self.dense, self.points, self.front(cost), cost, self.metric)
        if file is not None:
            try:
                figure.savefig(file)
            except ValueError as error:  # an ending that it does not know
                raise InputError(f"path={str(path)!r}: {error}") from error
        return figure

    def to_json(self) -> str:
        """The figures as JSON: metric, dense network, points without their plans, the front and what failed.

        Returns:
            Text of several lines.
        """
        front = {id(point) for point in self.front()}
        document = {
            "format": "fec_fast.sweep",
            "version": 1,
            "metric": self.metric,
            "dense": asdict(self.dense),
            "points": [{**point.figures(), "front": id(point) in front} for point in self.points],
            "failed": dict(self.failed),
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Sweep:
        """Reads what :meth:`to_json` wrote. The plans are not in it, so :meth:`make` cannot make its networks.

        Args:
            text: The JSON.

        Returns:
            The sweep.

        Raises:
            InputError: It is not the JSON of a sweep.
            ArgumentError: ``text`` is not text.
        """
        check_json_text(text)
        document = parse_json(text, _Document, "the JSON of a sweep", InputError)
        points = tuple(entry.to_point() for entry in document.points)
        return cls(document.metric, document.dense, points, document.failed)

    def _repr_html_(self) -> str:
        """For notebooks: one row per network; a star marks the front."""
        header, align, rows = self._table()
        return html_panel(repr(self).strip("<>"), (), header, rows, align)

    def __repr__(self) -> str:
        """One line; ``str`` gives the table."""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return (
            f"<Sweep: {len(self.points)} networks{failed}, {self.metric} "
            f"{min(point.value for point in self.points):.4f} to {max(point.value for point in self.points):.4f}, "
            f"dense {self.dense.value:.4f}>"
        )

    def __str__(self) -> str:
        """A table, a row per network. A star marks the front in multiply-accumulates."""
        header, align, rows = self._table()
        notes = [f"{self.metric}; *: no other network has as few MACs and as high a value"]
        notes += [f"failed: {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join([text_table(header, rows, align), *notes])

    def _table(self) -> tuple[tuple[str, ...], str, list[tuple[str, ...]]]:
        """Header, alignment and rows of the table: the dense network, then the others."""
        front = {id(point) for point in self.front()}
        tuned = any(point.tuned is not None for point in self.points)
        timed = self.dense.latency_ms is not None
        shown = [True, True, True, True, True, tuned, True, True, timed]
        header = ("", "budget", "policy", "criterion", "pruned", "tuned", "parameters", "MACs", "ms")
        dense = self.dense
        rows: list[tuple[str, ...]] = [
            ("", "dense", "", "", f"{dense.value:.4f}", "", _number(dense.parameters), _number(dense.macs))
            + (_milliseconds(dense.latency_ms),)
        ]
        for point in self.points:
            rows.append(
                (
                    "*" if id(point) in front else "",
                    *(point.budget, point.policy, point.criterion, f"{point.pruned:.4f}"),
                    "" if point.tuned is None else f"{point.tuned:.4f}",
                    *(_number(point.parameters), _number(point.macs), _milliseconds(point.latency_ms)),
                )
            )

        def chosen(row: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(cell for cell, is_shown in zip(row, shown, strict=True) if is_shown)

        return chosen(header), "".join(chosen(tuple("llllrrrrr"))), list(map(chosen, rows))

    def _check_cost(self, cost: str) -> None:
        if cost not in COSTS:
            raise ArgumentError(f"cost={cost!r}: {nearest(str(cost), COSTS)}")
        if cost == "latency_ms" and self.dense.latency_ms is None:
            raise ArgumentError("cost='latency_ms': the sweep did not measure it; give it latency=True")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["fec_fast.sweep"]
    version: Literal[1]
    metric: str
    dense: DenseNetwork
    points: Annotated[list[StoredFigures], msgspec.Meta(min_length=1)]
    failed: dict[str, str]


def _number(count: int) -> str:
    return f"{count:,}"


def _milliseconds(latency: float | None) -> str:
    return "" if latency is None else f"{latency:.3g}"
