"""Kept statistics: norms of the original that run over the kept channels alone, as those of the pruned network do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import WEIGHT_NORM
from ..utils.running_module import RunningModule

# Norms of each filter of a weight, whose results have its inputs.
_OF_WEIGHTS = (WEIGHT_NORM, torch.ops.aten.native_batch_norm.default)


class KeptStatistics:
    """Calls operators; those that a plan lists take their statistics over the kept channels.

    Attributes:
        running: The module whose code is running; it must watch the run.
    """

    def __init__(self, modules: Mapping[str, nn.Module], norms: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Looks up the places.

        Args:
            modules: The modules of the original by name.
            norms: See :attr:`fec_fast.Plan.norms`.
        """
        self.running = RunningModule(modules)
        self._places = {
            (module, record["operator"], record["number"]): (record["dim"], record["kept"])
            for module, records in norms.items()
            for record in records
            if not record["exact"]
        }
        self._operators = {operator for _, operator, _ in self._places}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operator.

        Args:
            func: The ATen operator.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            Its result. A norm's is zero at removed channels.
        """
        name = str(func)
        if name not in self._operators:
            return func(*args, **kwargs)
        place = self._places.get((self.running.name, name, self.running.count(func)))
        if place is None or place[1][-1] >= args[0].shape[place[0]]:
            return func(*args, **kwargs)
        dim, kept = place[0], torch.tensor(place[1], device=args[0].device)
        source, others = args[0], list(args[1:])
        if func is torch.ops.aten.native_layer_norm.default:
            shape = list(others[0])
            shape[dim] = len(kept)
            scales = [None if scale is None else scale.index_select(dim, kept) for scale in others[1:3]]
            results = func(source.index_select(dim, kept), shape, *scales, *others[3:], **kwargs)
        elif func is torch.ops.aten.native_group_norm.default:
            scales = [None if scale is None else scale.index_select(0, kept) for scale in others[:2]]
            size = others[3] // others[5]
            groups = {index // size for index in place[1]}  # an earlier round may have removed whole groups
            others[3], others[5] = len(kept), len(groups)
            results = func(source.index_select(dim, kept), *scales, *others[2:], **kwargs)
        elif func in _OF_WEIGHTS:
            results = func(source.index_select(dim, kept), *others, **kwargs)
        else:  # a mean or variance, whose result has no channels
            return func(source.index_select(dim, kept), *others, **kwargs)
        return _with_zeros(source, results[0], dim, kept), *results[1:]


def _with_zeros(source: Tensor, result: Tensor, dim: int, kept: Tensor) -> Tensor:
    """The result of a norm over kept channels, with zeros at the others."""
    zeros = source.new_zeros(source.shape, dtype=result.dtype)
    return zeros.index_copy_(dim, kept, result)
