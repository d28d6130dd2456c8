"""Content: what a report is made from. Everything but the plan may be missing: its part is left out then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..graph.counts import Counts
from ..plan.plan import Plan
from .charts import Curve, Link


class MeasuredSensitivity(Protocol):
    """What a report reads of a :class:`fec_fast.Sensitivity`."""

    @property
    def whole(self) -> float:
        """The value with nothing removed."""

    @property
    def units(self) -> dict[str, int]:
        """The number of units of each set."""

    @property
    def values(self) -> dict[str, dict[int, float]]:
        """For each set the value by the number of units removed."""


class SweptNetwork(Protocol):
    """What a report reads of a network of a sweep, or of the dense one."""

    @property
    def value(self) -> float:
        """Its value in the metric."""

    @property
    def parameters(self) -> int:
        """The number of its parameters."""

    @property
    def macs(self) -> int:
        """Its multiply-accumulates."""

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds per call, if they were measured."""


class SweptPoint(SweptNetwork, Protocol):
    """What a report reads of a pruned network of a sweep."""

    @property
    def budget(self) -> str:
        """Its budget."""

    @property
    def policy(self) -> str:
        """What spread the budget over the layers."""

    @property
    def criterion(self) -> str:
        """What decided which channels of a layer were removed."""

    @property
    def pruned(self) -> float:
        """Its value before training."""

    @property
    def tuned(self) -> float | None:
        """Its value after training, if there was one."""


@runtime_checkable
class MeasuredSweep(Protocol):
    """What a report reads of a :class:`fec_fast.Sweep`."""

    @property
    def metric(self) -> str:
        """The name of the metric."""

    @property
    def dense(self) -> SweptNetwork:
        """The network before pruning."""

    @property
    def points(self) -> Sequence[SweptPoint]:
        """The pruned networks."""

    def front(self) -> Sequence[SweptPoint]:
        """The networks that no other beats in multiply-accumulates and value."""


@dataclass(frozen=True)
class CurveChart:
    """A chart of curves, such as accuracy against size.

    Attributes:
        title: Its heading.
        curves: Its curves, five at most.
        x_label: What the horizontal axis counts, with the unit.
        y_label: What the vertical axis counts, with the unit.
        text: What it shows and on what it was measured.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    text: str


@dataclass(frozen=True)
class ReportContent:
    """What a report shows.

    Attributes:
        title: The heading of the page.
        plan: The plan.
        pruned: The pruned network.
        original: The network before pruning, with its weights; ``None`` leaves out what is drawn from weights.
        before: Sizes of the original; ``None`` leaves out parameters and multiply-accumulates.
        after: Sizes of the pruned network; ``None`` likewise.
        links: The coupled sets, for the graph.
        distinct: For each layer how many of its filters are effectively distinct.
        spread: How the removal was spread over the layers; ``""`` where it is not known.
        facts: Lines on how the result was made and proven.
        sensitivity: What each set costs alone; ``None`` if it was not measured.
        sweep: Networks of other sizes, to compare with; ``None`` if there are none.
        images: Pictures ``[3, H, W]`` in [0, 1] for both networks, which must be detectors.
        filters: Layers and positions of filters whose distances between channels are shown.
        charts: Further charts, at the top.
    """

    title: str
    plan: Plan
    pruned: nn.Module | None = None
    original: nn.Module | None = None
    before: Counts | None = None
    after: Counts | None = None
    links: Sequence[Link] = ()
    distinct: Mapping[str, float] = field(default_factory=dict)
    spread: str = ""
    facts: Sequence[str] = ()
    sensitivity: MeasuredSensitivity | None = None
    sweep: MeasuredSweep | None = None
    images: Sequence[Tensor] = ()
    filters: Sequence[tuple[str, int]] = ()
    charts: Sequence[CurveChart] = ()
