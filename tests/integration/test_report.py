"""The report in a real browser: complete without a network, and every control does what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from helpers.browser import Browser, browser

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow


class Detector(nn.Module):
    """Finds one box in every image; its layers can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            features = self.stem(image[None]).relu()
            features = features + self.outer(self.inner(features).relu())
            corner = self.head(features.mean((2, 3))).sigmoid() * 10
            size = torch.tensor([[0.0, 0.0, 20.0, 20.0]], dtype=corner.dtype)
            found.append({"boxes": corner + size, "scores": torch.ones(1, dtype=corner.dtype)})
        return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, images = Detector().eval(), [torch.rand(3, 32, 40)]
    result = fec_fast.prune(model, images, budget=fec_fast.Budget(params=0.6), recover=None)
    sensitivity = fec_fast.measure_sensitivity(
        model, images, lambda net: sum(p.numel() for p in net.parameters()) / 1e4, at=(0.3, 0.6), progress=False
    )
    swept = fec_fast.sweep(
        model,
        images,
        None,
        metric=lambda net: float(net.inner.out_channels),
        budgets=["params=0.3", "params=0.6"],
        criteria=["l1", "fec_l1"],
        progress=False,
    )
    file = tmp_path_factory.mktemp("report") / "report.html"
    given = {"sensitivity": sensitivity, "sweep": swept, "images": images}
    written = result.report(file, model, images, title="<Detector> & co", **given)
    assert written == file
    return file


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_the_report_of_a_large_network_is_small(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, image = models.resnet50().eval(), torch.randn(1, 3, 32, 32)
    budget = fec_fast.Budget(params=0.5)
    result = fec_fast.prune(model, image, budget=budget, criterion="l1", verify=False, recover=None)
    assert 300_000 < result.report(tmp_path / "report.html", model, image).stat().st_size < 1_000_000


SECTIONS = ["layers", "scores", "couplings", "sensitivity", "sweep", "first-layer", "distances", "images", "notes"]


def test_the_page_is_complete(page: Path, window: Browser) -> None:
    window.open(page)
    assert window.run("return [...document.querySelectorAll('main section')].map(e => e.id)") == SECTIONS
    assert window.run("return document.title") == "<Detector> & co"
    assert not window.errors()
    loaded = window.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in loaded)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_sweep_shows_every_network_and_the_front(page: Path, window: Browser) -> None:
    window.open(page)
    rows = window.run("return [...document.querySelectorAll('#sweep tbody tr')].map(e => e.innerText.split('\\t')[0])")
    assert rows[0] == "dense" and len(rows) == 5 and any(row.startswith("★") for row in rows)
    label = window.run("return document.querySelector('#sweep svg').getAttribute('aria-label')")
    assert "against multiply-accumulates of 4 pruned networks, by 2 ways" in label


def test_every_picture_has_a_text_and_every_id_is_unique(page: Path, window: Browser) -> None:
    window.open(page)
    pictures = window.run(
        "return [...document.querySelectorAll('svg, img')].map(e => e.getAttribute('aria-label') || e.alt)"
    )
    assert len(pictures) > 8 and all(pictures)
    ids = window.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert window.run("return [...document.images].every(image => image.naturalWidth > 0)")
    headings = window.run("return [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    assert headings[0] == 1 and all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))


def test_links_lead_to_their_parts(page: Path, window: Browser) -> None:
    for section in SECTIONS:
        window.open(page, height=300)
        window.click(f'nav a[href="#{section}"]')
        top = window.run(f"return document.getElementById('{section}').getBoundingClientRect().top")
        bottom = window.run("return document.documentElement.getBoundingClientRect().bottom")
        assert abs(top) < 2 or bottom <= 301, section


def test_the_largest_loss_comes_first_on_request(page: Path, window: Browser) -> None:
    window.open(page)
    names = "return [...document.querySelectorAll('.layers tbody th')].map(e => e.textContent)"
    lost = "return [...document.querySelectorAll('.layers tbody tr')].map(e => Number(e.dataset.rank))"
    before = window.run(names)
    assert before == ["stem", "inner", "outer", "head"]
    window.click("#order")
    ranks = window.run(lost)
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > 0
    window.click("#order")
    assert window.run(names) == before


def test_one_layers_heat_maps_are_shown_at_a_time(page: Path, window: Browser) -> None:
    window.open(page)
    shown = "return [...document.querySelectorAll('[data-panel]')].filter(e => !e.hidden).map(e => e.innerText)"
    choices = window.run("return [...document.querySelectorAll('select option')].map(e => e.textContent)")
    assert choices == ["stem", "inner", "outer"]
    window.session.find_element("css selector", "select").send_keys("outer")
    (text,) = window.run(shown)
    assert text.startswith("outer")


def test_tables_open(page: Path, window: Browser) -> None:
    window.open(page)
    visible = "return document.querySelector('#scores details tbody tr').checkVisibility()"
    assert not window.run(visible)
    window.click("#scores summary")
    assert window.run(visible)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(page: Path, window: Browser, dark: bool) -> None:
    window.open(page, dark=dark)
    for _ in range(2):  # as the system says, and after the button
        for name in ("--ink", "--muted", "--link"):
            assert contrast(window, name, "--page") >= 4.5 and contrast(window, name, "--panel") >= 4.5
        for name in ("--kept", "--removed", "--third"):
            assert contrast(window, name, "--page") >= 3
        is_dark = luminance(window, "--page") < 0.5
        assert is_dark is dark
        window.click("#theme")
        dark = not dark


def luminance(window: Browser, name: str) -> float:
    """The relative luminance of a colour of the page, by WCAG 2."""
    colour = window.run(f"return getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(window: Browser, one: str, other: str) -> float:
    bright, dim = sorted((luminance(window, one), luminance(window, other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_than_the_screen(page: Path, window: Browser, width: int) -> None:
    window.open(page, width=width)
    assert window.run("return document.documentElement.scrollWidth") <= width


def test_paper_has_every_part(page: Path, window: Browser, tmp_path: Path) -> None:
    window.open(page, dark=True)
    window.command("Emulation.setEmulatedMedia", media="print")
    assert luminance(window, "--page") == 1
    panels = "return [...document.querySelectorAll('[data-panel]')].every(e => e.getBoundingClientRect().height > 0)"
    assert window.run(panels)
    window.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert window.run("return [...document.querySelectorAll('details')].every(part => part.open)")
    window.command("Emulation.setEmulatedMedia", media="")


def test_without_scripts_everything_is_there(page: Path, window: Browser) -> None:
    window.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        window.open(page)
        for selector, number in (("[data-panel]", 3), ("svg", 4)):
            elements = window.session.find_elements("css selector", f"main {selector}")
            assert len(elements) >= number and all(element.is_displayed() for element in elements)
        buttons = window.session.find_elements("css selector", "button, select")
        assert buttons and not any(button.is_displayed() for button in buttons)
    finally:
        window.command("Emulation.setScriptExecutionDisabled", value=False)
