"""Noise in place of images: dead leaves, the model of photographs as objects that cover one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ..utils.compat import tree_map
from ..utils.forward import tensors_in

# Discs per image, and their radii relative to its size.
LEAVES = 150
SMALLEST, LARGEST = 1 / 32, 0.6
# 64 images of 224 x 224; smaller images are more, up to the most.
PIXELS = 64 * 224 * 224
FEWEST, MOST = 32, 256
# Where nothing is fitted or inverted, fewer images do.
FEW_PIXELS, FEWEST_OF_FEW, MOST_OF_FEW = PIXELS // 2, 8, 64
BATCH = 32


def noise_batches(example_inputs: Any, *, few: bool = False) -> list[Any]:
    """Noise in the form of example inputs; the same at every call.

    Args:
        example_inputs: Tensors ``[B, ...]``, nested, or a list of images ``[C, *S]``, as detectors take it. Tensors of
            other than floating-point numbers are repeated.
        few: Whether nothing is fitted to the noise, so that fewer images do.

    Returns:
        Batches of at most :data:`BATCH` images, of the same structure, on the same devices.
    """
    tensors = list(tensors_in(example_inputs))
    images = isinstance(example_inputs, list) and bool(tensors) and all(tensor.dim() == 3 for tensor in tensors)
    pixels = max((tensor.shape[2 - images :].numel() for tensor in tensors if tensor.dim() > 2), default=1)
    fewest, most, enough = (FEWEST_OF_FEW, MOST_OF_FEW, FEW_PIXELS) if few else (FEWEST, MOST, PIXELS)
    count = min(most, max(fewest, enough // max(pixels, 1)))
    size = min(BATCH, count)
    generator = Generator().manual_seed(0)

    def noisy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        if not leaf.is_floating_point():
            return leaf.repeat(-(-size // len(leaf)), *[1] * (leaf.dim() - 1))[:size]
        return dead_leaves((size, *leaf.shape[1:]), generator).to(leaf)

    def batch() -> Any:
        if not images:
            return tree_map(noisy, example_inputs)
        chosen = [tensors[i % len(tensors)] for i in range(size)]
        return [dead_leaves((1, *image.shape), generator)[0].to(image) for image in chosen]

    return [batch() for _ in range(-(-count // size))]


def dead_leaves(shape: Sequence[int], generator: Generator) -> Tensor:
    """Images of discs that cover one another.

    Radii have a density proportional to ``radius ** -(d + 1)`` in ``d`` dimensions, so that the images look the same at
    every scale, as photographs do (Lee, Mumford & Huang, Occlusion models for natural images, 2001). What networks
    learn from such images is of use on photographs (Baradad et al., Learning to see by looking at noise, 2021).

    Args:
        shape: ``[B, C, *S]``; without ``S``, white noise.
        generator: On the CPU.

    Returns:
        Float32 on the CPU, each value normal with mean 0 and variance 1.
    """
    number, channels, sizes = shape[0], shape[1:2], shape[2:]
    if not sizes:
        return torch.randn(*shape, generator=generator)
    dims, size = len(sizes), min(sizes)
    low, high = (SMALLEST * size) ** -dims, (LARGEST * size) ** -dims
    top = torch.zeros(number, *sizes, dtype=torch.int64)
    for leaf in range(1, LEAVES + 1):
        radius = (high + (low - high) * torch.rand(number, generator=generator)) ** (-1 / dims)
        squared = torch.zeros(())
        for dim, length in enumerate(sizes):
            centre = length * torch.rand(number, 1, generator=generator)
            squared = squared.unsqueeze(-1) + (torch.arange(length) - centre).square().reshape(
                number, *[1] * dim, length
            )
        top[squared < radius.square().reshape(number, *[1] * dims)] = leaf
    colours = torch.randn(number, *channels, LEAVES + 1, generator=generator)
    inside = top.reshape(number, 1, -1).expand(-1, *channels, -1)
    return colours.gather(2, inside).reshape(*shape)
