"""Spaces started by `python app.py`, as the Hub does, and used in a real browser.

`CCRK_SCREENSHOTS=FOLDER` keeps a picture of each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ccrk.metrics import mean_rank_variance
from ccrk.serving.space import build_metric_space, build_search_space

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow
SPEC = importlib.util.spec_from_file_location("ccrk_tests_space", Path(__file__).with_name("space_process.py"))
space_process = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(space_process)
started = space_process.started
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 120_000  # ms
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, address: str, size: dict = WIDE):
    """The page of a Space; what it complains about, and what it asks of others, fails the test."""
    page = browser.new_page(viewport=size)
    page.set_default_timeout(PATIENCE)
    complaints, asked = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not complaints
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def keep(page, name: str) -> None:
    """A picture, if somebody wants one."""
    if os.environ.get("CCRK_SCREENSHOTS"):
        page.wait_for_timeout(600)
        page.screenshot(path=Path(os.environ["CCRK_SCREENSHOTS"]) / f"{name}.png", full_page=True)


def test_search_page(browser, model, processor, search, place, tmp_path):
    from ccrk import CCRkRetrievalPipeline

    CCRkRetrievalPipeline(model, processor).save_pretrained(tmp_path / "my-model")
    space = build_search_space(tmp_path / "my-model", tmp_path / "space", gallery=place / "photos").folder
    # it still starts where what it was made of is gone, and from another place
    shutil.rmtree(tmp_path / "my-model")
    moved = tmp_path / "elsewhere" / "my space"
    moved.parent.mkdir()
    shutil.move(space, moved)
    pipe = search(str(moved / "photos"))
    with started(moved, SPACE_ID="org/my-space", HF_HUB_OFFLINE="1") as address:
        with visit(browser, address) as page:
            for query in ("a dog in the snow", "ein Hund im Schnee"):
                page.fill("#query textarea", query)
                page.click("#search")
                said = page.locator("[role=status]:visible").first
                playwright.expect(said).to_contain_text(f"“{query}”", timeout=PATIENCE)
                cards = page.locator("#results [data-id]")
                found = [cards.nth(number).get_attribute("data-id") for number in range(cards.count())]
                assert found == [str(hit["id"]) for hit in pipe(query, top_k=24)]
            page.wait_for_function(
                "[...document.querySelectorAll('#results img')].filter(i => i.complete && i.naturalWidth).length > 5"
            )
            keep(page, "space-search")
        with urllib.request.urlopen(address) as answer:
            assert "frame-ancestors 'self' https://huggingface.co" in answer.headers["content-security-policy"]
        for path in ("app.py", "../app.py", "images/../app.py", "gradio_api/file=app.py"):
            with pytest.raises(urllib.error.HTTPError, match="404|405|422"):
                urllib.request.urlopen(address + path)


RANKS = "item;en;de;ja\na;0;4;2\nb;3;3;\nc;7;miss;1\n<img src=x onerror=alert(1)>;2;9;2\n"
ROWS = [{"en": 0, "de": 4, "ja": 2}, {"en": 3, "de": 3}, {"en": 7, "de": None, "ja": 1}, {"en": 2, "de": 9, "ja": 2}]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_mrv(browser, tmp_path, size):
    space = build_metric_space("mrv", tmp_path / "mrv").folder
    with started(space) as address, visit(browser, address, size) as page:
        page.wait_for_selector("#figures [role=status]")
        keep(page, f"space-mrv-{size['width']}")
        page.fill("#ranks textarea", RANKS)
        page.click("#measure")
        page.wait_for_function(
            "document.querySelector('#figures').innerText.includes('4 items in 3 languages, 1 miss')"
        )
        wanted = mean_rank_variance(ROWS, misses="rank_k", top_k=50)
        for name in ("std", "variance", "mad"):
            assert page.locator(f"#figures #{name} b").inner_text() == f"{wanted[name]:.4f}"
        assert page.locator("#figures img").count() == 0, "what was pasted is text"
        first = page.locator("#figures tr").nth(1).locator("td").all_inner_texts()
        assert first[:4] == ["c", "7", "miss", "1"], "the item that varies most"
        page.fill("#ranks textarea", "en,de\n1,x")
        page.click("#measure")
        playwright.expect(page.locator("#figures [role=alert]")).to_contain_text("line 2: 'x' in 'de' is no rank")
        keep(page, f"space-mrv-error-{size['width']}")
        for path in ("gradio_api/file=app.py", "gradio_api/file=/etc/passwd", "gradio_api/monitoring/summary"):
            with pytest.raises(urllib.error.HTTPError, match="403|404"):
                urllib.request.urlopen(address + path)


def test_recall(browser, tmp_path):
    space = build_metric_space("ccr_recall", tmp_path / "ccr_recall").folder
    with started(space) as address, visit(browser, address) as page:
        page.wait_for_selector("#figures [role=status]")
        keep(page, "space-recall")
        page.fill("#queries textarea", "en;a b;a\nen;b a;a\nde;b a;a")
        page.fill("#ks input, #ks textarea", "1,2")
        page.click("#measure")
        page.wait_for_function("document.querySelectorAll('#figures tr').length === 4")
        rows = [page.locator("#figures tr").nth(number).locator("td").all_inner_texts() for number in range(1, 4)]
        assert rows == [
            ["de", "1", "0.0000", "1.0000"],
            ["en", "2", "0.5000", "1.0000"],
            ["mean", "3", "0.2500", "1.0000"],
        ]
        page.fill("#ks input, #ks textarea", "3")
        page.click("#measure")
        playwright.expect(page.locator("#figures [role=alert]")).to_contain_text("recall at 3 cannot be told")
        text = page.content()
        assert not re.search(r"/(tmp|home|root|work)/", text)
