"""Figures: colours come from the page, ids are unique in it, text and numbers are as they were drawn."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest

from fec_fast.report.figures import KEPT, drawing, to_image, to_svg
from fec_fast.utils.errors import MissingExtraError

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def draw(name: str, text: str = "1.2345") -> str:
    with drawing(200, 100) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1, 2], [0.123456, 1, 0], color=KEPT, label=text)
        axes.fill_between([0, 1], [0, 1], hatch="///")
        axes.set_title(text)
        return to_svg(figure, name, 'a "drawing"')


def test_colours_are_those_of_the_page() -> None:
    svg = draw("one")
    assert "var(--kept)" in svg and "var(--ink)" in svg and "#0101" not in svg
    assert 'style="width:200' in svg and "&quot;drawing&quot;" in svg


def test_ids_are_unique_and_found() -> None:
    page = draw("one") + draw("two")
    ids = re.findall(r' id="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert referred and referred <= set(ids)


def test_the_same_figure_is_drawn_alike() -> None:
    assert draw("one") == draw("one")


@pytest.mark.parametrize("text", ["1.2345", "a $x_1$ b", "<script>alert(1)</script>", "#010105 1.987654"])
def test_text_is_as_it_was_given(text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{escaped}</text>" in draw("one", text)


def test_a_users_style_does_not_reach_the_report() -> None:
    plain = draw("one")
    with matplotlib.rc_context({"font.size": 40, "lines.linewidth": 9, "text.usetex": True}):
        assert draw("one") == plain
        assert matplotlib.rcParams["font.size"] == 40


def decoded(element: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", element)[1])))


def test_a_heat_map_goes_from_dark_to_bright() -> None:
    element = to_image(np.linspace(0, 1, 16).reshape(4, 4), "a map", scale=3)
    assert 'alt="a map"' in element and 'width="12" height="12"' in element
    brightness = np.asarray(decoded(element).convert("L"), dtype=int).ravel()
    assert (np.diff(brightness) >= 0).all() and brightness[-1] > brightness[0] + 100


def test_a_small_picture_is_exact_and_a_large_one_small() -> None:
    small = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert (np.asarray(decoded(to_image(small, "filters"))) == small).all()
    large = np.zeros((300, 300, 3), dtype=np.uint8) + np.arange(300, dtype=np.uint8)[:, None, None] // 2
    assert decoded(to_image(large, "photograph")).format == "JPEG"


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fec_fast\[report\]'"), drawing(10, 10):
        pass
