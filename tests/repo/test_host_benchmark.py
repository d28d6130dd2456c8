"""``python -m benchmarks.scoring.host``: runs with the kernels taken out, and leaves none taken out behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fec_fast
from benchmarks.common.results import read_result
from fec_fast.scoring import gpu_check
from helpers.networks import chain


def test_it_measures_both_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from benchmarks.scoring import host

    monkeypatch.setattr(host, "RESULT", tmp_path / "host.json")
    monkeypatch.setattr(host, "NETWORKS", ("resnet18",))
    monkeypatch.setattr(gpu_check, "_checked", set())  # so that the GPU's stand-in is compared with the CPU's
    monkeypatch.setattr("sys.argv", ["host", "--runs", "1"])
    host.main()
    (row,) = read_result(tmp_path / "host.json")["rows"]
    assert len(row["resnet18"]) == 3 and all(time > 0 for time in row["resnet18"].values())
    scores = fec_fast.score_model(chain(torch.nn.Conv2d(3, 8, 3))())
    assert float(scores["0"].sum()) > 0
