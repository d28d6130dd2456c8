"""``sweep``: what it measures, what it takes from the folder, and what it says about bad data."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.choosing import sweeping
from helpers.optional import skip_without
from helpers.processes import accelerate_launch
from helpers.sweeping import EXAMPLE, network, quick_sweep, train_together, width
from helpers.training import dot_loader


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    pytest.importorskip("accelerate")
    model = network()
    fec_fast.finetune(model, dot_loader(), epochs=6, lr=0.05, progress=False)
    return model.eval()


def test_points_are_what_prune_gives() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    result = quick_sweep(model)
    assert [point.name for point in result.points] == [
        f"macs={share}, entropy, {criterion}" for share in (0.3, 0.5, 0.7) for criterion in ("l1", "fec_l1")
    ]
    for point in result.points:
        alone = fec_fast.prune(
            model, EXAMPLE, budget=fec_fast.Budget.parse(point.budget), criterion=point.criterion, recover=None
        )
        assert (point.parameters, point.macs, point.pruned) == (
            *(alone.after.parameters, alone.after.macs),
            width(alone.model),
        )
        assert point.plan == alone.plan and point.tuned is None and point.latency_ms is None
    assert result.dense == fec_fast.DenseNetwork(20.0, *_sizes(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_iterators_are_gone_through_once() -> None:
    lists: dict[str, Any] = {"budgets": ["macs=0.3", "macs=0.5"], "policies": ["entropy"], "criteria": ["l1", "fec_l1"]}
    expected = quick_sweep(network(), **lists).points
    found = quick_sweep(network(), **{name: iter(values) for name, values in lists.items()}).points
    assert [point.name for point in found] == [point.name for point in expected] and len(found) == 4


def _sizes(model: nn.Module) -> tuple[int, int]:
    counts = fec_fast.prune(model, EXAMPLE, ratio=0.1, recover=None).before
    return counts.parameters, counts.macs


def test_the_defaults_are_those_of_prune(trained: nn.Module) -> None:
    """Recovered on the loader's images by the default criterion and policy, and measured on the held-out data."""
    images = [batch for batch, _ in dot_loader(shuffle=False)]
    held_out = dot_loader(shuffle=False, count=96)
    (point,) = fec_fast.sweep(
        trained, EXAMPLE, images, val_loader=held_out, budgets=[fec_fast.Budget(macs=0.5)], progress=False
    ).points
    alone = fec_fast.prune(trained, EXAMPLE, budget=fec_fast.Budget(macs=0.5), recover=images)
    assert (point.policy, point.criterion) == ("reconstruction", "reconstruction")
    assert point.plan == alone.plan
    assert point.value == pytest.approx(fec_fast.evaluate(alone.model, held_out))
    assert "recovered by least squares" in point.plan.notes[-1]


def test_a_shuffled_loader_gives_the_same_points_twice(trained: nn.Module) -> None:
    loader = dot_loader(generator=torch.Generator().manual_seed(4))
    results = [quick_sweep(trained, loader=loader, criteria=(None,), budgets=["macs=0.5"]) for _ in range(2)]
    assert results[0].points == results[1].points


