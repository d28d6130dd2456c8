"""Scores of sharded weights where their parts are: no process has a whole layer in memory.

On the channel axis the entropy of a filter follows from its own weights and tau, one number per layer. So a process
scores the filters that it has, after all have added up their distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..utils.modules import is_sharded
from .backends.torch_operators import sum_of_distances
from .formula import Formula
from .layers import LayerInfo

_Score = Callable[[Tensor, Formula, str], Tensor]


def has_whole_filters(weight: Any, info: LayerInfo, formula: Formula) -> bool:
    """Tells whether the parts of a weight can be scored by themselves. All processes get the same answer.

    Args:
        weight: Any weight.
        info: The description of its layer.
        formula: The formula of the entropy.

    Returns:
        True for a weight that is sharded over a mesh of one dimension along the axis of its filters, evenly or not, if
        the formula compares channels.
    """
    if formula.axis != "channels" or not is_sharded(weight) or (info.axis == 1 and info.groups != 1):
        return False
    from torch.distributed.tensor import Shard  # importing it takes half a second; who has shards has done so

    return bool(weight.placements == (Shard(info.axis),))


def entropies_of_parts(
    weights: Mapping[str, Any], infos: Mapping[str, LayerInfo], formula: Formula, score: _Score
) -> dict[str, Tensor]:
    """Computes the entropies of sharded weights, with two all-reduces per mesh. All processes have to call this.

    Args:
        weights: The weights by layer, of which :func:`has_whole_filters` is true.
        infos: For each layer its description.
        formula: The formula of the entropy.
        score: Computes the entropies ``[filters]`` of one plain weight by a formula, given its layer's name.

    Returns:
        Float64 CPU tensors ``[filters]`` by layer, the same bits in every process. Layers are left out if a weight is
        not finite, or so large that distances are not.
    """
    results: dict[str, Tensor] = {}
    for mesh in dict.fromkeys(weight.device_mesh for weight in weights.values()):
        parts = {name: weight.detach().to_local() for name, weight in weights.items() if weight.device_mesh == mesh}
        sums, rows = _measured(mesh, parts, infos, formula)
        found: dict[str, Tensor] = {}
        for name, part in parts.items():
            info = infos[name]
            if not math.isfinite(sums[name]):
                continue
            filters, channels = info.shape[info.axis], info.shape[1 - info.axis]
            found[name] = torch.zeros(filters, dtype=torch.float64)
            tau = sums[name] / (filters * channels**2) if _needs_tau(formula) else formula.tau
            if part.numel() and tau != 0:  # where all channels are equal, the entropies are 0
                found[name][rows[name]] = score(part, replace(formula, tau=tau), name)
        if found:
            added = _added(torch.cat(list(found.values())), mesh)
            results |= zip(found, added.split_with_sizes([len(values) for values in found.values()]), strict=True)
    return results


def _needs_tau(formula: Formula) -> bool:
    return formula.tau is None and formula.entropy != "distance"


def _measured(
    mesh: Any, parts: Mapping[str, Tensor], infos: Mapping[str, LayerInfo], formula: Formula
) -> tuple[dict[str, float], dict[str, slice]]:
    """By layer the sum of all distances, and the positions of this process's filters among all.

    The sum is not finite if a weight is not. Where tau is not needed, it says nothing else.
    """
    rank = mesh.get_local_rank()
    own = []
    for name, part in parts.items():
        axis = infos[name].axis
        total = sum_of_distances(part, formula, axis) if _needs_tau(formula) else float(part.sum(dtype=torch.float64))
        own.append((part.shape[axis], total))
    # Every process has a row of its own, and adds the rows up one after another: tau is the same number everywhere.
    table = torch.zeros(mesh.size(), len(parts), 2, dtype=torch.float64)
    table[rank] = torch.tensor(own, dtype=torch.float64)
    sums, rows = {}, {}
    for name, of_layer in zip(parts, _added(table, mesh).unbind(1), strict=True):
        counts, totals = of_layer.T.tolist()
        sums[name] = sum(totals)
        begin = int(sum(counts[:rank]))
        rows[name] = slice(begin, begin + int(counts[rank]))
    return sums, rows


def _added(values: Tensor, mesh: Any) -> Tensor:
    """The sum of the tensors of all processes, on the CPU. It is exact: where one has a number, the others have 0."""
    total = values.to(mesh.device_type)
    torch.distributed.all_reduce(total, group=mesh.get_group())
    return total.cpu()
