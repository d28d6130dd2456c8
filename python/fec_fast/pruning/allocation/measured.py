"""``Sensitivity``: the measured values, as text, for notebooks and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from ...utils.errors import InputError
from ...utils.html import html_panel
from ...utils.reading import check_json_text, parse_json
from ...utils.text import counted, text_table

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]


@dataclass(frozen=True)
class Sensitivity:
    """The value of a model (its accuracy, unless another was measured) when one coupled set loses channels.

    Attributes:
        fingerprint: Digest of the names and shapes of the model's tensors, as in :class:`fec_fast.Plan`.
        whole: The value with nothing removed.
        units: The number of units of each set, by the set's name.
        values: For each set, by its name, the value by the number of units that were removed.
    """

    fingerprint: str
    whole: float
    units: dict[str, int]
    values: dict[str, dict[int, float]]

    def __repr__(self) -> str:
        """One line; ``str()`` gives the table."""
        values = sum(map(len, self.values.values()))
        sets = counted(len(self.values), "set")
        return f"<Sensitivity: {counted(values, 'value')} of {sets}, {self.whole:.4g} with nothing removed>"

    def _repr_html_(self) -> str:
        """For notebooks: one row per set, the set that loses the most first."""
        rows = [
            (name, "  ".join(f"{number / self.units[name]:.0%}: {value:.4g}" for number, value in sorted(row.items())))
            for name, row in sorted(self.values.items(), key=lambda item: min(item[1].values()))
        ]
        return html_panel(repr(self).strip("<>"), (), ("set", "value by share removed"), rows, "ll")

    def __str__(self) -> str:
        """A table: one row per set, with the value at each share that was measured."""
        header = ("set", "units", "value by share removed")
        rows = []
        for name, values in self.values.items():
            units = self.units[name]
            shares = "  ".join(f"{number / units:.2f}: {value:.4g}" for number, value in sorted(values.items()))
            rows.append((name, str(units), shares))
        return f"nothing removed: {self.whole:.4g}\n" + text_table(header, rows, "lrl", rule=False)

    def to_json(self) -> str:
        """The values as JSON; a report takes its file.

        Returns:
            Text of several lines.
        """
        document = {
            "format": "fec_fast.sensitivity",
            "version": 1,
            "fingerprint": self.fingerprint,
            "whole": self.whole,
            "units": self.units,
            "values": self.values,
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Sensitivity:
        """Reads what :meth:`to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            The values, for ``prune(..., ratios=...)`` and for reports.

        Raises:
            InputError: It is not the JSON of a sensitivity, or its entries contradict one another.
            ArgumentError: ``text`` is not text.
        """
        check_json_text(text)
        what = "the JSON of a sensitivity"
        document = parse_json(text, _Document, what, InputError)
        if set(document.units) != set(document.values) or not document.values:
            raise InputError(f"{what}: units and values must have the same sets, at least one")
        for name, values in document.values.items():
            if not values or max(values) > document.units[name]:
                raise InputError(f"{what}: {name!r}: give values for 1 to {document.units[name]} units")
        return cls(document.fingerprint, document.whole, document.units, document.values)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["fec_fast.sensitivity"]
    version: Literal[1]
    fingerprint: str
    whole: float
    units: dict[str, _Count]
    values: dict[str, dict[_Count, float]]
