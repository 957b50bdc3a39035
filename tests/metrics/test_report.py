"""The report: what the page shows is what the result says, whole, safe, and without the net."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccrk.metrics.consistency import consistency, language_prevalence
from ccrk.metrics.mrv.rank_variation import mean_rank_variance
from ccrk.metrics.published import PUBLISHED
from ccrk.metrics.report import write_report
from ccrk.metrics.report_figures import check_results, compare, summarise
from ccrk.metrics.report_plots import heat_map, nice_ceiling
from ccrk.metrics.thumbnails import Thumbnails, thumbnail

spec = importlib.util.spec_from_file_location("pages", Path(__file__).resolve().parents[1] / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)
Page = pages.Page

HOSTILE = "<script>alert('1')</script> & \"zwei\" | [x](y) `z`"
IMAGES = 60
LANGUAGES = ("en", "de", "ja", "zh")


def evaluated(name: str = "a model", seed: int = 0, noise: float = 1.5, languages=LANGUAGES, folder=None) -> dict:
    """What an evaluation returns, from embeddings in which later languages are noisier; re-ranking denoises."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((IMAGES, 12))
    ranks: dict = {"plain": {}, "final": {}}
    found, recalls = {}, {"plain": {}, "final": {}}
    for number, tag in enumerate(languages):
        texts = images + noise * (1 + number / 3) * rng.standard_normal(images.shape)
        for kind, weight in (("plain", 1), ("final", 0.6)):
            scores = (images + weight * (texts - images)) @ images.T
            ranks[kind][tag] = (scores > np.diag(scores)[:, None]).sum(1).tolist()
            of_tag = {f"ir@{k}": float(np.mean(np.array(ranks[kind][tag]) < k)) for k in (1, 5, 10)}
            recalls[kind][tag] = {**of_tag, "queries": IMAGES}
        recalls["plain"][tag] |= {"tr@1": 0.25, "tr@5": 0.5, "tr@10": 0.75}
        found[tag] = np.argsort(-scores, axis=1)[:, :10].tolist()
    several = len(languages) > 1
    mrv = {kind: mean_rank_variance(ranks[kind]) if several else None for kind in ranks}
    return {
        "name": name,
        "benchmark": None,
        "protocol": "ccrk",
        "images": IMAGES,
        "texts": IMAGES * len(languages),
        "languages": recalls["plain"],
        "mrv": mrv["plain"],
        "reranked": {"top": 16, "score": "itm+sim", "languages": recalls["final"], "mrv": mrv["final"]},
        "curve": [
            {"top": 0, "languages": recalls["plain"], "mrv": mrv["plain"]},
            {"top": 16, "languages": recalls["final"], "mrv": mrv["final"]},
        ],
        "consistency": consistency(found, IMAGES) if several else None,
        "prevalence": language_prevalence([range(10)] * 3, [*languages, *languages] * 5, 10) if several else None,
        "items": {
            "image_ids": [f"id{number}" for number in range(IMAGES)],
            "images": [str(folder / f"{number}.png") if folder else None for number in range(IMAGES)],
            "texts": {tag: [f"{tag} {HOSTILE} {number}" for number in range(IMAGES)] for tag in languages},
            "ranks": ranks["final"],
            "plain_ranks": ranks["plain"],
            "found": found,
        },
        "skipped": {"images": 2, "captions": 3, "examples": [HOSTILE]},
        "settings": {"model": HOSTILE, "ties": "pessimistic", "wall_s": 1.23456789, "torch": "2.14.1"},
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(IMAGES):
        Image.effect_noise((90, 60), 40 + number).convert("RGB").save(folder / f"{number}.png")
    return folder


def without(result: dict, *keys: str) -> dict:
    return {**result, **dict.fromkeys(keys)}


# --- the page -----------------------------------------------------------------------------------------------------


def test_three_files_that_need_nothing(tmp_path: Path, photos: Path):
    result = evaluated(folder=photos)
    given = copy.deepcopy(result)
    paths = write_report(result, tmp_path / "new" / "folder")
    assert result == given
    assert {kind: path.name for kind, path in paths.items()} == {k: f"report.{k}" for k in ("json", "md", "html")}
    page = Page(paths["html"])
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & {tag for tag, _, _ in page.elements}
    assert not re.search(r"(?i)https?:|//[a-z]|@import|javascript:", re.sub(r"url\(data:[^)]*\)", "", page.source))
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not names & {"src", "href", "onclick", "onload", "onerror", "srcset"}
    urls = re.findall(r"url\(([^)]*)\)", page.source)
    assert urls and all(url.startswith("data:image/jpeg;base64,") for url in urls)
    assert len(urls) == len(set(urls)), "every photo is in the page once"
    again = write_report(result, tmp_path / "again")
    assert all(again[kind].read_bytes() == path.read_bytes() for kind, path in paths.items())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["report.html", "report.json", "report.md"]


def test_what_is_written_by_others_is_text(tmp_path: Path):
    result = evaluated(name=HOSTILE, languages=("en", "<b onclick=x>"))
    result["items"]["image_ids"] = [f"<i>{number}" for number in range(IMAGES)]
    paths = write_report([result, evaluated(name="</style><b>")], tmp_path, worst=3)
    page = Page(paths["html"])
    assert not {"script", "b onclick=x"} & {tag for tag, _, _ in page.elements}
    assert page.source.count("<i>") == 0 and page.source.count("</style>") == 1
    captions = [text for _, text in page.with_class("caption")]
    assert captions and all(re.fullmatch(rf"\S.* {re.escape(HOSTILE)} \d+", text, re.DOTALL) for text in captions)
    assert any(text.startswith(HOSTILE) for _, text in page.with_class("name"))
    lines = paths["md"].read_text(encoding="utf-8")
    assert "<script" not in lines and "<i>" not in lines and "[x](y)" not in lines
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines() if line.startswith("| <")}
    assert len(bars) <= 1, "a bar in a cell would be a column"


