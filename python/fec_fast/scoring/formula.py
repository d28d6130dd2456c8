"""Formula of the channel-similarity entropy: its choices as one frozen value."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..utils.errors import FormulaError, nearest
from ..utils.public_call import constructor_checked

Compress = Literal["rms", "absmean", "mean", "none"]
Entropy = Literal["similarity", "softmax", "distance"]
Axis = Literal["channels", "filters", "both"]


@constructor_checked
@dataclass(frozen=True)
class Formula:
    r"""The choices that define the entropy of a filter.

    For a weight ``W`` of shape ``[N, C, *kernel]`` (``N`` filters of ``C`` channels), with ``tau`` one number per
    layer:

    * ``compress`` turns each channel into a point: its root mean square, mean absolute value or mean over the
      kernel, or (``"none"``) the vector of all its taps.
    * ``axis="channels"`` compares the ``C`` channels inside each filter; ``axis="filters"`` compares the ``N`` filters
      of the layer with one another; ``axis="both"`` adds the two entropies; the filters are then compared by all their
      taps, whatever ``compress`` is. ``d`` is the Euclidean distance between two points.
    * ``entropy`` turns the distances of one point to all ``M`` points (itself included) into nats:
      ``"similarity"``: ``-ln((1/M) sum_e exp(-d_e/tau))`` (order 1 of the similarity-sensitive entropy of Leinster
      & Cobbold, Ecology 93(3), 2012); ``"softmax"``: Shannon entropy of ``softmax(-d/tau)``; ``"distance"``:
      Shannon entropy of ``d / sum(d)``.
      On the channel axis the entropy of a filter is the mean over its channels; on the filter axis it is that of
      the filter's own row.

    The idea is that of Geng & Niu, Computer Engineering 50(7):133-143, 2024 (doi
    10.19678/j.issn.1000-3428.0068284). Only the abstract of that paper is public to us, so none of these formulas
    is claimed to be the paper's own; :meth:`literal` is the reading nearest to the abstract's words.

    Attributes:
        compress: ``"rms"``, ``"absmean"``, ``"mean"`` or ``"none"``.
        entropy: ``"similarity"``, ``"softmax"`` or ``"distance"``. ``"distance"`` uses no tau.
        axis: ``"channels"``, ``"filters"`` or ``"both"``.
        tau: The distance at which similarity has fallen to 1/e, in the units of the weights; ``None`` takes the
            layer's mean distance over all pairs (a point with itself included).
        tau_scale: Multiplies tau, whether given or measured.

    Raises:
        FormulaError: An unknown word, or a tau or tau_scale that is not a positive finite number.
    """

    compress: Compress = "none"
    entropy: Entropy = "similarity"
    axis: Axis = "filters"
    tau: float | None = None
    tau_scale: float = 1.0

    def __post_init__(self) -> None:
        """Checks every choice.

        Raises:
            FormulaError: An unknown word, or a number that is not positive and finite.
        """
        for field, words in (
            ("compress", get_args(Compress)),
            ("entropy", get_args(Entropy)),
            ("axis", get_args(Axis)),
        ):
            value = getattr(self, field)
            if value not in words:
                raise FormulaError(f"Formula({field}={value!r}): {nearest(str(value), words)}; one of {words}")
        for field in ("tau", "tau_scale"):
            value = getattr(self, field)
            if field == "tau" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FormulaError(f"Formula({field}={value!r}): give a positive number")
            if not 0 < value <= sys.float_info.max:
                raise FormulaError(f"Formula({field}={value!r}): give a positive finite number")

    def parts(self) -> tuple[Formula, ...]:
        """Splits the formula into formulas of one axis each, whose entropies add up to this one's.

        Returns:
            The formula itself; for ``axis="both"`` the formula of the channels and that of the filters.
        """
        if self.axis != "both":
            return (self,)
        return replace(self, axis="channels"), replace(self, axis="filters", compress="none")

    @classmethod
    def literal(cls) -> Formula:
        """The literal reading of the paper's abstract: each channel compressed to its mean.

        Returns:
            ``Formula(compress="mean", entropy="similarity", axis="channels")``.
        """
        return cls(compress="mean", entropy="similarity", axis="channels")

    def to_dict(self) -> dict[str, Any]:
        """Converts the formula to plain values, for JSON.

        Returns:
            A dictionary that :meth:`from_dict` reads.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Formula:
        """Rebuilds a formula from :meth:`to_dict`.

        Args:
            values: Field names to values.

        Returns:
            The formula.

        Raises:
            FormulaError: A field or value is unknown.
        """
        if not isinstance(values, Mapping):
            raise FormulaError(f"values={values!r:.80}: give a dictionary of field names and values")
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise FormulaError(f"Formula has no field {name!r}; {nearest(name, names)}")
        return cls(**values)

    def __str__(self) -> str:
        """Describes the choices in one line."""
        choices = f"{self.entropy} entropy, axis={self.axis}, compress={self.compress}"
        tau = "mean distance" if self.tau is None else f"{self.tau:g}"
        scale = "" if self.tau_scale == 1.0 else f"{self.tau_scale:g} x "
        return choices if self.entropy == "distance" else f"{choices}, tau={scale}{tau}"
