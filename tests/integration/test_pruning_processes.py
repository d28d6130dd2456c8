"""Pruning during a training in two processes (gloo): one plan for both, equal to one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fec_fast
from helpers.distributed_pruning import train
from helpers.processes import torchrun

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch is built without gloo", allow_module_level=True)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    done = torchrun("-m", "helpers.distributed_pruning", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_both_processes_have_the_plan_and_the_weights_of_one(folder: Path) -> None:
    model, _, pruner = train(0, 1)
    plans = [fec_fast.Plan.from_json((folder / f"plan-{rank}.json").read_text()) for rank in (0, 1)]
    assert plans[0].keep == plans[1].keep == pruner.plan.keep
    weights = [load_file(folder / f"whole-{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name]), name
        torch.testing.assert_close(weights[0][name], tensor, atol=1e-5, rtol=1e-5)


def test_both_resume_to_the_same_bits(folder: Path) -> None:
    for rank in (0, 1):
        whole, resumed = (load_file(folder / f"{name}-{rank}.safetensors") for name in ("whole", "resumed"))
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["lightning", "transformers"])
def test_trainers_in_two_processes_give_both_one_pruned_network(which: str, tmp_path: Path) -> None:
    pytest.importorskip(which, reason=f"needs the extra {which!r}: pip install 'fec_fast[{which}]'")
    done = torchrun("-m", "helpers.trainers", which, tmp_path)
    assert done.returncode == 0, done.stderr
    plans = [(tmp_path / f"{which}-{rank}.json").read_text() for rank in (0, 1)]
    assert plans[0] == plans[1]
    first, second = (load_file(tmp_path / f"{which}-{rank}.safetensors") for rank in (0, 1))
    # The running statistics of batch norm are those of each process's images, as always with DistributedDataParallel.
    trained = [name for name in first if "running" not in name]
    assert trained and all(torch.equal(first[name], second[name]) for name in trained)
