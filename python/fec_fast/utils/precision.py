"""Precision: float32 products without TF32 or bfloat16, no autocast, float64 copies without flush-to-zero."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .critical_section import put_back_by, surely_closed

_P = ParamSpec("_P")
_R = TypeVar("_R")
# "privateuseone" is any device that a package adds to torch, whatever it is called.
_AUTOCAST_DEVICES = tuple(
    filter(
        torch.amp.is_autocast_available,
        ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "maia", "ipu", "privateuseone"),
    )
)
FULL = "ieee"  # torch's name for float32 arithmetic in its newer settings


def in_float64(values: Tensor) -> Tensor:
    """Copies numbers to float64. Subnormal ones keep their values, where ``torch.set_flush_denormal`` would lose them.

    Args:
        values: Of any floating dtype, on any device.

    Returns:
        The same shape and device, float64; the tensor itself if that is its dtype.
    """
    if values.dtype not in (torch.float32, torch.bfloat16) or not _flushes_to_zero():
        return values.double()
    if values.dtype == torch.bfloat16:
        bits = values.contiguous().view(torch.int16).int() << 16
    else:
        bits = values.contiguous().view(torch.int32)
    magnitudes = bits & 0x7FFFFFFF
    subnormal = magnitudes.double() * 2.0**-149
    return torch.where(magnitudes < 0x00800000, torch.where(bits < 0, -subnormal, subnormal), values.double())


def _flushes_to_zero() -> bool:
    """Whether this thread reads subnormal numbers as 0."""
    return not float(torch.tensor(2.0**-149, dtype=torch.float32).double())


@surely_closed
def without_autocast() -> Iterator[None]:
    """Switches off the caller's autocast, and its cache of cast weights, while the block runs.

    The cache holds weights of a run until the outermost autocast is left. They would look like tensors that the model
    keeps, and be old after a weight was changed. A model that uses autocast in its forward does so as before.
    """
    enabled = [device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    cached = torch.is_autocast_cache_enabled()

    def restore() -> None:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(cached)
        for device in enabled:
            torch.set_autocast_enabled(device, True)

    with put_back_by(restore):
        for device in enabled:
            torch.set_autocast_enabled(device, False)
        torch.set_autocast_cache_enabled(False)
        torch.clear_autocast_cache()
        yield


def outside_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a function: it runs in :func:`without_autocast`.

    Args:
        function: The function.

    Returns:
        The function, which computes the same inside and outside of a caller's autocast.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with without_autocast():
            return function(*args, **kwargs)

    return called


@surely_closed
def full_float32() -> Iterator[None]:
    """Computes float32 products and convolutions in float32 while the block runs, and then as before.

    TF32, which torch uses for convolutions on GPUs unless told otherwise, keeps 10 bits of a factor: too few where a
    linear system is made of the products. torch has two sets of settings for this, and complains if they contradict
    each other. Both are changed and put back; the older one is left alone if the user has made it unreadable. Autocast
    is off, as :func:`without_autocast` says.
    """
    older, newer = _older_settings(), _newer_settings()

    def restore() -> None:
        if older is not None:
            _set_older(*older)
        for owner, value in newer:
            if owner.fp32_precision != value:
                owner.fp32_precision = value

    with put_back_by(restore), without_autocast():
        if older is not None:
            _set_older("highest", False)
        for owner, value in newer:
            if value != FULL and owner.fp32_precision != FULL:
                owner.fp32_precision = FULL
        yield


def _older_settings() -> tuple[str, bool] | None:
    """The settings that every torch has; ``None`` where the newer ones were set to something that they cannot say."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_older(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def _newer_settings() -> list[tuple[Any, str]]:
    """The owners of the settings of torch 2.9 and newer, each with its value; none in older versions."""
    backends: Any = torch.backends
    owners: list[Any] = [
        getattr(backend, name, None)
        for backend, names in (
            (backends.cuda, ("matmul",)),
            (backends.cudnn, ("conv", "rnn")),
            (backends.mkldnn, ("matmul", "conv", "rnn")),
        )
        for name in names
    ]
    return [(owner, owner.fp32_precision) for owner in owners if hasattr(owner, "fp32_precision")]
