"""Sharded weights: what is refused and what is reported, in one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

import fec_fast  # noqa: E402
from fec_fast.training.fsdp import uses_fsdp2  # noqa: E402
from helpers.distributed_training import network, train  # noqa: E402


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_of_sharding_are_refused(kind: str) -> None:
    from accelerate import DistributedType

    accelerator: Any = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=False)
    with pytest.raises(fec_fast.BackendError, match="fsdp_version 2" if kind == "FSDP" else f"{kind} is not supported"):
        uses_fsdp2(accelerator)
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    assert uses_fsdp2(accelerator)


def test_weights_that_are_not_sharded_after_all_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.warns(UserWarning, match="only across several GPUs: here every process holds all weights"):
        train(network(norm=False), 8, epochs=1)