def test_recalls_on_the_page_are_those_of_the_result(tmp_path: Path):
    result = evaluated()
    page = Page(write_report(result, tmp_path)["html"])
    final = {tag: f"{100 * of['ir@1']:.1f}" for tag, of in result["reranked"]["languages"].items()}
    rows = [text for _, text in page.with_class("bar-row")]
    assert len(rows) == len(LANGUAGES)
    names = {"en": "English", "de": "German", "ja": "Japanese", "zh": "Chinese"}
    for tag, value in final.items():
        (row,) = (text for text in rows if text.startswith(names[tag]))
        assert value in row
    shown = [float(text[:5]) for _, text in page.with_class("value")]
    assert shown == sorted(shown, reverse=True)
    (worst,) = page.with_class("worst")
    assert "worst" in worst[1] and f"{min(map(float, final.values())):.1f}" in worst[1]
    widths = [float(re.search(r"width:([\d.]+)%", of["style"])[1]) for of, _ in page.with_class("fill")]
    assert widths == pytest.approx(shown, abs=0.06)
    before = [float(re.search(r"left:([\d.]+)%", of["style"])[1]) for of, _ in page.with_class("before")]
    assert sorted(before) == pytest.approx(sorted(100 * of["ir@1"] for of in result["languages"].values()), abs=0.01)
    (gap,) = (text for _, text in page.with_class("tile") if "best less worst" in text)
    values = list(map(float, final.values()))
    assert float(re.match(r"[\d.]+", gap)[0]) == pytest.approx(max(values) - min(values), abs=0.11)


