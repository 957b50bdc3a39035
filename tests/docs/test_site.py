"""The site: builds without a warning, no link in it is dead, and its search finds what is there."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """Ids of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name, value in found.items() if name in ("id", "name") and value}
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]


def dead_links(site: Path) -> list[str]:
    """Links between files of a site, and to places in them, that lead nowhere; those to the net are left alone."""
    pages = {path.resolve(): Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not file.is_file():
                dead.append(f"{path.name}: no file {target}")
            elif place and file in pages and place not in pages[file].ids:
                dead.append(f"{path.name}: no place {target}")
    return dead


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, without running the notebooks."""
    out = tmp_path_factory.mktemp("site") / "html"
    words = ["-c", "docs", "-b", "html", "-n", "-W", "--keep-going", "-q", "-D", "nb_execution_mode=off"]
    doctrees = ["-d", out.parent / "doctrees"]
    built = subprocess.run(
        [sys.executable, "-P", "-m", "sphinx", *words, *doctrees, ".", out], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return out


def test_no_link_is_dead(site: Path):
    assert len(list(site.rglob("*.html"))) > 40
    assert dead_links(site) == []


def test_a_dead_link_would_be_found(tmp_path: Path):
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="b.html#there"></a><img src="no.png">')
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="https://example.org/x"></a>')
    assert sorted(dead_links(tmp_path)) == ["a.html: no file no.png", "a.html: no place b.html#there"]


def test_every_page_is_in_the_menu(site: Path):
    menu = (site / "docs" / "README.html").read_text(encoding="utf-8")
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/*.md"), *ROOT.glob("docs/studies/*.md")]:
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f'href="{name}"' in menu or name == "README.html", f"{name} has no row in docs/README.md"


def test_every_public_name_is_in_the_reference(site: Path):
    import ccrk

    page = Links(site / "docs" / "api" / "ccrk.html").ids | Links(site / "docs" / "api" / "pipelines.html").ids
    page |= Links(site / "docs" / "api" / "trainer.html").ids
    for name in set(ccrk.__all__) - {"__version__"}:
        assert any(place.startswith("ccrk.") and place.endswith(f".{name}") for place in page), name


def test_the_search_finds_mrv(site: Path):
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            found = next(filter(None, map(shutil.which, BROWSERS)), None)
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=MRV")
            tab.wait_for_selector("ul.search li a", timeout=60_000)
            tab.wait_for_function("document.querySelector('.search-summary').textContent.includes('finished')")
            found = tab.locator("ul.search li > a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
            browser.close()
    finally:
        server.shutdown()
    assert any(target.startswith("docs/mrv.html") for target in found), found
    assert any(target.startswith("docs/api/metrics.html") for target in found), found
