"""Results at a prompt and in a notebook: one line, and a panel that fits one screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from helpers.browser import browser


class Wide(nn.Module):
    """Forty convolutions in a row: more layers than a screen has lines."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(3 if number == 0 else 16, 16, 1) for number in range(40)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    torch.manual_seed(0)
    model, image = Wide().eval(), torch.randn(1, 3, 4, 4)
    result = fec_fast.prune(model, image, ratio=0.5, recover=None)
    recovered = fec_fast.prune(model, image, ratio=0.5, recover=None).model
    recovery = fec_fast.compensate(model, recovered, result.plan, torch.randn(16, 3, 4, 4), progress=False)
    channels = fec_fast.couplings(model, image)
    return {
        "scores": fec_fast.score_model(model),
        "plan": result.plan,
        "result": result,
        "counts": result.before,
        "proof": result.proof,
        "couplings": channels,
        "set": channels.sets[0],
        "explanation": fec_fast.explain(result.plan, "layers.3"),
        "sensitivity": fec_fast.measure_sensitivity(model, image, lambda _: 0.5, at=(0.3, 0.6), progress=False),
        "compensation": recovery,
    }


def test_a_repr_is_one_short_line(results: dict[str, Any]) -> None:
    for name, value in results.items():
        assert "\n" not in repr(value) and len(repr(value)) <= 120, name
        assert repr(value).startswith(f"<{type(value).__name__}"), name


def test_a_repr_says_what_happened(results: dict[str, Any]) -> None:
    before, after = results["result"].before.parameters, results["result"].after.parameters
    assert f"({100 * (after - before) / before:+.1f} %)" in repr(results["result"])
    assert "312 of 624 units removed, 39 coupled sets" in repr(results["plan"])
    assert "78 values of 39 sets" in repr(results["sensitivity"])


def test_str_still_has_every_layer(results: dict[str, Any]) -> None:
    for text in (str(results["scores"]), results["result"].summary(), str(results["couplings"])):
        assert all(f"layers.{number}" in text for number in range(40))


def test_a_panel_fits_one_screen(results: dict[str, Any], tmp_path: Path) -> None:
    panels = {name: value._repr_html_() for name, value in results.items() if hasattr(value, "_repr_html_")}
    assert {"scores", "plan", "result", "couplings", "sensitivity", "explanation"} == set(panels)
    cells = "".join(f'<div class="cell">{panel}</div>' for panel in panels.values())
    page = tmp_path / "cells.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>cells</title><body>{cells}", encoding="utf-8")
    with browser(tmp_path) as window:
        window.open(page, width=1000, height=700)
        heights = window.run("return [...document.querySelectorAll('.cell')].map(e => e.offsetHeight)")
        assert len(heights) == len(panels) and all(60 < height < 600 for height in heights)
        assert window.run("return document.documentElement.scrollWidth") <= 1000
        assert not window.errors()
