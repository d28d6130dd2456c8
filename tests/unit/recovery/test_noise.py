"""Noise has the form of the example inputs, normal values, correlated neighbours, and is the same at every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fec_fast.recovery.noise import BATCH, FEWEST, MOST, dead_leaves, noise_batches


def correlation(images: Tensor, distance: int) -> float:
    """Of values so far apart in the last dimension."""
    return float((images[..., distance:] * images[..., :-distance]).mean())


@pytest.mark.parametrize("sizes", [(), (24,), (12, 9), (5, 6, 7)])
def test_values_are_normal_at_every_position(sizes: tuple[int, ...]) -> None:
    images = dead_leaves((4000, 2, *sizes), torch.Generator().manual_seed(0))
    torch.testing.assert_close(images.mean(0), torch.zeros(2, *sizes), rtol=0, atol=0.08)
    torch.testing.assert_close(images.var(0), torch.ones(2, *sizes), rtol=0, atol=0.12)
    assert float((images[:, 0] * images[:, 1]).mean()) == pytest.approx(0, abs=0.05)


def test_discs_have_sharp_edges_and_look_the_same_at_every_scale() -> None:
    small, large = (dead_leaves((400, 1, s, s), torch.Generator().manual_seed(0)) for s in (32, 64))
    assert correlation(small, 2) > correlation(small, 6) > correlation(small, 20) > -0.05
    assert correlation(small, 4) == pytest.approx(correlation(large, 8), abs=0.08)
    # One colour per disc: most neighbours are equal, and the others are as different as any two colours.
    same = small[..., 1:] == small[..., :-1]
    assert 0.5 < float(same.float().mean()) < 0.95
    assert float((small[..., 1:] - small[..., :-1])[~same].std()) == pytest.approx(2**0.5, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 7), (2, 3, 20), (1, 2, 4, 5, 6)])
def test_batches_have_the_form_of_the_example(shape: tuple[int, ...]) -> None:
    batches = noise_batches(torch.zeros(shape, dtype=torch.float64))
    assert [tuple(batch.shape) for batch in batches] == [(BATCH, *shape[1:])] * (MOST // BATCH)
    assert all(batch.dtype == torch.float64 for batch in batches)
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(noise_batches(torch.ones(shape, dtype=torch.float64))[1], batches[1])


def test_large_images_are_fewer() -> None:
    assert sum(map(len, noise_batches(torch.zeros(1, 1, 320, 320)))) == FEWEST
    assert sum(map(len, noise_batches(torch.zeros(1, 1, 160, 160)))) == 128


def test_nested_inputs_keep_their_structure() -> None:
    example = {
        "image": torch.zeros(2, 1, 4, 4),
        "index": torch.tensor([3, 5]),
        "scale": 2.0,
        "on": torch.tensor(True),
    }
    batch = noise_batches(example)[0]
    assert list(batch) == list(example)
    assert batch["image"].shape == (BATCH, 1, 4, 4) and float(batch["image"].std()) > 0.3
    assert batch["index"].tolist() == [3, 5] * (BATCH // 2)
    assert batch["scale"] == 2.0 and bool(batch["on"])
    assert isinstance(noise_batches((torch.zeros(1, 2), torch.zeros(1, 3)))[0], tuple)


def test_lists_of_images_of_different_sizes() -> None:
    batch = noise_batches([torch.zeros(3, 8, 6), torch.zeros(3, 5, 9)])[0]
    assert [tuple(image.shape) for image in batch] == [(3, 8, 6), (3, 5, 9)] * (BATCH // 2)
    assert float(batch[0].std()) > 0.3
