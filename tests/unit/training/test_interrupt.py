"""Ctrl-C: training stops after the step, and resumes to the same bits."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, TensorDataset

from fec_fast.utils.errors import (
    TrainingInterrupted,
)
from helpers.comparison import same_weights
from helpers.training import classifier, dot_images, train


class _Presses(TensorDataset):
    """Images that send Ctrl-C when an image is fetched for the nth time."""

    def __init__(self, at: int, presses: int = 1) -> None:
        super().__init__(*dot_images().tensors)
        self.at, self.presses, self.count = at, presses, 0

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        if self.count == self.at:
            for _ in range(self.presses):
                os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Installs Python's own handler, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_ctrl_c_stops_after_the_step_and_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = classifier()
    train(whole, epochs=3)
    folder = tmp_path / "s"
    # 16 images are checked before training, 48 are an epoch: in the middle of the second.
    loader = DataLoader(_Presses(16 + 48 + 20), batch_size=16, shuffle=True)
    stopped = classifier()
    words = rf"interrupted in epoch 2; the state after epoch 1 is in {folder}: continue with resume=True"
    with pytest.raises(TrainingInterrupted, match=words):
        train(stopped, epochs=3, loader=loader, checkpoint=folder)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "forward" not in stopped.__dict__ and not same_weights(stopped, classifier())
    resumed = classifier()
    train(resumed, epochs=3, checkpoint=folder, resume=True)
    assert same_weights(resumed, whole)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize(("at", "words"), [(20, "no epoch was finished"), (16 + 48 + 5, "no state was kept")])
def test_ctrl_c_without_a_state_is_reported(at: int, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "s" if at == 20 else None
    with pytest.raises(KeyboardInterrupt, match=words):
        train(classifier(), loader=DataLoader(_Presses(at), batch_size=16), checkpoint=folder)


@pytest.mark.usefixtures("keyboard")
def test_a_second_ctrl_c_stops_at_once() -> None:
    dataset = _Presses(16 + 3, presses=2)
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), loader=DataLoader(dataset, batch_size=16))
    assert dataset.count == 16 + 3
