"""explain: why each filter is removed or kept, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.vision import networks, zoo

NAME, LAYER = "zoo:resnet-digits", "layer1.0.conv1"
DIGIT = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build(NAME).eval()


@pytest.fixture(scope="module")
def pruned(original: nn.Module) -> fec_fast.PruneResult:
    return fec_fast.prune(original, DIGIT, ratio=0.5, recover=None)


def test_every_filter_has_its_score_and_rank(original: nn.Module, pruned: fec_fast.PruneResult) -> None:
    told = fec_fast.explain(pruned.plan, LAYER)
    record = next(record for record in pruned.plan.sets if LAYER in record["layers"])
    kept = pruned.plan.keep[f"{LAYER}.weight"]["0"]
    assert [entry.index for entry in told.filters] == list(range(32))
    assert [entry.index for entry in told.filters if not entry.removed] == kept
    assert [entry.score for entry in told.filters] == record["scores"]
    assert sorted(entry.rank for entry in told.filters) == list(range(1, 33))
    assert all(entry.removed == (entry.rank <= 16) for entry in told.filters)
    assert all(entry.neighbours == () and entry.set_name == record["name"] for entry in told.filters)
    lowest = min(told.filters, key=lambda entry: entry.score)
    assert str(lowest) == f"filter {lowest.index}: removed  score {lowest.score:.6g}, rank 1 of 32"
    assert str(told).splitlines()[0] == f"{LAYER}: 16 of 32 filters removed, by fec_l1, sides both"
    assert len(str(told).splitlines()) == 2 + 32


def test_coupled_layers(pruned: fec_fast.PruneResult) -> None:
    assert fec_fast.explain(pruned.plan, "conv1").coupled == {"conv1": ("layer1.0.conv2",)}
    assert "set conv1: coupled with conv1" in str(fec_fast.explain(pruned.plan, "layer1.0.conv2"))
    assert "no other layer" in str(fec_fast.explain(pruned.plan, LAYER))


@pytest.mark.parametrize("formula", [None, fec_fast.Formula("rms"), fec_fast.Formula("mean", axis="channels")])
def test_neighbours(original: nn.Module, formula: fec_fast.Formula | None) -> None:
    plan = fec_fast.prune(original, DIGIT, ratio=0.5, formula=formula, recover=None).plan
    weight = original.get_submodule(LAYER).weight.detach().double()
    points = weight.square().mean((2, 3)).sqrt() if formula == fec_fast.Formula("rms") else weight.flatten(1)
    explained = fec_fast.explain(plan, LAYER, original, neighbours=2)
    assert len(explained.filters) == 32
    for entry in explained.filters:
        distances = (points - points[entry.index]).norm(dim=1)
        distances[entry.index] = torch.inf
        nearest = distances.argsort()[:2].tolist()
        assert [index for index, _ in entry.neighbours] == nearest
        assert [distance for _, distance in entry.neighbours] == pytest.approx(distances[nearest].tolist())


def test_neighbours_in_a_grouped_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1)).eval()
    plan = fec_fast.prune(model, DIGIT, ratio=0.3, criterion="l1", recover=None).plan
    weight = model[1].weight.detach()  # [8, 12 / 2, 3, 3]: filter 6 q + l is weight[4 q : 4 q + 4, l]
    filters = torch.stack([weight[4 * q : 4 * q + 4, l].flatten() for q in range(2) for l in range(6)])  # noqa: E741
    told = fec_fast.explain(plan, "1", model, neighbours=1)
    assert len(told.filters) == 12 and sum(entry.removed for entry in told.filters) > 0
    for entry in told.filters:
        distances = (filters - filters[entry.index]).norm(dim=1)
        distances[entry.index] = torch.inf
        assert entry.neighbours[0][0] == int(distances.argmin())


def test_pinned_and_partly_pinned_layers(original: nn.Module, pruned: fec_fast.PruneResult) -> None:
    told = fec_fast.explain(pruned.plan, "fc")
    assert told.filters == () and told.coupled == {}
    assert str(told) == "fc: kept all its filters: its channels are outputs of the model"
    told = fec_fast.explain(pruned.plan, "fc", original)
    assert len(told.filters) == 10 and not any(entry.removed for entry in told.filters)
    padded = networks.resnet20_cifar().eval()
    told = fec_fast.explain(
        fec_fast.prune(padded, torch.randn(1, 3, 16, 16), criterion="l1", recover=None).plan, "layer2.0.conv2"
    )
    free = [entry for entry in told.filters if entry.set_name is None]
    assert free and not any(entry.removed for entry in free) and "no coupled set" in str(free[0])
    assert any("some channels are kept" in note for note in told.notes)


def test_explanation_of_a_plan_of_two_rounds(original: nn.Module, pruned: fec_fast.PruneResult) -> None:
    second = fec_fast.prune(pruned.model, DIGIT, ratio=0.25, recover=None)
    told = fec_fast.explain(fec_fast.compose(pruned.plan, second.plan), LAYER)
    first_gone = {entry.index for entry in fec_fast.explain(pruned.plan, LAYER).filters if entry.removed}
    by_round = {turn: [entry for entry in told.filters if entry.round == turn] for turn in (1, 2)}
    assert {entry.index for entry in by_round[1]} == first_gone and all(entry.removed for entry in by_round[1])
    assert [entry.of for entry in by_round[2]] == [16] * 16 and sum(entry.removed for entry in by_round[2]) == 4
    assert "round 2" in str(by_round[2][0]) and "round" not in str(by_round[1][0])


def test_wrong_input(original: nn.Module, pruned: fec_fast.PruneResult) -> None:
    with pytest.raises(fec_fast.LayerError, match=r"no layer 'layer1\.0\.conv9'.*nearest.*'layer1\.0\.conv"):
        fec_fast.explain(pruned.plan, "layer1.0.conv9")
    with pytest.raises(fec_fast.LayerError, match=r"'bn1' has no filters of its own"):
        fec_fast.explain(pruned.plan, "bn1")
    with pytest.raises(fec_fast.PlanError, match="already pruned"):
        fec_fast.explain(pruned.plan, LAYER, pruned.model)
    with pytest.raises(fec_fast.ArgumentError, match="PruneResult"):
        fec_fast.explain(pruned, LAYER)  # type: ignore[arg-type]
    with pytest.raises(fec_fast.ArgumentError, match="neighbours=0"):
        fec_fast.explain(pruned.plan, LAYER, original, neighbours=0)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


@pytest.fixture
def folder(pruned: fec_fast.PruneResult, tmp_path: Path) -> Path:
    return fec_fast.save(pruned, tmp_path / "saved")


def test_command(original: nn.Module, pruned: fec_fast.PruneResult, folder: Path, tmp_path: Path) -> None:
    told = fec_fast.explain(pruned.plan, LAYER)
    for plan in (folder, folder / "plan.json"):
        assert run(plan, LAYER).stdout == f"{told}\n"
    gone = [str(entry) for entry in told.filters if entry.removed]
    assert run(folder, LAYER, "--removed").stdout.splitlines() == [*told.heading().splitlines(), *gone]
    assert run(folder, LAYER, "--filter", "7").stdout.splitlines() == [
        *told.heading().splitlines(),
        str(told.filters[7]),
    ]
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    printed = run(folder, LAYER, "--model", NAME, "--weights", tmp_path / "weights.safetensors").stdout
    assert printed == f"{fec_fast.explain(pruned.plan, LAYER, original)}\n" and "nearest: " in printed


def test_command_with_wrong_input(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for arguments, words in (
        ((folder, "layer1.0.conv9"), "nearest"),
        ((folder, LAYER, "--filter", "32"), "32 filters"),
        ((folder, LAYER, "--weights", "x.pth"), "--model"),
        ((folder, LAYER, "--model", "zoo:vgg-digits"), "another model"),
        ((tmp_path / "none.json", LAYER), "none.json"),
        ((tmp_path / "bytes", LAYER), "not JSON"),
        ((tmp_path, LAYER), "not a checkpoint"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr and result.stderr.count("\n") == 1
