"""The progress bar."""

import pytest

from fec_fast.training.finetuning import finetune
from helpers.training import dot_loader, dropout_classifier


def test_progress_is_written_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    finetune(dropout_classifier(), dot_loader(), epochs=1)
    shown = capsys.readouterr()
    assert shown.out == "" and "epoch 1/1" in shown.err
