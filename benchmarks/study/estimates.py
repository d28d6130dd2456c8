"""Means of the study's rows with their intervals, over the test images and the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Whether each test image is classified rightly, [images], by seed.
Rights = dict[int, NDArray[np.float64]]


def rights(packed: str, images: int) -> NDArray[np.float64]:
    """A row's hexadecimal digits as zeros and ones."""
    return np.array([float(bit) for bit in f"{int(packed, 16):0{images}b}"])


@dataclass(frozen=True)
class Estimate:
    """A mean in per cent, and what its variance is made of: parts, each with its degrees of freedom."""

    mean: float
    parts: tuple[tuple[float, int], ...]

    def half(self, among: int = 1) -> float:
        """Half the width of the 95 % interval.

        Student's t with the degrees of freedom of Welch and Satterthwaite: few seeds tell little of how they scatter.
        ``among`` widens it (Bonferroni) so that it holds for one that was picked from so many.
        """
        variance = sum(part for part, _ in self.parts)
        if variance == 0:
            return 0.0
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in self.parts)
        return float(stats.t.ppf(1 - 0.025 / among, freedom)) * math.sqrt(variance)

    def words(self, sign: str = "", among: int = 1) -> str:
        """The mean with its interval."""
        return f"{self.mean:{sign}.1f} ± {self.half(among):.1f}"


def estimate(values: Rights) -> Estimate:
    """Of the share that is right: it scatters with the test images and, where there are several, the seeds."""
    several = 100 * np.stack(list(values.values()))
    seeds, images = several.shape
    parts = [(float(several.mean(0).var()) / images, images - 1)]
    if seeds > 1:
        parts.append((float(several.mean(1).var(ddof=1)) / seeds, seeds - 1))
    return Estimate(float(several.mean()), tuple(parts))


def difference(ours: Rights, theirs: Rights) -> Estimate:
    """Of two on the same images, by the seeds that both have."""
    return estimate({seed: values - theirs[seed] for seed, values in ours.items() if seed in theirs})


def pooled(found: Iterable[Estimate]) -> Estimate:
    """The mean of independent ones."""
    several = list(found)
    parts = tuple((part / len(several) ** 2, degrees) for one in several for part, degrees in one.parts)
    return Estimate(fmean(one.mean for one in several), parts)
