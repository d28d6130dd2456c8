"""The progress bar."""

import pytest

from fec_fast.training.finetuning import finetune
from helpers.training import dot_loader, dropout_classifier


def test_progress_is_written_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    finetune(dropout_classifier(), dot_loader(), epochs=1)
    shown = capsys.readouterr()
    assert shown.out == "" and "epoch 1/1" in shown.err


def test_the_last_line_has_the_figures_of_the_last_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    result = finetune(dropout_classifier(), dot_loader(), val_loader=dot_loader(), epochs=2)
    last, held_out = result.history[-1], result.history[-1].held_out
    assert held_out is not None
    expected = f"epoch 2/2  loss {last.loss:.3f}  held-out accuracy {held_out['accuracy']:.4f}  100%"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert f"held-out accuracy {held_out['accuracy']:.4f}, ended by epochs" in repr(result)
