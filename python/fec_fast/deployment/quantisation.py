"""What both ways of quantising share: images, their checks, and how near the outputs are to those of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..recovery.calibration import calibration_batches
from ..utils.arguments import check_network
from ..utils.errors import ArgumentError, InputError, LayerError, WeightError
from ..utils.modules import check_can_be_changed, device_of, named_tensors, unwrap
from ..utils.user_warnings import warn_user

# Images that the ranges of activations are measured on.
IMAGES = 512
_QUANTISED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
# Below this share of images with the same answer, or above this error, something is worth a look.
_FEW_AGREE, _LARGE_ERROR = 0.95, 0.25


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of the quantised network are to those of the float one.

    Attributes:
        images: The number of images that both were run on: those of the calibration.
        same: The share of images whose largest output is the same, in [0, 1]; ``None`` where the network is no
            classifier, with one output ``[images, classes]``.
        error: The root mean square of the difference, relative to that of the float outputs.
    """

    images: int
    same: float | None
    error: float

    def __str__(self) -> str:
        """A clause, such as "98.9 % of 512 images have the same largest output; error 0.043"."""
        same = "" if self.same is None else f"{self.same:.1%} of {self.images:,} images have the same largest output; "
        return f"{same}root mean square error {self.error:.2g} of the float outputs on {self.images:,} images"


def quantisation_inputs(model: Any, calibration: Any, images: int) -> tuple[nn.Module, list[Tensor]]:
    """Checks the arguments of quantisation.

    Args:
        model: A network with float32 weights.
        calibration: Images as for :func:`fec_fast.compensate`.
        images: How many are used at most.

    Returns:
        The network out of its wrappers, and batches of images on its device.

    Raises:
        ArgumentError: Not a module, or not images, or a wrong number.
        InputError: There are no images, or the network takes more than one tensor.
        WeightError: Weights are not in float32.
        LayerError: No layer has a weight.
    """
    check_network("model", model)
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ArgumentError(f"images={images!r:.80}: give a positive whole number of images")
    network = unwrap(model)
    check_can_be_changed({"": network})
    if not any(isinstance(module, _QUANTISED) for module in network.modules()):
        raise LayerError("model: it has no convolution or linear layer whose weight could be quantised")
    for name, tensor in named_tensors(network).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32 or tensor.is_quantized or tensor.is_complex():
            raise WeightError(
                f"model: {name} is {tensor.dtype}; quantisation starts from float32: call model.float()",
                layer=name.rpartition(".")[0],
            )
    batches = calibration_batches(calibration, images, network)
    if not all(isinstance(batch, Tensor) for batch in batches):
        raise InputError("calibration: only networks with one tensor [B, ...] as their input can be quantised")
    return network, [batch.to(device_of(network)) for batch in batches]


def example_of(batches: list[Tensor]) -> Tensor:
    """Two images as an example: torch takes a batch of one for a constant.

    Args:
        batches: What :func:`quantisation_inputs` returned.

    Returns:
        The first two images; the only one twice.
    """
    return batches[0][:2] if len(batches[0]) > 1 else batches[0][:1].repeat(2, *[1] * (batches[0].ndim - 1))


def agreement_of(
    batches: Iterable[Tensor],
    of_floats: Callable[[Tensor], list[NDArray[Any]]],
    quantised: Callable[[Tensor], list[NDArray[Any]]],
) -> Agreement:
    """Runs both networks on the same images.

    Args:
        batches: The images.
        of_floats: From a batch to the outputs of the float network.
        quantised: From a batch to those of the quantised one.

    Returns:
        How near they are.
    """
    images = same = 0
    squares, difference = 0.0, 0.0
    is_classifier = True
    for batch in batches:
        before, after = of_floats(batch), quantised(batch)
        images += len(batch)
        is_classifier &= len(before) == 1 and before[0].ndim == 2 and before[0].shape[1] > 1
        if is_classifier:
            same += int((before[0].argmax(1) == after[0].argmax(1)).sum())
        for a, b in zip(before, after, strict=True):
            squares += float(np.square(a.astype(np.float64)).sum())
            difference += float(np.square(a.astype(np.float64) - b).sum())
    return Agreement(images, same / images if is_classifier else None, (difference / (squares or 1.0)) ** 0.5)


def warn_if_far(agreement: Agreement, file: Path, remedy: str) -> None:
    """Warns if the quantised network computes something else.

    Args:
        agreement: How near it is.
        file: Where it is, for the message.
        remedy: What to try.
    """
    if (agreement.same is not None and agreement.same < _FEW_AGREE) or not agreement.error <= _LARGE_ERROR:
        message = f"{file.name} is far from the float network: {agreement}; {remedy}"
        warn_user(message)
