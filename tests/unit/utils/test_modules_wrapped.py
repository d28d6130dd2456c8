"""Wrapped models: unwrapped where that is sound, refused by name where it is not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
from torch import nn

import fec_fast
from helpers.comparison import same_weights

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))


def train(model: nn.Module, inner: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IMAGE).square().mean().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def pruned(original: nn.Module) -> fec_fast.PruneResult:
    return fec_fast.prune(original, IMAGE, ratio=0.5, recover=None)


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    store = distributed.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["DataParallel", "compile"]
)
def test_wrappers_are_unwrapped_in_place(original: nn.Module, pruned: fec_fast.PruneResult, wrap) -> None:
    model = copy.deepcopy(original)
    wrapped = wrap(model)
    train(wrapped, model)
    plain = copy.deepcopy(model)
    fec_fast.apply_plan(wrapped, pruned.plan)
    fec_fast.apply_plan(plain, pruned.plan)
    train(wrapped, model)
    train(plain, plain)
    assert model[0].weight.shape == pruned.model[0].weight.shape
    assert same_weights(model, plain)


def test_ddp_is_pruned_as_a_copy(gloo: None, original: nn.Module, pruned: fec_fast.PruneResult) -> None:
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(original))
    assert same_weights(fec_fast.prune(wrapped, IMAGE, ratio=0.5, recover=None).model, pruned.model)
    train(wrapped, wrapped.module)


@pytest.mark.parametrize("inside", [False, True])
def test_ddp_is_refused_in_place_and_remains_usable(
    gloo: None, original: nn.Module, pruned: fec_fast.PruneResult, tmp_path, inside: bool
) -> None:
    model = copy.deepcopy(original)
    ddp = nn.parallel.DistributedDataParallel(model)
    wrapped = torch.compile(ddp, backend="eager") if inside else ddp
    path = fec_fast.save(pruned, tmp_path / "saved")
    before = copy.deepcopy(model)
    with pytest.raises(fec_fast.ArgumentError, match=r"DistributedDataParallel.*ddp\.module.*wrap it again"):
        fec_fast.apply_plan(wrapped, pruned.plan)
    with pytest.raises(fec_fast.ArgumentError, match=r"DistributedDataParallel.*ddp\.module.*wrap it again"):
        fec_fast.load(wrapped, path)
    assert same_weights(model, before)
    train(ddp, model)
    train(before, before)
    assert same_weights(model, before)


def test_the_inner_model_of_ddp_is_pruned_and_wrapped_again(
    gloo: None, original: nn.Module, pruned: fec_fast.PruneResult
) -> None:
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(original))
    train(ddp, ddp.module)
    plain = copy.deepcopy(ddp.module)
    fec_fast.apply_plan(ddp.module, pruned.plan)
    fec_fast.apply_plan(plain, pruned.plan)
    again = nn.parallel.DistributedDataParallel(ddp.module)
    train(again, again.module)
    train(plain, plain)
    assert same_weights(again.module, plain)
    assert same_weights(
        fec_fast.prune(again, IMAGE, ratio=0.5, recover=None).model,
        fec_fast.prune(plain, IMAGE, ratio=0.5, recover=None).model,
    )


def test_a_ddp_made_before_pruning_raises_at_its_second_step(gloo: None, original: nn.Module, pruned) -> None:
    """It no longer receives gradients. Torch raises at the second step, so no process diverges unnoticed."""
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(original))
    train(ddp, ddp.module)
    fec_fast.apply_plan(ddp.module, pruned.plan)
    with pytest.raises(RuntimeError, match="finished reduction in the prior iteration"):
        train(ddp, ddp.module, steps=2)


def test_sharded_models_are_refused_by_name(
    gloo: None, original: nn.Module, pruned: fec_fast.PruneResult, tmp_path
) -> None:
    mesh_of = pytest.importorskip("torch.distributed.device_mesh").init_device_mesh
    tensor = pytest.importorskip("torch.distributed.tensor")
    model = copy.deepcopy(original)
    model[3].weight = nn.Parameter(tensor.distribute_tensor(model[3].weight, mesh_of("cpu", (1,)), [tensor.Shard(0)]))
    path = fec_fast.save(pruned, tmp_path / "saved")
    for call in (
        lambda: fec_fast.apply_plan(model, pruned.plan),
        lambda: fec_fast.prune(model, IMAGE, recover=None),
        lambda: fec_fast.load(model, path),
    ):
        with pytest.raises(fec_fast.WeightError, match=r"layer '3': its weight is a DTensor.*before sharding"):
            call()
    assert model[0].weight.shape == (8, 3, 3, 3)


@pytest.mark.filterwarnings("ignore:FSDP is switching")
@pytest.mark.parametrize("original_parameters", [False, True])
def test_fsdp_is_refused(gloo: None, original: nn.Module, pruned, original_parameters: bool) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    model = copy.deepcopy(original)
    model[3] = fsdp.FullyShardedDataParallel(
        model[3], device_id=torch.device("cpu"), use_orig_params=original_parameters
    )
    for call in (lambda: fec_fast.apply_plan(model, pruned.plan), lambda: fec_fast.prune(model, IMAGE, recover=None)):
        with pytest.raises(fec_fast.WeightError, match=r"layer '3' is sharded by FSDP.*before sharding"):
            call()


def test_fully_sharded_is_refused(gloo: None, original: nn.Module, pruned) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh_of = pytest.importorskip("torch.distributed.device_mesh").init_device_mesh
    model = copy.deepcopy(original)
    fsdp.fully_shard(model, mesh=mesh_of("cpu", (1,)))
    for call in (lambda: fec_fast.apply_plan(model, pruned.plan), lambda: fec_fast.prune(model, IMAGE, recover=None)):
        with pytest.raises(fec_fast.WeightError, match="the model is sharded by FSDP"):
            call()


def test_an_optimizer_that_shards_its_state_is_refused(gloo: None, original: nn.Module, pruned) -> None:
    optim = pytest.importorskip("torch.distributed.optim")
    model = copy.deepcopy(original)
    optimizer = optim.ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.1)
    fec_fast.apply_plan(model, pruned.plan)
    with pytest.raises(fec_fast.ArgumentError, match="ZeroRedundancyOptimizer shards its state.*new one after pruning"):
        fec_fast.remap_optimizer(optimizer, pruned.plan, model)
