"""Layer calls: every convolution and linear operation of a run whose weight is a tensor of the model, as it happens.

They are seen as functions (``torch.conv2d``, ``torch.nn.functional.linear``), not as modules: a layer that pads by
itself, or a model that calls the function on its own parameter, is seen like any other. What is hidden is a weight that
the model computes before it is used (weight normalisation, a merged weight), and a layer inside a compiled or scripted
part, inside one function of torch (``multi_head_attention_forward``), or inside ``torch.func`` (``vmap``, ``jvp``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..utils.compat import is_transformed, tree_leaves
from ..utils.computed_weights import layer_with
from ..utils.model_index import ModelIndex


class WeightWay(NamedTuple):
    """A way in which a weight is used. Rows of calls in one way have the same columns, whatever their strides.

    Attributes:
        weight: The first name of the weight in the model.
        in_axis: The axis of the channels that it reads.
        groups: The groups of a convolution; 1 if linear.
        shape: That of the weight where it is used.
    """

    weight: str
    in_axis: int
    groups: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a convolution or linear operation.

    Attributes:
        name: The first name of the weight in the model, such as ``"features.0.weight"``.
        input: Convolutions: ``[B, C, *S]`` (an input without a batch gets one). Linear: ``[..., C]``.
        weight: ``[O, C/groups, *kernel]``; ``[C, O/groups, *kernel]`` if transposed; ``[O, C]`` if linear.
        bias: ``[O]`` or ``None``.
        stride: One number per spatial dimension; empty if linear. So are the others.
        padding: At the beginning of each dimension.
        dilation: Distance between the taps.
        groups: 1 if linear.
        transposed: Whether it is a transposed convolution.
    """

    name: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear operation."""
        return self.weight.dim() == 2

    @property
    def way(self) -> WeightWay:
        """The way in which it uses its weight."""
        return WeightWay(self.name, 0 if self.transposed else 1, self.groups, tuple(self.weight.shape))

    @property
    def kind(self) -> str:
        """What it is, for the user; calls of one weight differ in it where they differ in their way."""
        kind = "a linear operation" if self.is_linear else f"a {'transposed ' * self.transposed}convolution"
        return kind if self.groups == 1 else f"{kind} of {self.groups} groups"

    @property
    def layer(self) -> str:
        """The name of the layer, see :func:`fec_fast.utils.computed_weights.layer_with`."""
        return layer_with(self.name)

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]


class LayerCallMode(TorchFunctionMode):
    """Sees the layer calls of a run; what happens then, subclasses say.

    Attributes:
        names: The names of the model's tensors, by identity.
        path: A number for the functions of torch that the run called so far, in order. It is the same in the original
            and the pruned model, as long as they take the same way through their code.
    """

    def __init__(self, index: ModelIndex) -> None:
        """Remembers the tensors of the model.

        Args:
            index: The index of the model that is run inside the context.
        """
        super().__init__()
        self.names = index.first_names
        self.path = 0

    def before_layer(self, call: LayerCall) -> None:
        """Is called before a layer computes; the weight and the bias may be changed in place.

        Args:
            call: The call.
        """

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Is called with what a layer computed.

        Args:
            call: The call.
            output: Its output, which is the tensor that the model goes on with.
        """

    def before_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any]) -> None:
        """Is called before every other function.

        Args:
            function: The function, such as ``torch.nn.functional.relu``.
            arguments: Its arguments, by position or keyword.
        """

    def after_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Is called after every other function.

        Args:
            function: The function, such as ``torch.nn.functional.relu``.
            arguments: Its arguments, by position or keyword.
            result: What it returned.
        """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one function of torch and reports it."""
        kwargs = dict(kwargs or {})
        if any(isinstance(leaf, Tensor) and is_transformed(leaf) for leaf in tree_leaves((args, kwargs))):
            return function(*args, **kwargs)  # such tensors have no memory of their own
        self.path = hash((self.path, getattr(function, "__qualname__", "")))  # wrappers of properties are new each time
        call = self._layer_call(function, args, kwargs)
        if call is not None:
            self.before_layer(call)
            output = function(*args, **kwargs)
            self.after_layer(call, output)
            return output
        arguments = dict[int | str, Any](enumerate(args)) | kwargs
        self.before_other(function, arguments)
        result = function(*args, **kwargs)
        self.after_other(function, arguments, result)
        return result

    def _layer_call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> LayerCall | None:
        parameters = _PARAMETERS.get(function)
        if parameters is None:
            return None
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        weight, name = given["weight"], self.names.get(id(given["weight"]))
        if name is None or not isinstance(weight, Tensor) or not weight.numel():
            return None
        dims = weight.dim() - 2
        dilation = _per_dimension(given.get("dilation", 1), dims)
        inputs = given["input"]
        return LayerCall(
            name,
            inputs.unsqueeze(0) if dims and inputs.dim() == dims + 1 else inputs,
            weight,
            given.get("bias"),
            _per_dimension(given.get("stride", 1), dims),
            _padding(given.get("padding", 0), weight.shape[2:], dilation),
            dilation,
            given.get("groups", 1),
            "output_padding" in parameters,
        )


def _per_dimension(value: Any, dims: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return numbers * dims if len(numbers) == 1 else numbers


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    if value == "valid":
        return (0,) * len(kernel)
    if value == "same":  # where the sum is odd, torch adds the one more at the end
        return tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
    return _per_dimension(value, len(kernel))


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_PARAMETERS: dict[Callable[..., Any], tuple[str, ...]] = {
    functional.linear: ("input", "weight", "bias"),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONVOLUTION),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
}
