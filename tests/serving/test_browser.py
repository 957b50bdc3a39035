"""The page in a real browser: a query in three languages, a filter, more like this, a photo, a comparison.

`CCRK_SCREENSHOTS=FOLDER` keeps a picture of each step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60_000  # ms
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
QUERIES = {"en": "a dog in the snow", "de": "ein Hund im Schnee", "fr": "un chat noir"}


@pytest.fixture(scope="module")
def browser():
    """A browser of this machine, or the one that `playwright install chromium` brings."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """One visit to the page: what the browser asked for, and what it complained about."""

    def __init__(self, browser, port: int, size: dict = WIDE):
        self.address = f"http://127.0.0.1:{port}/"
        self.page = browser.new_page(viewport=size)
        self.page.set_default_timeout(PATIENCE)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", lambda r: self.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.goto(self.address)

    def keep(self, name: str) -> None:
        """A picture of what is seen now, if somebody wants it."""
        folder = os.environ.get("CCRK_SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def said(self, words: str, place: str = "[role=status]:visible") -> None:
        """Waits until the page says this."""
        playwright.expect(self.page.locator(place).first).to_contain_text(words, timeout=PATIENCE)

    def found(self, place: str = "#results") -> list[str]:
        """Ids of what is shown."""
        cards = self.page.locator(f"{place} [data-id]")
        return [cards.nth(number).get_attribute("data-id") for number in range(cards.count())]

    def end(self) -> None:
        """Nothing went elsewhere, and nothing went wrong."""
        others = [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]
        assert not others
        assert not self.complaints
        self.page.close()


@pytest.fixture
def visit(browser, make_app, listening):
    with listening(make_app("lance", page=True)) as port:
        visit = Visit(browser, port)
        yield visit
        visit.end()


def expected(search, uris, query, **options):
    return [hit["id"] for hit in search(uris["lance"])(query, **options)]


def photos_are_there(visit: Visit, place: str) -> None:
    """All photos that the gallery may show are loaded."""
    visit.page.wait_for_function(
        f"[...document.querySelectorAll('{place} img')].filter(i => i.complete && i.naturalWidth).length > 2",
        timeout=PATIENCE,
    )


def test_search_in_three_languages(visit, search, uris):
    number = visit.page.get_by_label("number input for Results")
    number.fill("6")
    number.press("Tab")
    for query in QUERIES.values():
        visit.page.fill("#query textarea", query)
        visit.page.click("#search")
        visit.said(f"“{query}”")
        wanted = expected(search, uris, query, top_k=6)
        assert visit.found() == wanted
    photos_are_there(visit, "#results")
    visit.keep("search")


def test_filter_and_more_like_this(visit, search, uris):
    visit.page.fill("#query textarea", "a dog")
    visit.page.get_by_text("Filters").click()
    visit.page.get_by_label("Column 1").click()
    visit.page.get_by_role("option", name="width").click()
    visit.page.get_by_label("Value 1").fill("50..60")
    visit.page.click("#search")
    visit.said("found for “a dog”")
    wanted = expected(search, uris, "a dog", top_k=24, where={"width": {"min": 50, "max": 60}})
    assert visit.found() == wanted and 0 < len(wanted) < 18
    visit.keep("filter")
    chosen = wanted[0]
    visit.page.locator(f'#results [data-id="{chosen}"]').click()
    visit.said(f"most like {chosen}")
    assert chosen not in visit.found() and len(visit.found()) == len(wanted) - 1, "the filter holds"
    visit.keep("more")


def test_a_photo(visit, place):
    visit.page.set_input_files("#photo input", place / "photos" / "03.png")
    visit.page.wait_for_selector("#photo img")
    visit.page.click("#search")
    visit.said("your photo")
    assert "03.png" in visit.found()[:3], "resized by the browser, it still finds itself"
    visit.keep("photo")
    visit.page.locator("#photo button").click()
    visit.page.wait_for_selector("#photo img", state="detached")
    visit.page.click("#search")
    visit.said("Write what you are looking for")


def test_comparison(visit, search, uris):
    visit.page.get_by_role("tab", name="Compare languages").click()
    for number, (language, query) in enumerate(QUERIES.items(), 1):
        visit.page.get_by_label(f"Language {number}").fill(language)
        visit.page.get_by_label(f"Query {number}").fill(query)
    visit.page.click("#compare")
    visit.said("3 languages compared")
    wanted = [i for query in QUERIES.values() for i in expected(search, uris, query, top_k=6)]
    assert visit.found("#comparison") == wanted
    headers = visit.page.locator(".ccrk-spread th").all_inner_texts()
    assert headers == ["item", *QUERIES, "spread"]
    photos_are_there(visit, "#comparison")
    visit.keep("comparison")
    chosen = next(i for i in wanted if i.endswith(".png") and i[0].isdigit())
    visit.page.locator(f'#comparison [data-id="{chosen}"]').first.click()
    visit.said(f"most like {chosen}")
    assert visit.page.get_by_role("tab", name="Search").get_attribute("aria-selected") == "true"


def test_the_login_page(browser, make_app, listening):
    token = "the-token-of-the-page"
    with listening(make_app("lance", page=True, token=token)) as port:
        visit = Visit(browser, port, NARROW)
        visit.page.fill("#token", "wrong wrong wrong")
        visit.page.click("button")
        visit.said("not the token", "[role=alert]")
        visit.keep("login")
        visit.page.fill("#token", token)
        visit.page.click("button")
        visit.page.fill("#query textarea", "a dog")
        visit.page.click("#search")
        visit.said("found for “a dog”")
        photos_are_there(visit, "#results")
        visit.keep("narrow")
        visit.complaints = [c for c in visit.complaints if "401" not in c]
        visit.end()
