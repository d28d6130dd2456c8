"""A group of layers whose Triton kernels are launched together, and the launcher of one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..formula import Formula
from .triton_table import Layer, needs_mean


class Launcher:
    """One kernel with its constants. The compiled kernel is kept, so that later launches do not look it up again.

    This is sound because what a kernel was compiled for does not change between the launches of one group: the types of
    the arguments, tensors at multiples of 16 bytes, and integers that are not specialised. Looking up takes three
    quarters of the time of a launch.
    """

    def __init__(self, kernel: Any, programs: int, constants: dict[str, Any], **options: int) -> None:
        """Stores the kernel.

        Args:
            kernel: A function of a kernels module, whose constants are its last parameters.
            programs: The number of programs of a launch, unless it is given at the launch.
            constants: The constants, in the order of the kernel's parameters.
            options: ``num_warps`` and ``num_stages``, where they are not Triton's defaults.
        """
        self.kernel, self.programs, self.constants, self.options = kernel, programs, constants, options
        self.values = tuple(constants.values())
        self.compiled: Any = None

    def __call__(self, *arguments: Any, programs: int | None = None) -> None:
        """Queues the kernel on torch's current stream.

        Args:
            arguments: Everything but the constants.
            programs: The number of programs.
        """
        count = self.programs if programs is None else programs
        if self.compiled is None:  # Triton's interpreter compiles nothing and returns None
            self.compiled = self.kernel[(count,)](*arguments, **self.constants, **self.options)
        else:
            self.compiled[(count, 1, 1)](*arguments, *self.values)


def real_of(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of the arithmetic: half precision needs the range and the digits of float32 for its sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def language(dtype: torch.dtype) -> Any:
    """Returns Triton's name of a dtype."""
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


class Group:
    """Layers of one dtype whose kernels are launched together, with their table and lists of blocks on the device.

    Attributes:
        layers: In the order of their results.
        formula: The formula of the entropy, of one axis.
        dtype: The dtype of the weights.
        device: Where they are.
        real: The dtype of the arithmetic.
        filters: The number of filters.
        kind: How a channel becomes one number; ``"none"`` if it does not.
    """

    def __init__(self, layers: Sequence[Layer], formula: Formula) -> None:
        """Stores what all groups have.

        Args:
            layers: Layers of one dtype on one device.
            formula: The formula of the entropy, of one axis.
        """
        self.layers, self.formula = layers, formula
        self.dtype, self.device = layers[0].weight.dtype, layers[0].weight.device
        self.real = real_of(self.dtype)
        self.filters = sum(layer.filters for layer in layers)
        self.kind = formula.compress

    def launch(self, results: Tensor) -> None:
        """Queues the kernels on torch's current stream, waits for nothing, and takes buffers from torch's allocator.

        Args:
            results: float64 ``[filters]`` at a multiple of 16 bytes; written to. It may be longer.
        """
        raise NotImplementedError

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """A buffer on the device.

        Args:
            size: The number of elements.
            dtype: Their dtype.
        """
        return torch.empty(size, dtype=dtype, device=self.device)

    def tensors(self) -> list[Tensor]:
        """The table and the lists of blocks."""
        values = [vars(self)[name] for name in sorted(vars(self))]
        return [value for value in values if isinstance(value, Tensor)]

    def units_launcher(self) -> Launcher:
        """The launcher of ``set_units``, which all groups need once."""
        from .triton_parts import set_units

        return Launcher(set_units, len(self.layers), {"MEASURED": needs_mean(self.formula), "BLOCK": 1024})

    def numbered(self) -> list[tuple[int, int]]:
        """The position of each layer in the table, and its number of filters."""
        return [(position, layer.filters) for position, layer in enumerate(self.layers)]
