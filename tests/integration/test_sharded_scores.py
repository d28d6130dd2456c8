"""Scores of sharded models in two processes (gloo): every process gets those of the plain model.

Layers that are gathered have the same bits, layers that are scored in parts are within the tolerance of all backends.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fec_fast
from fec_fast.scoring import reference
from helpers.distributed_scoring import FORMULAS, GATHERED, network
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


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("how", GATHERED)
def test_every_process_gets_the_scores_of_the_plain_model(folder: Path, how: str, kind: str) -> None:
    of_first, of_second = (json.loads((folder / f"{how} {kind} {rank}.json").read_text()) for rank in (0, 1))
    assert of_first == of_second
    scores = fec_fast.ModelScores.from_json(of_first["scores"])
    expected = fec_fast.score_model(network(), formula=FORMULAS[kind])
    assert scores.layers == expected.layers and scores.unscored == expected.unscored
    assert expected.layers["2"].kind == "ConvTranspose2d" and not expected["7"].any()
    in_parts = FORMULAS[kind].axis == "channels"
    sharded = [name for name in expected if how == "fully_shard" or name not in ("4", "7")]
    gathered = [name for name in sharded if not in_parts or name in GATHERED[how]]
    assert of_first["gathered"] == [list(expected.layers[name].shape) for name in gathered]
    assert of_first["all_reduces"] == (2 if in_parts else 0)
    for name, values in expected.items():
        if in_parts and name in set(sharded) - set(gathered):
            layer, weight = expected.layers[name], network().get_submodule(name).weight
            exact = reference.entropy(weight, FORMULAS[kind], axis=layer.axis, groups=layer.groups)
            most = reference.tolerance(weight.dtype, layer.shape[1 - layer.axis])
            torch.testing.assert_close(scores[name], exact, atol=most, rtol=0)
        else:
            assert torch.equal(scores[name], values), name


def test_what_is_refused_says_the_way_out(folder: Path) -> None:
    for rank in (0, 1):
        errors = json.loads((folder / f"errors {rank}.json").read_text())
        assert "the model is sharded by FullyShardedDataParallel" in errors["flat"][0] and errors["flat"][1] == ""
        assert "prune the plain model before sharding it" in errors["prune"][0]
        for bad in ("not a number", "not a number, tau given"):
            message, layer = errors[bad]
            assert layer == "0" and "layer '0': its weight has nan at [6, 1, 2, 0]" in message
