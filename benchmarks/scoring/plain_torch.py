"""Entropies in plain torch, as one would first write them: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.formula import Formula


def distances(points: Tensor) -> Tensor:
    """The distances between the rows of a matrix, by torch's fastest way to them.

    Args:
        points: [M, K].

    Returns:
        [M, M].
    """
    return (points - points.T).abs() if points.shape[1] == 1 else torch.cdist(points, points)


def row_entropies(d: Tensor, tau: Tensor, entropy: str) -> Tensor:
    """One entropy per row of a matrix of distances, in nats.

    Args:
        d: Distances, [M, M].
        tau: The scale of the distances, one number.
        entropy: ``"similarity"``, ``"softmax"`` or ``"distance"``, as in :class:`fec_fast.Formula`.

    Returns:
        [M].
    """
    if entropy == "similarity":
        return -torch.exp(-d / tau).mean(-1).log()
    p = torch.softmax(-d / tau, dim=-1) if entropy == "softmax" else d / d.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1)


def channel_entropies(weight: Tensor, formula: Formula) -> Tensor:
    """One entropy per filter, by the distances between its channels; one filter after another.

    Args:
        weight: [N, C, *kernel].
        formula: Any with ``axis="channels"`` and a measured tau.

    Returns:
        [N], in nats.
    """
    v = reference.compressed(weight.flatten(2), formula.compress)
    tau = torch.stack([distances(f).mean() for f in v]).mean()
    return torch.stack([row_entropies(distances(f), tau, formula.entropy).mean() for f in v])


def filter_entropies(weight: Tensor) -> Tensor:
    """One similarity entropy per filter, by the distances between filters.

    Args:
        weight: [N, C, *kernel].

    Returns:
        [N], in nats.
    """
    d = distances(weight.flatten(1))
    return row_entropies(d, d.mean(), "similarity")
