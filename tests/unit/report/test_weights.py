"""Pictures of weights: the right filters, the distances that the library computes, and errors for what is not there."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.plan.widths import layer_widths
from fec_fast.report.weights import check_filter_names, filters_of_layer, first_layer, heat_maps, removed_filters
from fec_fast.utils.errors import LayerError

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, fec_fast.Plan]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ConvTranspose2d(12, 8, 2, groups=2), nn.Flatten(), nn.Linear(8 * 49, 5)
    ).eval()
    return model, fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratio=0.5, recover=None).plan


def pixels(element: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", element)[1]))).convert("RGB")
    )


def test_kept_and_removed_filters_are_shown_apart(pruned: tuple[nn.Module, fec_fast.Plan]) -> None:
    model, plan = pruned
    removed = removed_filters(plan, "0")
    assert removed == set(range(12)) - set(plan.keep["0.weight"]["0"]) and len(removed) == 6
    (kept_caption, kept), (removed_caption, gone) = first_layer(model, plan, layer_widths(plan))
    assert kept_caption == "0: 6 kept filters" and removed_caption == "0: 6 removed filters"
    weight = model[0].weight.detach().double()
    scaled = (127.5 + 127.5 * weight / weight.abs().max()).round().clamp(0, 255)
    for picture, chosen in ((kept, sorted(set(range(12)) - removed)), (gone, sorted(removed))):
        shown = pixels(picture)
        for place, number in enumerate(chosen):
            square = shown[:3, 4 * place : 4 * place + 3]
            assert (square == scaled[number].permute(1, 2, 0).numpy()).all()


def test_the_filters_of_a_transposed_convolution(pruned: tuple[nn.Module, fec_fast.Plan]) -> None:
    weight = pruned[0][1].weight.detach().double()
    filters = filters_of_layer(pruned[0], "1")
    assert filters is not None and filters.shape == (8, 6, 2, 2)
    for number in range(8):
        group, position = divmod(number, 4)
        assert torch.equal(filters[number], weight[6 * group : 6 * group + 6, position])


def test_a_heat_map_shows_the_distances_of_the_library(pruned: tuple[nn.Module, fec_fast.Plan]) -> None:
    model, plan = pruned
    ((caption, picture),) = heat_maps(model, plan, "1", [5])
    filters = filters_of_layer(model, "1")
    expected = fec_fast.channel_distances(filters)[5].numpy()
    assert caption.startswith("filter 5, ") and f"{expected.max():.3g}" in caption
    brightness = pixels(picture).astype(int).sum(-1)
    assert brightness.shape == (6, 6)
    pairs = np.triu_indices(6, 1)
    assert np.corrcoef(brightness[pairs], expected[pairs])[0, 1] > 0.98
    assert (np.diag(brightness) == brightness.min()).all()


def test_by_default_the_lowest_and_the_highest_score(pruned: tuple[nn.Module, fec_fast.Plan]) -> None:
    model, plan = pruned
    record = next(record for record in plan.sets if "0" in record["filters"])
    captions = [caption for caption, _ in heat_maps(model, plan, "0")]
    for caption, state, unit in zip(
        captions, ("removed", "kept"), (np.argmin(record["scores"]), np.argmax(record["scores"])), strict=True
    ):
        number = int(caption.removeprefix("filter ").partition(",")[0])
        assert record["filters"]["0"][number] == unit
        assert f", {state}, score {record['scores'][unit]:.4g};" in caption


def test_a_large_matrix_is_averaged() -> None:
    model = nn.Sequential(nn.Conv2d(200, 4, 1), nn.Conv2d(4, 4, 1)).eval()
    plan = fec_fast.prune(model, torch.randn(1, 200, 2, 2), ratio=0.5, recover=None).plan
    ((_, picture),) = heat_maps(model, plan, "0", [1])
    assert pixels(picture).shape == (64, 64, 3)


def test_filters_that_are_not_there(pruned: tuple[nn.Module, fec_fast.Plan]) -> None:
    model, plan = pruned
    with pytest.raises(LayerError, match=r"'0' has the filters 0 to 11, not 12"):
        heat_maps(model, plan, "0", [12])
    with pytest.raises(LayerError, match="no filters with several channels"):
        heat_maps(model, plan, "3", [0])
    with pytest.raises(LayerError, match="no layer 'x' in the plan"):
        check_filter_names(plan, [("x", 0)])
    check_filter_names(plan, [("0", 0), ("3", 0)])
