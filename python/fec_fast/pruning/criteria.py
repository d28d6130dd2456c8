"""Filter importance criteria: this package's entropies, and the classical criteria to compare them with.

A criterion is one of the names in ``CRITERIA``, or any function from weights ``[filters, channels, *kernel]`` to one
number per filter. Filters with the lowest numbers are removed first. The classical criteria were published for the
filters alone, which is ``prune(..., sides="producer")``. :mod:`fec_fast.pruning.unit_scores` combines the numbers of
several layers into scores of coupled units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..utils.errors import ArgumentError, nearest

Criterion = Callable[[Tensor], Tensor]


def l1(weight: Tensor) -> Tensor:
    """The sum of the absolute weights of each filter (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017).

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``, of the weight's dtype: ``sum(abs(weight[i]))``.
    """
    return sum_per_filter(weight.abs())


def l2(weight: Tensor) -> Tensor:
    """The Euclidean norm of each filter (He et al., Soft Filter Pruning, IJCAI 2018, with p = 2).

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``, of the weight's dtype: ``sqrt(sum(weight[i] ** 2))``.
    """
    return sum_per_filter(weight.square()).sqrt()


def sum_per_filter(terms: Tensor) -> Tensor:
    """Sums all elements of each filter.

    Args:
        terms: ``[filters, channels, *kernel]``, any strides.

    Returns:
        ``[filters]``, of the same dtype.
    """
    # Flattening a transposed view would copy it; summing over several axes does not.
    return terms.flatten(1).sum(1) if terms.is_contiguous() else terms.sum(tuple(range(1, terms.dim())))


def fpgm(weight: Tensor) -> Tensor:
    """The sum of each filter's distances to all others (He et al., Filter Pruning via Geometric Median, CVPR 2019).

    The geometric median is the point with the smallest such sum. The paper searches for it among the filters
    themselves: the filters with the smallest sums can be represented by the others and are removed first.

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``, of the weight's dtype: ``sum over j of norm(weight[i] - weight[j])``, Euclidean.
    """
    flat = weight.flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def bn_scale(gamma: Tensor) -> Tensor:
    """The absolute scale of each channel of a batch norm (Liu et al., Network Slimming, ICCV 2017).

    Where a coupled set has several batch norms, the scales of each are divided by their mean, and then averaged over
    the batch norms. The paper trains with an L1 penalty on the scales first; without it the scales say little.

    Args:
        gamma: ``[channels]``, the weight of a batch norm (not that of a convolution).

    Returns:
        ``[channels]``, of the same dtype: ``abs(gamma[i])``.
    """
    return gamma.abs()


def random(weight: Tensor) -> Tensor:
    """A random number for each filter, drawn from torch's global generator: the baseline for every other criterion.

    Args:
        weight: ``[filters, ...]``; only the number of filters is used.

    Returns:
        ``[filters]``, float64, uniform in [0, 1).
    """
    return torch.rand(weight.shape[0], dtype=torch.float64)


CLASSICAL_CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "fpgm": fpgm, "bn_scale": bn_scale, "random": random}
# "fec_l1" is the entropy times the L1 norm of the same filter or slice, "fec" the entropy alone. Where all filters of
# a layer are far apart, their entropies hardly differ, and their norms separate them better (docs/study.md).
ENTROPY_CRITERIA = ("fec_l1", "fec")
# By gradients on labelled images (gradient_scores), and by the errors of the layers that read a channel on images
# without labels (unit_errors). They take the images from calibration=.
GRADIENT_CRITERIA = ("taylor", "fisher")
RECONSTRUCTION, ABLATION = "reconstruction", "ablation"
ERROR_CRITERIA = (RECONSTRUCTION, ABLATION)
CRITERIA = (*ENTROPY_CRITERIA, *CLASSICAL_CRITERIA, *GRADIENT_CRITERIA, *ERROR_CRITERIA)
DEFAULT_CRITERION = "fec_l1"


def criterion_name(criterion: str | Criterion) -> str:
    """Validates a criterion and names it for the plan.

    Args:
        criterion: One of the names in ``CRITERIA``, or a callable.

    Returns:
        The name itself; for a function of this module the name it is requested by; for another callable
        ``"callable "`` and its ``__name__``.

    Raises:
        ArgumentError: Neither a known name nor a callable.
    """
    for name, function in CLASSICAL_CRITERIA.items():
        if criterion is function:
            return name
    if callable(criterion):
        return f"callable {getattr(criterion, '__name__', type(criterion).__name__)}"
    if criterion not in CRITERIA:
        hint = nearest(str(criterion), CRITERIA)
        raise ArgumentError(f"criterion={criterion!r}: {hint}; give one of {CRITERIA}, or a callable")
    return criterion
