"""The page of search results: what it shows, and that it is whole or not there."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from ccrk.evaluation.search_page import write_search_page

spec = importlib.util.spec_from_file_location("pages", Path(__file__).resolve().parents[1] / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)
Page = pages.Page

HOSTILE = "<script>alert('1')</script> & \"zwei\" rote Sterne"


def result(color: str, *, correct: bool = False, score: float = 0.5, size: int = 16) -> dict:
    return {
        "image": Image.new("RGB", (size, size), color),
        "caption": f"a {color} <square>",
        "score": score,
        "correct": correct,
    }


def row(language: str, text: str, *results: dict) -> dict:
    return {"language": language, "language_name": f"name of {language}", "text": text, "results": list(results)}


@pytest.fixture
def queries() -> list[dict]:
    return [
        {
            "heading": "first & foremost",
            "rows": [
                row("de", HOSTILE, result("red", correct=True, score=0.9), result("blue"), result("lime")),
                row("zh", "一个红色的圆形", result("blue"), result("red", correct=True), result("lime")),
            ],
        },
        {"heading": "second", "rows": [row("tr", "üç kırmızı yıldız", result("blue"), result("lime"))]},
    ]


def test_every_query_is_there_escaped_and_in_its_language(tmp_path: Path, queries: list[dict]) -> None:
    path = write_search_page(tmp_path / "page.html", title="A <title>", intro="5 < 6", queries=queries)
    page = Page(path)
    assert [(attributes["lang"], text) for attributes, text in page.with_class("query")] == [
        ("de", HOSTILE),
        ("zh", "一个红色的圆形"),
        ("tr", "üç kırmızı yıldız"),
    ]
    assert page.texts("h1") == page.texts("title") == ["A <title>"]
    assert page.texts("h2") == ["first & foremost", "second"]
    assert page.with_class("intro")[0][1] == "5 < 6"
    assert "script" not in {tag for tag, _, _ in page.elements}
    assert "name of zh" in page.with_class("language")[1][1]


def test_the_correct_picture_is_marked_and_its_place_is_told(tmp_path: Path, queries: list[dict]) -> None:
    page = Page(write_search_page(tmp_path / "page.html", title="t", intro="i", queries=queries))
    marked = ["correct" in attributes["class"].split() for attributes, _ in page.with_class("result")]
    assert marked == [True, False, False, False, True, False, False, False]
    assert [text.startswith("✓") for _, text in page.with_class("result")] == marked
    assert [text for _, text in page.with_class("place")] == [
        "found in place 1",
        "found in place 2",
        "not among the first 2",
    ]
    assert page.with_class("facts")[0][1] == "1.0.900"
    assert [text for _, text in page.with_class("caption")][:2] == ["a red <square>", "a blue <square>"]


def test_each_distinct_picture_is_inside_once(tmp_path: Path, queries: list[dict]) -> None:
    page = Page(write_search_page(tmp_path / "page.html", title="t", intro="i", queries=queries))
    found = dict(re.findall(r"\.(p\d+) \{ background-image: url\(data:image/png;base64,([^)]+)\)", page.source))
    assert len(found) == page.source.count("data:image/") == 3
    colors = {name: Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) for name, data in found.items()}
    shown = [colors[attributes["class"].split()[1]] for attributes, _ in page.with_class("photo")]
    red, blue, lime = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    assert shown == [red, blue, lime, blue, red, lime, blue, lime]
    assert all(attributes["aria-label"].endswith("<square>") for attributes, _ in page.with_class("photo"))


def test_the_page_needs_nothing_from_outside(tmp_path: Path, queries: list[dict]) -> None:
    page = Page(write_search_page(tmp_path / "page.html", title="t", intro="i", queries=queries))
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _, _ in page.elements}
    assert not re.search(r"https?:|@import|url\((?!data:)", page.source)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}, []) in page.elements
    assert "prefers-color-scheme: dark" in page.source


def test_photographs_are_scaled_and_stay_as_they_were(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (800, 400), os.urandom(800 * 400 * 3))
    grey = Image.new("L", (8, 8), 100)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    results = [{"image": image, "caption": "c", "score": 1, "correct": False} for image in (noise, grey, clear)]
    source = write_search_page(
        tmp_path / "page.html", title="t", intro="i", queries=[{"heading": "h", "rows": [row("en", "q", *results)]}]
    ).read_text("utf-8")
    assert (noise.size, grey.mode, clear.mode) == ((800, 400), "L", "RGBA")
    kinds, data = zip(*re.findall(r"url\(data:image/(\w+);base64,([^)]+)\)", source), strict=True)
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in data]
    assert kinds == ("jpeg", "png", "png")
    assert images[0].size == (320, 160)
    assert images[1].convert("L").getpixel((0, 0)) == 100
    assert images[2].convert("RGBA").getpixel((0, 0))[3] == 0


def test_tables(tmp_path: Path) -> None:
    tables = [
        {
            "title": "recall <k>",
            "header": ["language", "ir@1", "n"],
            "rows": [["de & co", 0.91234567, 500], ["zh", 1.0, 20], ["all", None, True]],
        }
    ]
    page = Page(write_search_page(tmp_path / "page.html", title="t", intro="i", queries=[], tables=tables))
    assert page.texts("h2") == ["recall <k>"]
    assert page.texts("th") == ["language", "ir@1", "n"]
    assert page.texts("td") == ["de & co", "0.9123", "500", "zh", "1", "20", "all", "–", "True"]
    assert [text for _, text in page.with_class("number")] == ["0.9123", "500", "1", "20"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda queries: queries[0].pop("rows"), "query 1 has no 'rows'"),
        (lambda queries: queries[0]["rows"][1].pop("text"), "query 1, row 2 has no 'text'"),
        (lambda queries: queries[1]["rows"][0]["results"][1].pop("score"), "query 2, row 1, result 2 has no 'score'"),
        (lambda queries: queries[1]["rows"][0]["results"][0].update(image="a.jpg"), "'image' of type str"),
        (lambda queries: queries.insert(0, "q"), "query 1 is a str"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, queries: list[dict], change, words: str) -> None:
    change(queries)
    with pytest.raises(ValueError, match=words):
        write_search_page(tmp_path / "page.html", title="t", intro="i", queries=queries)
    assert list(tmp_path.iterdir()) == []


def test_a_short_table_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table 1 \('recall'\), row 2 has 1 cells \(expected 2"):
        write_search_page(
            tmp_path / "page.html",
            title="t",
            intro="i",
            queries=[],
            tables=[{"title": "recall", "header": ["a", "b"], "rows": [[1, 2], [1]]}],
        )


def test_an_older_page_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "page.html"
    assert write_search_page(str(path), title="old", intro="i", queries=[]) == path
    write_search_page(path, title="new", intro="i", queries=[])
    assert Page(path).texts("h1") == ["new"]
    assert list(path.parent.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"cannot write the page '.*file/page.html'"):
        write_search_page(tmp_path / "file" / "page.html", title="t", intro="i", queries=[])
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match=r"cannot write the page '.*page.html'.*expected a file name in a folder"):
        write_search_page(tmp_path / "page.html", title="t", intro="i", queries=[])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "page.html"]
