"""The page without a browser: what it escapes, what of Gradio can be reached, and that no event opens a file."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image

from ccrk.serving.page_html import card, comparison, said, text

SECRET = "this line stands outside of the gallery"  # as in conftest.py


@pytest.fixture(scope="module")
def page(serve):
    with serve(page=True) as client:
        yield client


def test_it_is_there_and_names_no_other_place(page):
    answer = page.get("/")
    assert answer.status_code == 200 and "ccrk search" in answer.text
    for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", answer.text):
        assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), tag
    config = page.get("/config").json()
    assert config["analytics_enabled"] is False and "fonts.g" not in page.get("/theme.css").text
    assert page.get("/openapi.json").json()["paths"].keys() == {
        "/search", "/search/image", "/compare", "/similar/{id}", "/items/{id}", "/images/{id}", "/health", "/info",
        "/metrics",
    }  # fmt: skip


CLOSED = [
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/file=PLACE/secret.txt"),
    ("GET", "/gradio_api/file=http://127.0.0.1/"),
    ("GET", "/file=/etc/passwd"),
    ("GET", "/gradio_api/file//etc/passwd"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/upload_progress"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("POST", "/gradio_api/call/search"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/vibe-edit/"),
    ("POST", "/gradio_api/run-history/connect"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/gradio_api/deep_link"),
    ("GET", "/gradio_api/custom_component/1/client/component/../../../../etc/passwd"),
    ("GET", "/monitoring"),
    ("GET", "/monitoring/summary"),
    ("GET", "/svelte/x"),
    ("GET", "/static/%2e%2e/%2e%2e/%2e%2e/__init__.py"),
    ("GET", "/assets/..%2f..%2f..%2f__init__.py"),
    ("POST", "/login"),
    ("GET", "/gradio_api/stream/a/b/c/playlist.m3u8"),
    ("GET", "/gradio_api/heartbeat/../../etc"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_the_rest_of_gradio_is_closed(page, place, method, path):
    answer = page.request(
        method, path.replace("PLACE", str(place)), **({"content": b"{}"} if method == "POST" else {})
    )
    assert answer.status_code in (404, 405), answer.text
    assert SECRET not in answer.text and "root:" not in answer.text


def find(page, component: str, event: str = "click") -> int:
    """Number of the function that an event of a component runs."""
    config = page.get("/config").json()
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    return next(d["id"] for d in config["dependencies"] if [ids[component], event] in map(list, d["targets"]))


def run(page, component: str, data: list, event_data=None, session: str = "s1"):
    """What an event gives back, as a browser would get it; None if it was refused or failed."""
    body = {"data": data, "fn_index": find(page, component), "session_hash": session, "event_data": event_data}
    joined = page.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        assert joined.status_code < 500, joined.text
        return None
    with page.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message["output"].get("data") if message["success"] else None
    return None


def filters(*pairs: tuple[str, str]) -> list[str]:
    return [part for pair in (*pairs, *[("", "")] * (2 - len(pairs))) for part in pair]


def address(size=(40, 30)) -> str:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def cards(html: str) -> list[str]:
    return re.findall(r'data-id="([^"]*)"', html)


def test_search_filter_photo_and_more(page):
    told, grid = run(page, "search", ["a dog", "", 0.5, 4, *filters()])[:2]
    expected = [h["id"] for h in page.post("/search", json={"queries": "a dog", "k": 4}).json()["results"][0]["hits"]]
    assert cards(grid) == [text(i) for i in expected] and "4 found for “a dog”" in told
    told, grid = run(page, "search", ["a dog", "", 0.5, 60, *filters(("width", "50..60"), ("height", "40.."))])[:2]
    where = {"width": {"min": 50, "max": 60}, "height": {"min": 40}}
    answer = page.post("/search", json={"queries": "a dog", "k": 60, "where": where}).json()["results"][0]["hits"]
    assert cards(grid) == [text(h["id"]) for h in answer] and answer
    told, grid = run(page, "search", ["a dog", address(), 0.2, 3, *filters()])[:2]
    assert "“a dog” and your photo" in told and len(cards(grid)) == 3
    told, grid = run(page, "results", [3, *filters()], {"id": "03.png"})[:2]
    similar = page.get("/similar/03.png", params={"k": 3}).json()["hits"]
    assert cards(grid) == [text(h["id"]) for h in similar] and "3 most like 03.png" in told


def test_comparison(page):
    pairs = ["en", "a dog in the snow", "de", "ein Hund im Schnee", "fr", "un chat noir", "", ""]
    told, shown = run(page, "compare", [4, *pairs])
    found = page.post("/compare", json={"queries": {"en": pairs[1], "de": pairs[3], "fr": pairs[5]}, "k": 4}).json()
    assert f"<b>{found['mrv']:.2f}</b>" in shown and "3 languages" in told and shown.count("<section>") == 3
    assert len(cards(shown)) == 12 and shown.count("<tr>") == 1 + len(found["items"])


WRONG = {
    "nothing": ("search", ["", "", 0.5, 5, *filters()], "Write what you are looking for"),
    "a photo that is none": ("search", ["", "data:image/jpeg;base64,AAAA", 0.5, 5, *filters()], "not a photo"),
    "a photo by its path": ("search", ["", "/etc/passwd", 0.5, 5, *filters()], "did not arrive"),
    "an SVG": ("search", ["", "data:image/svg+xml;base64,AAAA", 0.5, 5, *filters()], "did not arrive"),
    "no base64": ("search", ["", "data:image/jpeg;base64,***", 0.5, 5, *filters()], "did not arrive"),
    "an unknown column": ("search", ["a", "", 0.5, 5, *filters(("path", "/"))], ""),
    "no number": ("search", ["a", "", 0.5, 5, *filters(("width", "wide"))], "a whole number"),
    "deep JSON": ("search", ["a", "", 0.5, 5, *filters(("width", "[" * 50_000))], ""),
    "k beyond the limit": ("search", ["a", "", 0.5, 10**6, *filters()], ""),
    "no such item": ("results", [5, *filters()], "there is no item"),
    "one language": ("compare", [5, "en", "a dog", "", "", "", "", "", ""], "at least two languages"),
    "a language twice": ("compare", [5, "en", "a", "en", "b", "", "", "", ""], "there twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(page, name):
    component, data, message = WRONG[name]
    answer = run(page, component, data, {"id": "../secret.txt"} if component == "results" else None)
    if message:
        assert message in answer[0].replace("&#x27;", "'") and "wrong" in answer[0]
    assert page.get("/health").status_code == 200


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}, "orig_name": "passwd"}
EVENTS = {
    "a file": [FILE, "", 0.5, 5, *filters()],
    "a file in the place of the photo": ["a", FILE, 0.5, 5, *filters()],
    "an address": [{**FILE, "path": "http://127.0.0.1:1/", "url": "http://127.0.0.1:1/"}, "", 0.5, 5, *filters()],
    "a file in a list": [[FILE], "", 0.5, 5, *filters()],
    "an object": [{"a": 1}, "", 0.5, 5, *filters()],
    "too few": ["a"],
    "too many": ["a"] * 100,
    "numbers": [1, 2, 3, 4, 5, 6, 7, 8],
    "nulls": [None] * 8,
    "texts in the place of numbers": ["a", "", "b", "c", *filters()],
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_that_the_page_never_sends(page, name):
    answer = run(page, "search", EVENTS[name], session=f"s-{name[:4]}")
    assert "root:" not in json.dumps(answer) and page.get("/health").status_code == 200
    if "file" in name or "address" in name or "object" in name:
        assert answer is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"data": 5}', b'{"data": [], "fn_index": 99999, "session_hash": "x"}', b"[" * 10_000,
     b'{"data": [], "fn_index": -1, "session_hash": "x"}', b'{"data": [], "fn_index": "a", "session_hash": "x"}',
     b'{"data": [], "session_hash": {"a": 1}, "fn_index": 1}', b'{"fn_index": 1}', b'\xff\xfe'],
)  # fmt: skip
def test_events_that_are_none(page, body):
    answer = page.post("/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text


HOSTILE = [
    '<script>alert(1)</script>"',
    "'><img src=x onerror=alert(1)>",
    "${alert(1)}",
    "{{constructor}}",
    "`;`",
    "&lt;",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_what_others_wrote_is_escaped(words):
    hit = {"id": words, "text": words, "image": None, "score": 0.5}
    photo = {"id": words, "image": f"/images/{words}", "score": 0.5}
    found = {
        "languages": [{"language": words, "query": words, "hits": [hit]}],
        "mrv": 0.0, "agreement": 1.0, "k": 1, "depth": 1,
        "items": [{"id": words, "ranks": {words: 0}, "std": 0.0}],
    }  # fmt: skip
    for made in (card(hit, 1), card(photo, 1), said(words), said("x", image=words), comparison(found, {words: photo})):
        assert words not in made
        assert not re.search(r"<script|<img src=x|\$\{|\{\{|`|onerror=alert\(1\)>", made)
        allowed = r"</?(?:div|button|img|span|b|section|h3|small|table|caption|thead|tbody|tr|th|td)\b[^<>]*>"
        assert not re.search(r"[<>]", re.sub(allowed, "", made)), made


def test_the_token_guards_the_page(serve):
    with serve(page=True, token="the-token-of-the-page") as client:
        assert client.get("/", headers={"Accept": "text/html"}, follow_redirects=False).headers["location"] == "login"
        for path in ("/config", "/theme.css", "/gradio_api/queue/data", "/assets/x.js"):
            assert client.get(path).status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        client.post("/login", data={"token": "the-token-of-the-page"})
        assert "ccrk search" in client.get("/").text


def test_texts_have_a_page_as_well(serve):
    with serve("texts", page=True) as client:
        _, grid = run(client, "search", ["a dog", "", 0.5, 3, *filters(("language", "a"))])[:2]
        assert "a dog in the snow" in grid and "<img" not in grid