def test_the_network_of_a_point_is_made_again(trained: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_loader": dot_loader(shuffle=False), "budgets": ["macs=0.6"], "progress": False}
    found = fec_fast.sweep(trained, EXAMPLE, dot_loader(), tune=train_together, **options)
    point = found.smallest(within=100)
    made = found.make(point)
    assert fec_fast.evaluate(made.model, options["val_loader"]) == pytest.approx(point.value)
    assert point.tuned is not None and (made.after.parameters, made.after.macs) == (point.parameters, point.macs)
    fec_fast.save(made, tmp_path / "made")
    loaded = fec_fast.load(network(), tmp_path / "made").eval()
    torch.testing.assert_close(loaded(EXAMPLE), made.model(EXAMPLE))
    with pytest.raises(fec_fast.ArgumentError, match="of this sweep"):
        quick_sweep(trained).make(point)


def test_without_images_the_defaults_are_those_of_prune() -> None:
    model, budget = network(), fec_fast.Budget(macs=0.5)
    point = quick_sweep(model, criteria=(None,), budgets=[budget]).points[0]
    assert (point.criterion, point.policy) == ("ablation", "ablation")
    assert (
        point.plan is not None
        and point.plan.keep == fec_fast.prune(model, EXAMPLE, budget=budget, recover=None).plan.keep
    )


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    whole = quick_sweep(model)
    calls: list[nn.Module] = []

    def width(network: nn.Module) -> float:  # noqa: F811 (of the same name on purpose: points are kept by it)
        calls.append(network)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return float(sum(module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)))

    with pytest.raises(KeyboardInterrupt):
        quick_sweep(model, metric=width, results=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    resumed = quick_sweep(model, metric=width, results=tmp_path)
    assert len(calls) == 4 + 1 + 4  # the dense network again, and the four networks that were missing
    assert resumed.points == whole.points
    monkeypatch.setattr(sweeping.NetworkMaker, "pruned", None)
    assert quick_sweep(model, metric=width, results=tmp_path).points == whole.points


@pytest.mark.parametrize(
    "change",
    [
        {"ignore": ("3",)},
        {"min_channels": 4},
        {"round_to": 4},
        {"sides": "producer"},
        {"formula": fec_fast.Formula(axis="both")},
        {"loader": torch.randn(40, 1, 6, 6)},
        {"tune": lambda network: None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_points_are_kept_apart_by_the_arguments(change: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    quick_sweep(model, results=tmp_path, criteria=("fec_l1",), budgets=["macs=0.5"])
    quick_sweep(model, results=tmp_path, criteria=("fec_l1",), budgets=["macs=0.5"], **change)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_points_are_kept_apart_by_the_weights(tmp_path: Path) -> None:
    model = network()
    quick_sweep(model, results=tmp_path, budgets=["macs=0.5"])
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    quick_sweep(model, results=tmp_path, budgets=["macs=0.5"])
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_results_of_another_metric_are_refused(tmp_path: Path) -> None:
    def named(factor: float) -> Any:
        def metric(model: nn.Module) -> float:
            return factor * width(model)

        return metric

    quick_sweep(network(), metric=named(1), results=tmp_path)
    with pytest.raises(fec_fast.InputError, match=r"had 20.0000 then and has 21.0000 now; name another folder"):
        quick_sweep(network(), metric=named(1.05), results=tmp_path)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"format": "x", "version": 1}'])
def test_a_damaged_point_is_named(damage: str, tmp_path: Path) -> None:
    quick_sweep(network(), results=tmp_path, budgets=["macs=0.5"])
    file = sorted(tmp_path.glob("*.json"))[0]
    file.write_text(damage)
    with pytest.raises(fec_fast.InputError, match=f"{file.name} is damaged.*delete it"):
        quick_sweep(network(), results=tmp_path, budgets=["macs=0.5"])


def test_what_cannot_be_pruned_is_listed() -> None:
    with pytest.warns(fec_fast.FecWarning, match=r"1 of 2 networks failed, such as macs=0.99, entropy, l1: "):
        result = quick_sweep(network(), budgets=["macs=0.3", "macs=0.99"], criteria=("l1",), min_channels=6)
    assert [point.budget for point in result.points] == ["macs=0.3"]
    assert list(result.failed) == ["macs=0.99, entropy, l1"] and "failed: macs=0.99" in str(result)
    with pytest.raises(fec_fast.BudgetError):
        quick_sweep(network(), budgets=["macs=0.99"], criteria=("l1",), min_channels=6)


def test_latency_is_measured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_LATENCY_SECONDS", 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this machine may be busy
        result = quick_sweep(network(), budgets=["macs=0.5"], latency=True)
    assert result.dense.latency_ms is not None and result.dense.latency_ms > 0
    assert all(point.latency_ms is not None and point.latency_ms > 0 for point in result.points)
    assert result.front("latency_ms") and " ms" in str(result).splitlines()[0]


@pytest.mark.parametrize(("seconds", "doubted"), [((1e-3, 5e-4, 1.1e-3), False), ((0.4e-3, 5e-4, 92e-3), True)])
def test_latency_of_a_busy_machine_is_doubted(
    seconds: tuple[float, ...], doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense network is timed before and after the others."""
    times = iter(seconds)
    monkeypatch.setattr(sweeping, "time_model", lambda *_: SimpleNamespace(seconds=next(times)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick_sweep(network(), budgets=["macs=0.5"], criteria=["l1"], latency=True)
    said = [str(warning.message) for warning in caught if "the machine was busy" in str(warning.message)]
    assert len(said) == doubted and all("of the dense network are 0.4 ms and 92 ms" in text for text in said)


def test_sensitivity_is_measured_once_per_criterion(trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from fec_fast.choosing import networks

    measured: list[str] = []
    original = networks.measure_sensitivity

    def count(*args: Any, **options: Any) -> Any:
        measured.append(options["criterion"])
        return original(*args, **options, at=(0.5,))

    monkeypatch.setattr(networks, "measure_sensitivity", count)
    result = quick_sweep(trained, loader=dot_loader(shuffle=False), policies=("sensitivity",), metric=width)
    assert measured == ["l1", "fec_l1"] and len(result.points) == 6


def test_warns_where_accuracy_is_no_more_than_chance(trained: nn.Module) -> None:
    options: dict[str, Any] = {"val_loader": dot_loader(shuffle=False), "progress": False}
    lost = copy.deepcopy(trained)

    def forget(model: nn.Module) -> None:
        nn.init.zeros_(model[-1].weight)

    with pytest.warns(fec_fast.FecWarning, match="1 of 1 networks are no better than guessing among 3 classes"):
        fec_fast.sweep(trained, EXAMPLE, None, tune=forget, budgets=["macs=0.5"], **options)
    forget(lost)
    with pytest.warns(fec_fast.FecWarning, match="dense network's accuracy of 0.3333 is about that of guessing"):
        fec_fast.sweep(lost, EXAMPLE, None, budgets=["macs=0.5"], **options)


def test_warns_where_recovery_has_seen_the_images(trained: nn.Module) -> None:
    loader = dot_loader(shuffle=False)
    with pytest.warns(fec_fast.FecWarning, match="give held-out data as val_loader=") as told:
        fec_fast.sweep(trained, EXAMPLE, loader, budgets=["macs=0.5"], progress=False)
    # Pruning and recovery say the same of one network.
    few = [str(warning.message) for warning in told if "images are few" in str(warning.message)]
    assert len(few) == 1 and few[0].startswith("1 of 1 networks, such as macs=0.5, ")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*val_loader=.*")
        fec_fast.sweep(trained, EXAMPLE, loader, val_loader=loader, budgets=["macs=0.5"], progress=False)


def test_a_task_gives_its_main_metric(trained: nn.Module) -> None:
    pytest.importorskip("torchmetrics")
    from fec_fast.training.tasks.classification import Classification

    held_out = dot_loader(shuffle=False)
    result = fec_fast.sweep(
        trained, EXAMPLE, None, metric=Classification(), val_loader=held_out, budgets=["macs=0.5"], progress=False
    )
    assert result.metric == "accuracy" and result.dense.value == pytest.approx(fec_fast.evaluate(trained, held_out))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"metric": 3}, fec_fast.ArgumentError, "metric: expected a function"),
        ({"metric": None}, fec_fast.ArgumentError, "nothing to measure on"),
        ({"metric": None, "loader": "data-free"}, fec_fast.ArgumentError, "give labelled data as val_loader="),
        ({"val_loader": []}, fec_fast.ArgumentError, "has its own data"),
        ({"loader": "images"}, fec_fast.ArgumentError, "loader='images'"),
        ({"budgets": []}, fec_fast.ArgumentError, "budgets="),
        ({"budgets": "macs=0.5"}, fec_fast.ArgumentError, "give a list"),
        ({"budgets": ["mac=0.5"]}, fec_fast.BudgetError, "nearest: 'macs'"),
        ({"budgets": [0.5]}, fec_fast.ArgumentError, "no fec_fast.Budget"),
        ({"policies": ["entrpy"]}, fec_fast.ArgumentError, "nearest: 'entropy'"),
        ({"policies": ["sensitivity"]}, fec_fast.ArgumentError, "needs loader="),
        ({"criteria": ["l3"]}, fec_fast.ArgumentError, "l3"),
        ({"criteria": ["l1"], "formula": fec_fast.Formula()}, fec_fast.ArgumentError, "formula= belongs to"),
        ({"tune": 1}, fec_fast.ArgumentError, "tune: expected a function"),
        ({"metric": lambda model: "good"}, fec_fast.ArgumentError, "returned a str for the dense network"),
        ({"metric": lambda model: float("nan")}, fec_fast.InputError, "returned nan for the dense network"),
        ({"metric": lambda model: 1 / 0}, fec_fast.InputError, "ZeroDivisionError for the dense network"),
        ({"results": Path(__file__)}, fec_fast.InputError, "is a file; name a folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_pruned(
    options: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping.NetworkMaker, "pruned", None)
    with pytest.raises(error, match=match):
        quick_sweep(network(), **options)


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_share_a_sweep(tmp_path: Path) -> None:
    """Without a training they share the networks; a training is distributed, so they train each network together."""
    skip_without("accelerate", "torchmetrics")
    done = accelerate_launch("-m", "helpers.sweeping", tmp_path)
    assert done.returncode == 0, done.stderr
    alone = [point.figures() for point in quick_sweep(network()).points]
    for kind in ("shared", "tuned"):
        found = [json.loads((tmp_path / f"{kind}-{rank}").read_text()) for rank in (0, 1)]
        assert found[0] == found[1] and len(list((tmp_path / kind).glob("*.json"))) == 6
        if kind == "shared":
            assert found[0] == alone
        else:
            assert all(point["tuned"] is not None for point in found[0])
