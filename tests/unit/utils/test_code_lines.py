"""Lines of the model's own code in reasons and notes."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph import dispatch_mode


class Summed(nn.Module):
    """A mean over channels, and a sum with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.cumprod(1)  # line a
        x = self.b(x)
        return self.c(torch.add(x, torch.ones(6, 1, 1)))  # line b


def line(mark: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, text in enumerate(file, 1) if text.rstrip().endswith(f"# {mark}"))


def test_reasons_and_notes_name_the_line() -> None:
    listed = fec_fast.couplings(Summed().eval(), torch.randn(1, 3, 2, 2))
    reasons = {one.layer: one.reason for one in listed.pinned}
    assert reasons["a"].endswith(f"(utils/test_code_lines.py:{line('line a')})")
    assert f"(utils/test_code_lines.py:{line('line b')}): a constant that is made from x.shape" in reasons["b"]
    assert any(f"(utils/test_code_lines.py:{line('line a')}): the channels" in note for note in listed.notes)
    assert ".py" not in reasons["c"]  # an output: no line decides


def test_a_model_of_layers_of_torch_alone_has_no_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)).eval()
    listed = fec_fast.couplings(model, torch.randn(1, 3, 2, 2))
    assert listed.notes and not any(".py" in text for text in (*listed.notes, *(one.reason for one in listed.pinned)))


class Refusing(nn.Module):
    """Cuts at a number, and wants a width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(torch.cat([x[:, 4:], x[:, :4]], 1))  # line c
        if x.shape[1] != 6:
            raise ValueError("six channels")  # line d
        return self.c(x)


def test_reasons_of_trial_runs_name_the_line() -> None:
    listed = fec_fast.couplings(Refusing().eval(), torch.randn(1, 3, 2, 2))
    reasons = {one.layer: one.reason for one in listed.pinned}
    assert f"(utils/test_code_lines.py:{line('line c')}): sizes computed from x.shape" in reasons["a"]
    assert f"(ValueError: six channels) (utils/test_code_lines.py:{line('line d')}): a number" in reasons["b"]


class Buggy(nn.Module):
    """Has a fault that has nothing to do with its inputs; or torch refuses a shape in it."""

    def __init__(self, *, shape: bool) -> None:
        super().__init__()
        self.a, self.b, self.shape = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.shape:
            x = torch.cat([x, x])[:3].reshape(7, 7)  # line e
        sizes: dict[str, int] = {}
        return self.b(x) * sizes["b"]  # line f


@pytest.mark.parametrize(("shape", "mark"), [(True, "line e"), (False, "line f")])
def test_the_line_of_the_model_that_failed_is_named(shape: bool, mark: str) -> None:
    where = re.escape(f"(utils/test_code_lines.py:{line(mark)})")
    with pytest.raises(fec_fast.InputError, match=rf"Buggy cannot be run on .*Error: .*{where}$") as raised:
        fec_fast.prune(Buggy(shape=shape).eval(), torch.randn(1, 3, 2, 2), ratio=0.5)
    assert type(raised.value.__cause__) is (RuntimeError if shape else KeyError)


@pytest.mark.parametrize("run", [fec_fast.couplings, fec_fast.prune])
def test_a_fault_of_this_library_is_not_put_down_to_the_model(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        return [][0]

    # In the library's own frame, as if its code looked into an empty list.
    own = types.FunctionType(
        broken.__code__.replace(co_filename=dispatch_mode.__file__), broken.__globals__, "numbers_in"
    )
    monkeypatch.setattr(dispatch_mode, "numbers_in", own)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    message = (
        r"^fec_fast's own code \(graph/dispatch_mode.py:\d+\) failed while Sequential was run on .*IndexError.*report"
    )
    with pytest.raises(fec_fast.InputError, match=message) as raised:
        run(model, torch.randn(1, 3, 2, 2))
    assert type(raised.value.__cause__) is IndexError
