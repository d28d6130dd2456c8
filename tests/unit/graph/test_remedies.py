"""What would help, beside the reasons for which channels are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph import remedies

SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for path in Path(remedies.__file__).parent.rglob("*.py")
    if path.name != "remedies.py"
)


@pytest.mark.parametrize("part", [part for part, _ in remedies.REMEDIES])
def test_every_remedy_belongs_to_a_reason_that_is_given(part: str) -> None:
    assert part in SOURCES


def test_reasons_that_lie_in_the_network_have_none() -> None:
    reason = "its channels are outputs of the model"
    assert remedies.with_remedy(reason) == reason


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 4:], x[:, :4]], 1)


def test_the_same_reason_for_many_layers_is_one_line() -> None:
    blocks = [
        layer for width in (8, 12, 16) for layer in (nn.Conv2d(3 if width == 8 else width - 4, width, 1), Fixed())
    ]
    model = nn.Sequential(*blocks, nn.Conv2d(16, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    result = fec_fast.prune(model, torch.randn(1, 3, 4, 4), ratio=0.5, recover=None)
    (line,) = [line for line in result.summary().splitlines() if "at fixed positions" in line and "kept" in line]
    assert line.startswith("kept whole: 0, 2, 4: aten.slice.Tensor in 1 cuts its channels at fixed positions")
    assert "test_remedies.py" in line and line.endswith("used for nothing else, would follow")
