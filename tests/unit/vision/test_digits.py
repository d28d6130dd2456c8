"""The digits of scikit-learn."""

import torch

from fec_fast.vision import data, digits
from fec_fast.vision.digits import load_digits
from helpers.image_folders import all_batches


def test_digits_shapes_ranges_and_stratified_split() -> None:
    train, held_out = data.load("sklearn:digits", batch_size=50)
    train_x, train_y = all_batches(train)
    held_x, held_y = all_batches(held_out)
    assert train_x.shape == (1347, 1, 8, 8) and held_x.shape == (450, 1, 8, 8)
    assert train_x.dtype == torch.float32 and train_y.dtype == torch.int64
    assert float(held_x.min()) == 0.0 and float(held_x.max()) == 1.0
    share = torch.bincount(held_y, minlength=10) / (torch.bincount(train_y) + torch.bincount(held_y))
    assert torch.allclose(share, torch.tensor(0.25), atol=0.01)


def test_digits_split_is_the_same_for_every_seed_and_disjoint() -> None:
    _, one = load_digits(64, seed=0)
    train, other = load_digits(64, seed=1)
    assert torch.equal(all_batches(one)[0], all_batches(other)[0])
    originals = {tuple(image.flatten().tolist()) for image in train.dataset.tensors[0]}  # type: ignore[attr-defined]
    held = {tuple(image.flatten().tolist()) for image in all_batches(other)[0]}
    assert not originals & held


def test_digits_order_depends_on_the_seed_only() -> None:
    labels = []
    for seed in (0, 0, 1):
        train, _ = load_digits(64, seed=seed)
        labels.append(all_batches(train)[1])
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_digits_are_shifted_by_at_most_one_pixel() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 8, 8)
    image[0, 4, 3] = 1.0
    samples = [(image, torch.tensor(5))] * 200
    shifted, labels = digits._collate_with_shifts(samples)
    assert shifted.shape == (200, 1, 8, 8) and set(labels.tolist()) == {5}
    places = {tuple(index[2:].tolist()) for index in shifted.nonzero()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}
    assert torch.equal(shifted.sum((1, 2, 3)), torch.ones(200))


def test_training_drops_only_a_last_batch_of_one() -> None:
    sizes = [len(y) for _, y in load_digits(1346)[0]]
    assert sizes == [1346]
    assert sum(len(y) for _, y in load_digits(1345)[0]) == 1347
