"""Estimates: means of the study's rows with 95 % intervals, over the test images and the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# By seed, one number per test image: 1 where it is classified correctly, 0 elsewhere.
Correct = dict[int, NDArray[np.float64]]


def unpacked(packed: str, images: int) -> NDArray[np.float64]:
    """The bits that :func:`benchmarks.study.run.packed` wrote as hexadecimal digits, as float64 [images]."""
    return np.array([float(bit) for bit in f"{int(packed, 16):0{images}b}"])


def by_seed(rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], Correct]:
    """Rows whose keys end with the seed: by the rest of the key, for each seed which images are classified correctly.

    Args:
        rows: Of a result file, with ``key``, ``right`` and ``images``.
    """
    found: dict[tuple[Any, ...], Correct] = {}
    for row in rows:
        *rest, seed = row["key"]
        found.setdefault(tuple(rest), {})[seed] = unpacked(row["right"], row["images"])
    return found


@dataclass(frozen=True)
class Estimate:
    """A mean with its variance.

    Attributes:
        mean: In per cent, or in percentage points for a difference.
        parts: The components of the variance of the mean, each with its degrees of freedom.
    """

    mean: float
    parts: tuple[tuple[float, int], ...]

    def half_width(self, among: int = 1) -> float:
        """Half the width of the 95 % interval, by Student's t.

        The degrees of freedom are those of Welch and Satterthwaite: the variance over three seeds is itself uncertain.

        Args:
            among: The number of estimates that this one was selected from; the interval is widened for it
                (Bonferroni).
        """
        variance = sum(part for part, _ in self.parts)
        if variance == 0:
            return 0.0
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in self.parts)
        return float(stats.t.ppf(1 - 0.025 / among, freedom)) * math.sqrt(variance)

    def text(self, sign: str = "", among: int = 1) -> str:
        """The mean with its interval, such as "91.2 ± 0.8"; with ``sign="+"``, "+0.4 ± 0.3"."""
        return f"{self.mean:{sign}.1f} ± {self.half_width(among):.1f}"

    def verdict(self, among: int = 1) -> str:
        """What a difference says: "ahead", "behind", or "level" if the interval contains zero."""
        if abs(self.mean) <= self.half_width(among):
            return "level"
        return "ahead" if self.mean > 0 else "behind"


def estimate(values: Correct) -> Estimate:
    """The share of correct images: it varies with the test images and, if there are several, with the seeds."""
    percent = 100 * np.stack(list(values.values()))
    seeds, images = percent.shape
    parts = [(float(percent.mean(0).var()) / images, images - 1)]
    if seeds > 1:
        parts.append((float(percent.mean(1).var(ddof=1)) / seeds, seeds - 1))
    return Estimate(float(percent.mean()), tuple(parts))


def difference(ours: Correct, theirs: Correct) -> Estimate:
    """The difference of two on the same images, over the seeds that both have."""
    return estimate({seed: values - theirs[seed] for seed, values in ours.items() if seed in theirs})


def pooled(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of independent estimates, such as those of several networks."""
    independent = list(estimates)
    parts = tuple((part / len(independent) ** 2, degrees) for each in independent for part, degrees in each.parts)
    return Estimate(fmean(each.mean for each in independent), parts)
