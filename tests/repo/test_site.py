"""The site of the pages: it is built without a warning, loads nothing from the network, and fits a phone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fec_fast
from benchmarks.pictures.run import drawn
from helpers.browser import browser
from helpers.pages import DOCS, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'fec_fast[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert len(pages) > 40 and not [page for page in pages if not (site / page).is_file()]
    assert (site / "repository" / "benchmarks" / "results" / "recovery.json").is_file()  # linked from the pages
    assert not (site / "hooks.py").exists()


def test_every_public_name_has_its_docstring_in_the_site(site: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    modules = {"data": "fec_fast.vision.data", "voc": "fec_fast.vision.voc", "zoo": "fec_fast.vision.zoo"}
    modules["detection"] = "fec_fast.training.tasks.detection"
    for name in fec_fast.__all__:
        value = getattr(fec_fast, name)
        addresses = {modules.get(name, f"fec_fast.{name}"), f"{value.__module__ if name not in modules else ''}.{name}"}
        assert any(f'id="{address}"' in text for address in addresses), name
    assert not re.search(r":(?:func|class|mod|meth):", text)  # roles became links


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages and not [page for page in pages if LOADED.search(page.read_text(encoding="utf-8"))]
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [style for style in styles if re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_a_phone(site: Path, tmp_path: Path, dark: bool) -> None:
    with browser(tmp_path) as window:
        for page in ("index", "how-it-works", "coming-from", "api/pruning", "recovery", "architecture"):
            window.open(site / f"{page}.html", width=390, height=844, dark=dark)
            assert window.run("return document.documentElement.scrollWidth") <= 390, page
            colour = window.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark, (page, colour)
            broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
            assert window.run(broken) == 0, page
        assert not window.errors()


def test_the_pictures_are_those_of_the_results() -> None:
    """``python -m benchmarks.pictures`` would write what is committed."""
    for name, content in drawn().items():
        assert (DOCS / name).read_text(encoding="utf-8") == content, name
