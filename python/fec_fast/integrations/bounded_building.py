"""Networks that other packages build from files of strangers: within bounds of memory and of products."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..plan.checkpoint_files import WEIGHTS
from ..plan.plan import Plan
from ..utils.compat import TorchDispatchMode, tree_leaves, tree_map
from ..utils.errors import CheckpointError

_LARGEST_TENSOR = 1 << 25
_MATRICES = re.compile(r"mm\b")


class BoundedBuilding(TorchDispatchMode):
    """Bounds what this thread computes in the block, where another package builds a network, and may run it once.

    The plan of the checkpoint says how large the network was before pruning. Each operator is first run on the meta
    device, which shows the sizes of its outputs.
    """

    def __init__(self, file: Path, plan: Plan, pruned: Path) -> None:
        """Sets the bounds.

        Args:
            file: What the network is built from, for the message.
            plan: The plan.
            pruned: The checkpoint that it is of.

        Raises:
            CheckpointError: The plan is of a network far larger than the pruned weights.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        size, stored = sum(map(math.prod, plan.shapes.values())), (pruned / WEIGHTS).stat().st_size
        if size > (16 << 20) + 16 * stored:
            raise CheckpointError(
                f"{pruned} has weights of {stored:,} bytes, and a plan for a network of {size:,} numbers: check where "
                "it comes from"
            )
        self._file, self._size = file, size
        self._tensors = 1000 + 4 * len(plan.shapes)  # a head may be built twice
        self._numbers = 2 * size + (1 << 22)  # the image is one of the tensors
        self._products = (1 << 30) + 1024 * size  # for an image of 256 x 256: four times as many as YOLO's networks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator.

        Raises:
            CheckpointError: It takes more than is left.
        """
        kwargs = dict(kwargs or {})
        on_meta = tree_map(_to_meta, (args, {**kwargs, **({"device": "meta"} if "device" in kwargs else {})}))
        try:
            outputs = [leaf for leaf in tree_leaves(func(*on_meta[0], **on_meta[1])) if isinstance(leaf, Tensor)]
        except (RuntimeError, NotImplementedError):  # what it does depends on values: such operators only select
            outputs = []
        inputs = [leaf for leaf in tree_leaves(on_meta) if isinstance(leaf, Tensor)]
        sizes = [output.numel() for output in outputs]
        if not inputs or "clone" in str(func):
            self._numbers -= sum(sizes)
            self._tensors -= 1
        if len(inputs) > 1 and "convolution" in str(func):
            self._products -= sum(sizes) * (inputs[1].numel() // max(1, len(inputs[1])))
        elif len(inputs) > 1 and _MATRICES.search(str(func)):
            self._products -= sum(sizes) * inputs[-1].shape[-2]
        left = min(self._numbers, self._tensors, self._products)
        if left < 0 or max(sizes, default=0) > max(_LARGEST_TENSOR, self._size):
            raise CheckpointError(
                f"{self._file} describes a network that needs far more than the one that was pruned, of "
                f"{self._size:,} numbers: check where it comes from"
            )
        return func(*args, **kwargs)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
