"""Scores of sharded models in two processes (gloo): every process gets those of the plain model, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fec_fast
from helpers.distributed_scoring import network
from helpers.processes import torchrun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    folder = tmp_path_factory.mktemp("scores")
    done = torchrun("-m", "helpers.distributed_scoring", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("how", ["fully_shard", "by hand"])
def test_every_process_gets_the_scores_of_the_plain_model(folder: Path, how: str) -> None:
    for formula in (fec_fast.Formula(), fec_fast.Formula("rms", axis="channels")):
        expected = fec_fast.score_model(network(), formula=formula)
        assert len(expected) == 3 and expected.layers["2"].kind == "ConvTranspose2d"
        for rank in (0, 1):
            text = (folder / f"{how} {formula.axis} {rank}.json").read_text()
            assert fec_fast.ModelScores.from_json(text) == expected, (formula, rank)


def test_what_is_refused_says_the_way_out(folder: Path) -> None:
    for rank in (0, 1):
        errors = json.loads((folder / f"errors {rank}.json").read_text())
        assert "the model is sharded by FullyShardedDataParallel" in errors["flat"][0] and errors["flat"][1] == ""
        assert "prune the plain model before sharding it" in errors["prune"][0]