def test_mrv_agreement_and_reranking_are_those_of_the_result(tmp_path: Path):
    result = evaluated()
    paths = write_report(result, tmp_path)
    page, written = Page(paths["html"]), json.loads(paths["json"].read_text())
    mrv = result["reranked"]["mrv"]["mrv"]
    (tile,) = (text for _, text in page.with_class("tile") if "MRV" in text)
    assert tile.startswith(f"{mrv:.2f}MRV, lower is better")
    model = written["models"][0]
    assert model["mrv"]["low"] < mrv < model["mrv"]["high"] and f"{model['mrv']['low']:.2f}" in tile
    assert model["spread"]["mean"] == pytest.approx(mrv)
    matrix = result["consistency"]["matrix"]
    cells = [text for tag, of, text in page.elements if tag == "td" and "rgba" in (of.get("style") or "")]
    expected = [f"{100 * v:.1f}" for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
    assert ["".join(text) for text in cells] == expected
    words = " ".join(model["words"])
    before, after = (np.mean([of["ir@1"] for of in point["languages"].values()]) for point in result["curve"])
    assert f"from {100 * before:.1f} % to {100 * after:.1f} %" in words
    assert f"MRV from {result['mrv']['mrv']:.2f} to {mrv:.2f}" in words
    assert f"have {10 * result['consistency']['agreement']:.1f} in common" in words
    most = max(result["prevalence"]["ratio"].values())
    assert f"has {most:.2f} times the places on the first page (10)" in words
    assert [point["mrv"] for point in model["rerank"]] == [result["mrv"]["mrv"], mrv]
    assert "lower is better" in " ".join(text for _, text in page.with_class("explained"))
    assert written["results"] == json.loads(json.dumps([result]))


def test_every_figure_says_how_it_was_measured(tmp_path: Path):
    page = Page(write_report(evaluated(), tmp_path)["html"])
    policies = " ".join(text for _, text in page.with_class("policy"))
    for part in ("text to image", "ties pessimistic", "en, de, ja, zh", "first 16 re-ranked by itm+sim"):
        assert part in policies, part
    text = "".join(page.texts("main"))
    for part in ("1.23457", "2.14.1", "skipped images", "standard deviation", HOSTILE):
        assert part in text, part


def test_the_worst_photos(tmp_path: Path, photos: Path):
    result = evaluated(folder=photos)
    page = Page(write_report(result, tmp_path, worst=5)["html"])
    table = np.array([result["items"]["ranks"][tag] for tag in LANGUAGES])
    order = np.argsort(-table.std(0), kind="stable")[:5]
    labels = [of["aria-label"] for of, _ in page.with_class("photo")]
    assert labels == [f"photo id{row}" for row in order]
    items = [text for _, text in page.with_class("item")]
    for row, text in zip(order, items, strict=True):
        assert f"standard deviation {table[:, row].std():.2f}" in text
        places = [int(place) for place in re.findall(r"place (\d+)", text)]
        assert places == sorted(table[:, row] + 1)
    assert not page.with_class("missing")
    right = [of["aria-label"] for of, _ in page.with_class("right")]
    hits = sum(row in result["items"]["found"][tag][row][:5] for row in order for tag in LANGUAGES)
    assert len(right) == hits and all(label.endswith(", the right one") for label in right)
    assert len(page.with_class("tiny")) == 5 * 4 * 5
    assert not Page(write_report(result, tmp_path, worst=0)["html"]).with_class("item")


def test_a_photo_that_cannot_be_read_is_grey_and_counted(tmp_path: Path, photos: Path):
    result = evaluated(folder=photos)
    table = np.array([result["items"]["ranks"][tag] for tag in LANGUAGES])
    gone, broken, unknown = np.argsort(-table.std(0), kind="stable")[:3]
    (photos / f"{gone}.png").unlink()
    data = (photos / f"{broken}.png").read_bytes()
    (photos / f"{broken}.png").write_bytes(data[: len(data) // 2])
    result["items"]["images"][unknown] = None
    paths = write_report(result, tmp_path)
    page, counts = Page(paths["html"]), json.loads(paths["json"].read_text())["photos"]
    missing = [of["aria-label"] for of, _ in page.with_class("missing")]
    assert {f"photo id{row}" for row in (gone, broken, unknown)} <= set(missing)
    assert counts["unreadable"] == 2 and counts["left_out"] == 0
    assert counts["unknown"] == sum(label.split(",")[0] == f"photo id{unknown}" for label in missing)
    assert "2 could not be read and are grey" in "".join(page.texts("main"))
    plain = write_report(result, tmp_path / "plain", photos=False)
    page = Page(plain["html"])
    assert "base64" not in page.source and not page.with_class("tiny") and len(page.with_class("item")) == 12
    assert json.loads(plain["json"].read_text())["photos"] is None


def test_thumbnails_are_small_upright_and_few(tmp_path: Path):
    path = tmp_path / "large.jpg"
    image = Image.effect_noise((1200, 800), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(path, exif=exif)
    data = thumbnail(str(path), 160)
    (tmp_path / "small.jpg").write_bytes(data)
    with Image.open(tmp_path / "small.jpg") as small:
        assert small.size == (107, 160) and small.format == "JPEG"
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear)
    (tmp_path / "clear.jpg").write_bytes(thumbnail(str(clear), 160))
    with Image.open(tmp_path / "clear.jpg") as opened:
        assert opened.getpixel((4, 4)) == (255, 255, 255)
    thumbnails = Thumbnails(budget=1)
    assert thumbnails.name(str(path), 160) == thumbnails.name(str(path), 96) == "p0"
    assert thumbnails.name(str(clear), 160) is None
    assert thumbnails.counts() == {"shown": 1, "unreadable": 0, "unknown": 0, "left_out": 1}
    (tmp_path / "text.jpg").write_text("no photo")
    assert thumbnail(str(tmp_path / "text.jpg"), 160) is None and thumbnail(str(tmp_path), 160) is None


# --- what may be missing ------------------------------------------------------------------------------------------


def test_one_language(tmp_path: Path):
    paths = write_report(evaluated(languages=("de",)), tmp_path)
    page, model = Page(paths["html"]), json.loads(paths["json"].read_text())["models"][0]
    assert page.ids() == ["short", "recall", "rerank", "settings"]
    assert model["mrv"] is None and model["spread"] is None and model["worst"] == [] and model["diagnoses"] == []
    assert "with one there is no MRV" in " ".join(model["words"]) and "Asked in German" in model["words"][0]


def test_one_direction_re_ranked_is_said(tmp_path: Path):
    result = evaluated()
    assert summarise(check_results(result)[0])["ranking"].endswith("image to text by embeddings alone)")
    for figures in result["reranked"]["languages"].values():
        figures["tr@1"] = 0.5
    assert summarise(check_results(result)[0])["ranking"].endswith("the rest by embeddings")


def test_no_reranking(tmp_path: Path):
    result = without(evaluated(), "reranked", "curve")
    result["items"]["ranks"] = result["items"]["plain_ranks"]
    paths = write_report(result, tmp_path)
    page, model = Page(paths["html"]), json.loads(paths["json"].read_text())["models"][0]
    assert "rerank" not in page.ids() and not page.with_class("before")
    assert model["ranking"] == "by embeddings" and model["mrv"]["mrv"] == result["mrv"]["mrv"]
    assert model["recall"]["languages"]["de"]["ir@1"] == result["languages"]["de"]["ir@1"]
    assert "re-ranking" not in "".join(page.texts("main")).lower()


def test_no_mrv_no_items_no_consistency(tmp_path: Path):
    result = without(
        evaluated(), "mrv", "items", "consistency", "prevalence", "skipped", "settings", "benchmark", "texts"
    )
    result["reranked"]["mrv"] = None
    for point in result["curve"]:
        point["mrv"] = None
    paths = write_report([result, evaluated("another")], tmp_path)
    page, written = Page(paths["html"]), json.loads(paths["json"].read_text())
    assert written["comparisons"][0]["hits"] is None and written["comparisons"][0]["items"] == 0
    assert "nothing" not in written["models"][0]["words"] and len(written["models"][0]["words"]) == 3
    assert "no photo and language in common" in "".join(page.texts("main"))
    alone = Page(write_report(result, tmp_path / "alone")["html"])
    assert alone.ids() == ["short", "recall", "rerank", "settings"]
    assert not alone.with_class("whisker")


def test_captions_that_are_missing(tmp_path: Path):
    result = evaluated()
    for kind in ("texts", "ranks", "plain_ranks", "found"):
        result["items"][kind]["ja"][:50] = [None] * 50
    result["items"]["ranks"]["zh"] = result["items"]["ranks"]["de"] = [None] * IMAGES
    table = np.array([result["items"]["ranks"][tag] for tag in ("en", "ja")], dtype=float)[:, 50:]
    spread, rows = summarise(check_results(result)[0])["spread"], summarise(check_results(result)[0])["worst"]
    assert spread["items"] == 10 and spread["left_out"] == 50
    assert spread["mean"] == pytest.approx(table.std(0).mean())
    page = Page(write_report(result, tmp_path)["html"])
    assert len(page.with_class("item")) == len(rows) <= 10
    assert all("No rank in de, zh." in text for _, text in page.with_class("item"))


def test_photos_with_several_captions_keep_their_recall():
    result = evaluated()
    result["reranked"]["languages"]["de"]["ir@1"] = 0.9
    row = summarise(check_results(result)[0])["recall"]["languages"]["de"]
    first = np.mean(np.array(result["items"]["ranks"]["de"]) < 1)
    assert row["ir@1"] == 0.9 and row["low"] < 0.9 < row["high"]
    assert row["low"] - 0.9 == pytest.approx(-1.96 * np.sqrt(first * (1 - first) / IMAGES), abs=0.04)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": {}}, "result 1 .'a model'. has no 'languages'"),
        ({"languages": {"de": {"ir@5": 1.0}}}, "no 'ir@1' of 'de'"),
        ({"items": {"image_ids": []}}, "without 'image_ids' or 'ranks'"),
        ({"items": {"image_ids": ["a"], "ranks": {"de": [1, 2]}}}, "2 entries in ranks of 'de', but 1 image ids"),
        ({"items": {"image_ids": ["a"], "ranks": {"de": [-1]}}}, "negative rank in 'de'"),
        ({"items": {"image_ids": ["a"], "ranks": {"de": [0]}, "found": {"de": [[1]]}}}, "none of the 1 images"),
        ({"items": {"image_ids": ["a"], "images": [], "ranks": {}, "found": {}}}, None),
        ({"items": {"image_ids": ["a"], "images": ["b", "c"], "ranks": {}}}, "2 images, but 1 image ids"),
    ],
)
def test_results_that_are_wrong(change: dict, message: str | None):
    result = {**evaluated(), **change}
    if message is None:
        assert check_results(result)
        return
    with pytest.raises(ValueError, match=message):
        check_results(result)


def test_arguments_and_folders_that_are_wrong(tmp_path: Path):
    with pytest.raises(ValueError, match="no result"):
        write_report([], tmp_path)
    with pytest.raises(ValueError, match="result 2 is a str"):
        write_report([evaluated(), "a"], tmp_path)
    with pytest.raises(ValueError, match="worst is -1"):
        write_report(evaluated(), tmp_path, worst=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the report"):
        write_report(evaluated(), tmp_path / "file")


def test_values_that_json_cannot_hold(tmp_path: Path):
    result = evaluated()
    result["consistency"]["matrix"][0][1] = result["consistency"]["matrix"][1][0] = float("nan")
    result["settings"] |= {"loss": np.float32(0.5), "path": tmp_path, "half": "\ud83d"}
    paths = write_report(result, tmp_path)
    written = json.loads(paths["json"].read_text())
    assert written["results"][0]["consistency"]["matrix"][0][1] is None
    assert written["models"][0]["settings"]["loss"] == 0.5 and written["models"][0]["settings"]["half"] == "?"
    assert "–" in Page(paths["html"]).texts("td")


# --- several models -----------------------------------------------------------------------------------------------


def test_models_side_by_side(tmp_path: Path, photos: Path):
    results = [evaluated("good", folder=photos), evaluated("bad", 1, 3.0, folder=photos), evaluated("good", 2)]
    paths = write_report(results, tmp_path, worst=2)
    page, written = Page(paths["html"]), json.loads(paths["json"].read_text())
    assert [model["name"] for model in written["models"]] == ["good", "bad", "good (2)"]
    assert len(written["comparisons"]) == 2
    assert len(page.with_class("fill")) == 3 * len(LANGUAGES)
    assert {"worst-1", "worst-2", "worst-3"} <= set(page.ids()) and len(page.ids()) == len(set(page.ids()))
    comparison = written["comparisons"][0]
    tables = [np.array([r["items"]["ranks"][tag] for tag in LANGUAGES]).T for r in results[:2]]
    means = [(table < 1).mean() for table in tables]
    assert comparison["hits"]["difference"] == pytest.approx(means[1] - means[0])
    assert comparison["hits"]["high"] < 0 and comparison["hits"]["p"] < 0.01
    variation = tables[1].std(1).mean() - tables[0].std(1).mean()
    assert comparison["variation"]["difference"] == pytest.approx(variation)
    assert comparison["items"] == IMAGES and list(comparison["languages"]) == list(LANGUAGES)
    for part in (f"{100 * (means[1] - means[0]):+.1f}".replace("-", "\N{MINUS SIGN}"), f"{variation:+.2f}"):
        assert part in page.texts("td"), part
    assert comparison["words"].startswith("bad finds fewer photos first than good.")
    assert "do not measurably differ" not in comparison["words"]
    lines = paths["md"].read_text(encoding="utf-8")
    assert "## bad beside good" in lines and "## good (2) beside good" in lines


def test_pairs_are_matched_by_image_id():
    one = evaluated("one")
    other = copy.deepcopy(one)
    other["name"] = "other"
    order = np.random.default_rng(0).permutation(IMAGES)
    columns = {tag: [column[row] for row in order] for tag, column in one["items"]["ranks"].items()}
    other["items"] |= {"image_ids": [one["items"]["image_ids"][row] for row in order], "ranks": columns}
    same = compare(one, other)
    assert same["hits"]["difference"] == 0 and same["variation"]["difference"] == 0 and same["hits"]["p"] == 1
    other["items"] = {
        "image_ids": [*other["items"]["image_ids"][:40], *(f"x{number}" for number in range(5))],
        "ranks": {tag: [*column[:40], *[0] * 5] for tag, column in columns.items() if tag != "zh"},
    }
    part = compare(one, other)
    assert part["items"] == 40 and part["only"] == [20, 5] and list(part["languages"]) == ["en", "de", "ja"]
    assert part["hits"]["difference"] == 0 and part["variation"]["items"] == 40
    twice = copy.deepcopy(one)
    twice["items"]["image_ids"] = ["same"] * IMAGES
    assert compare(twice, twice)["items"] == IMAGES


# --- published figures --------------------------------------------------------------------------------------------


def benchmark(name: str, images: int, languages) -> dict:
    rng = np.random.default_rng(0)
    ranks = {tag: rng.integers(0, 20, images).tolist() for tag in languages}
    recalls = {f"{way}@{k}": 0.1 * k for way in ("ir", "tr") for k in (1, 5, 10)}
    figures = {tag: {**recalls, "ir@1": 0.3 + 0.1 * number} for number, tag in enumerate(languages)}
    items = {"image_ids": list(range(images)), "ranks": ranks}
    return {"name": "own", "benchmark": name, "images": images, "languages": figures, "items": items}


def test_published_figures_stand_beside_ones_own(tmp_path: Path):
    result = benchmark("xflickrco", 2000, ("en", "de", "es", "id", "ja", "ru", "tr", "zh"))
    paths = write_report(result, tmp_path)
    table = json.loads(paths["json"].read_text())["models"][0]["published"]
    mrv = mean_rank_variance({tag: result["items"]["ranks"][tag] for tag in ("en", "de", "ja", "zh")})["mrv"]
    assert table["own"] == pytest.approx([100 * np.mean([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), 10, mrv])
    assert ["CCR10-E", "fine-tuned on English only", 73.30, 72.64, 7.89] in table["rows"]
    page = Page(paths["html"])
    text = "".join(page.texts("main"))
    assert "Table 1 of the CCRk paper" in text and "73.30" in text and f"{mrv:.2f}" in text
    assert "7.89" in paths["md"].read_text()
    multi30k = benchmark("multi30k", 1000, ("en", "de", "fr", "cs"))
    own = summarise(check_results(multi30k)[0])["published"]["own"]
    assert own[:2] == pytest.approx([100 * (0.3 + 0.5 + 1 + 0.1 + 0.5 + 1) / 6, 100 * (0.4 + 0.5 + 1 + 1.6) / 6])


def test_published_figures_only_where_they_are_of_the_same_thing():
    languages = ("en", "de", "fr", "cs")
    assert summarise(check_results(benchmark("multi30k", 1000, languages))[0])["published"]
    for other in (
        benchmark("multi30k", 999, languages),
        benchmark("multi30k", 1000, languages[:3]),
        benchmark("coco", 1000, languages),
    ):
        assert summarise(check_results(other)[0])["published"] is None
    for table in PUBLISHED.values():
        assert {len(row) for row in table["rows"]} == {2 + len(table["columns"])}


# --- plots --------------------------------------------------------------------------------------------------------


def test_the_spread_is_binned_in_powers_of_two():
    result = evaluated(languages=("en", "de"))
    halves = [0, 0, 0.5, 1, 1.5, 2, 3.5, 4, 50] + [0] * (IMAGES - 9)
    result["items"]["ranks"] = {"en": [0] * IMAGES, "de": [2 * half for half in halves]}
    spread = summarise(check_results(result)[0])["spread"]
    assert np.array(spread["shares"]) * IMAGES == pytest.approx([2 + IMAGES - 9, 1, 2, 2, 1, 0, 0, 1])
    assert spread["still"] == spread["shares"][0] and spread["largest"] == 50
    assert spread["half"] == pytest.approx(1 / IMAGES)


def test_axes_and_shades():
    assert [nice_ceiling(v) for v in (0, 0.07, 1, 1.1, 12, 100, 61)] == [1, 0.08, 1, 1.2, 12, 100, 80]
    same = heat_map({"languages": ["en", "de"], "matrix": [[1, 0.5], [0.5, 1]]})
    assert same.count("50.0") == 2 and "nan" not in same
