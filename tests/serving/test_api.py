"""The API over real galleries: answers are those of the pipeline, errors are JSON with a cause."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import io
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

from ccrk import CCRkModel, CCRkRetrievalPipeline
from ccrk.metrics import mean_rank_variance
from ccrk.serving.guards import TrafficGuard
from ccrk.serving.options import ServingOptions
from ccrk.serving.photos import PhotoReader

spec = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).parents[1] / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

QUERIES = ["a dog in the snow", "ein Hund im Schnee", "un chat noir"]


def scores(hits):
    return [hit["score"] for hit in hits]


def ids(hits):
    return [hit["id"] for hit in hits]


def assert_same(hits, expected):
    assert ids(hits) == ids(expected)
    assert scores(hits) == pytest.approx(scores(expected), abs=1e-5)


def test_the_model_runs_fast_while_it_serves_and_is_itself_afterwards(make_app, search, uris, processor):
    model = tiny.build_model(len(processor.tokenizer), CCRkModel)
    pipe = CCRkRetrievalPipeline(model, processor, gallery=uris["lance"], device="cpu")
    expected = pipe(QUERIES, top_k=4)
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    with TestClient(make_app("lance", pipe)) as client:
        assert all("forward" in vars(layer) for layer in layers)
        results = client.post("/search", json={"queries": QUERIES, "k": 4}).json()["results"]
        for result, of_query in zip(results, expected, strict=True):
            assert_same(result["hits"], of_query)
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("gallery", ["lance", "memory", "folder"])
def test_texts_find_what_the_pipeline_finds(serve, search, uris, gallery):
    expected = search(uris[gallery])(QUERIES, top_k=4)
    with serve(gallery) as client:
        answer = client.post("/search", json={"queries": QUERIES, "k": 4})
        assert answer.status_code == 200, answer.text
        assert [row["query"] for row in answer.json()["results"]] == QUERIES
        for row, wanted in zip(answer.json()["results"], expected, strict=True):
            assert_same(row["hits"], wanted)
        one = client.post("/search", json={"queries": QUERIES[0], "k": 2}).json()["results"]
        assert len(one) == 1 and ids(one[0]["hits"]) == ids(expected[0])[:2]


@pytest.mark.parametrize("rerank", [5, "auto", "off"])
def test_reranking(client, search, uris, rerank):
    expected = search(uris["lance"])(QUERIES[:1], top_k=4, rerank=None if rerank == "off" else rerank)
    hits = client.post("/search", json={"queries": QUERIES[:1], "k": 4, "rerank": rerank}).json()["results"][0]["hits"]
    assert ids(hits) == ids(expected[0])
    assert scores(hits) == pytest.approx(scores(expected[0]), abs=1e-3)
    assert (hits[0]["match"] is not None) == (rerank == 5)


def test_filters(client, serve):
    hits = client.post(
        "/search", json={"queries": "a dog", "k": 50, "where": {"width": {"min": 50, "max": 60}}}
    ).json()["results"][0]["hits"]
    assert hits and all(50 <= hit["metadata"]["width"] <= 60 for hit in hits)
    assert set(hits[0]["metadata"]) == {"size", "width", "height", "taken"}, "no path, no hash"
    with serve("texts") as texts:
        where = {"language": ["e", "z"], "year": {"max": 5}}
        hits = texts.post("/search", json={"queries": "a dog", "where": where}).json()["results"][0]["hits"]
        assert [hit["text"] for hit in hits] == ["ein Hund im Schnee"] and hits[0]["image"] is None
        similar = texts.get(f"/similar/{hits[0]['id']}", params={"where": json.dumps({"language": "a"}), "k": 3})
        assert {hit["metadata"]["language"] for hit in similar.json()["hits"]} == {"a"}
    with serve("folder") as folder:
        answer = folder.post("/search", json={"queries": "a dog", "where": {"width": 1}})
        assert answer.status_code == 422 and "no columns" in answer.json()["detail"]


def test_a_photo_finds_what_the_pipeline_finds(client, search, uris, place):
    pipe, file = search(uris["lance"]), place / "photos" / "more" / "05.png"
    (expected,) = pipe([file], top_k=4)
    answer = client.post("/search/image", files={"image": file.read_bytes()}, data={"k": "4"})
    assert_same(answer.json()["results"][0]["hits"], expected)
    (both,) = pipe([{"image": file, "text": "a dog", "weight": 0.3}], top_k=4)
    answer = client.post(
        "/search/image", files={"image": file.read_bytes()}, data={"k": "4", "text": "a dog", "weight": "0.3"}
    )
    assert_same(answer.json()["results"][0]["hits"], both)
    assert answer.json()["results"][0]["query"] == "a dog"


def test_photos_are_turned_as_the_processor_turns_them(processor, tmp_path):
    """A large photo with an orientation: what the service keeps gives the pixels that the file itself gives."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.effect_noise((301, 173), 90).convert("RGB")
    photo.paste((200, 30, 10), (0, 0, 150, 60))
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    small = PhotoReader(processor, 10**7, 10**7).open_query(io.BytesIO((tmp_path / "turned.jpg").read_bytes()))
    straight = processor(images=[tmp_path / "turned.jpg"], return_tensors="pt")["pixel_values"]
    assert processor(images=[small], return_tensors="pt")["pixel_values"].equal(straight)


@pytest.mark.parametrize("gallery", ["lance", "memory", "folder"])
def test_more_like_this(serve, search, uris, place, gallery):
    expected = search(uris[gallery])([place / "photos" / "03.png"], top_k=5)[0][1:]
    with serve(gallery) as client:
        answer = client.get("/similar/03.png", params={"k": 4}).json()
    assert answer["id"] == "03.png" and ids(answer["hits"]) == ids(expected)
    assert scores(answer["hits"]) == pytest.approx(scores(expected), abs=1e-4)


@pytest.mark.parametrize("gallery", ["lance", "folder"])
def test_every_item_and_its_photo(serve, search, uris, place, gallery):
    with serve(gallery) as client:
        hits = client.post("/search", json={"queries": "a", "k": 100}).json()["results"][0]["hits"]
        assert len(hits) == 18 and {"größe & 50%.png", "雪 {{x}} ${y}.png", "a?b#c.png", "<b>.png"} <= {*ids(hits)}
        for hit in hits:
            item = client.get(f"/items/{quote(hit['id'])}")
            assert item.status_code == 200 and item.json()["id"] == hit["id"] and str(place) not in item.text
            if hit["id"] == "link.png":
                photo = client.get("/images/link.png")
                assert photo.status_code == 404 and "--photos" in photo.json()["detail"] and hit["image"] is None
                continue
            photo = client.get(hit["image"], params={"size": 20})
            assert photo.status_code == 200 and photo.headers["content-type"] == "image/jpeg"
            image = Image.open(io.BytesIO(photo.content))
            assert image.format == "JPEG" and max(image.size) <= 20 and not image.getexif()
            again = client.get(f"/images/{quote(hit['id'], safe='')}", params={"size": 20})
            assert hashlib.sha256(again.content).digest() == hashlib.sha256(photo.content).digest()


def test_further_folders_can_be_shown(serve, place):
    with serve(photos=[str(place)]) as client:
        assert client.get("/images/link.png").status_code == 200
    with serve(photos=[str(place / "photos" / "more")]) as client:
        assert client.get("/images/more/02.png").status_code == 200
        assert client.get("/images/00.png").status_code == 404


def test_a_photo_that_is_gone_or_broken(serve, place, tmp_path, search, uris):
    file = place / "photos" / "01.png"
    data = file.read_bytes()
    with serve() as client:
        try:
            file.write_bytes(data[:60])
            broken = client.get("/images/01.png")
            file.unlink()
            gone = client.get("/images/01.png")
        finally:
            file.write_bytes(data)
        assert broken.status_code == 422 and "photo of '01.png'" in broken.json()["detail"]
        assert gone.status_code == 404
        assert str(place) not in broken.text + gone.text


def test_comparison_of_languages(client, search, uris):
    queries = dict(zip(("en", "de", "fr"), QUERIES, strict=True))
    answer = client.post("/compare", json={"queries": queries, "k": 3, "depth": 10})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = dict(zip(queries, search(uris["lance"])(list(queries.values()), top_k=10), strict=True))
    for one in found["languages"]:
        assert ids(one["hits"]) == ids(rows[one["language"]])[:3]
    places = {tag: {hit["id"]: n for n, hit in enumerate(row)} for tag, row in rows.items()}
    items = {item["id"]: item for item in found["items"]}
    assert {*items} == {i for row in rows.values() for i in ids(row)[:3]}
    for i, item in items.items():
        assert item["ranks"] == {tag: places[tag].get(i) for tag in queries}
    ranks = [{tag: places[tag].get(i) for tag in queries} for i in items]
    assert found["mrv"] == pytest.approx(mean_rank_variance(ranks, misses="rank_k", top_k=10)["mrv"])
    first, second = ({*ids(rows[tag])[:3]} for tag in ("en", "de"))
    assert found["overlap"]["en"]["de"] == pytest.approx(len(first & second) / 3)
    same = client.post("/compare", json={"queries": {"a": "a dog", "b": "a dog"}, "k": 5}).json()
    assert same["mrv"] == 0 and same["agreement"] == 1 and same["missed"] == 0
    none = client.post("/compare", json={"queries": queries, "where": {"width": -1}}).json()
    assert none["items"] == [] and none["mrv"] == 0


def test_what_is_served_and_figures(client):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/info").json()
    assert info["items"] == 18 and info["modality"] == "image" and info["gallery"] == "lance.lance"
    assert info["columns"] == {"size": "int64", "width": "int64", "height": "int64", "taken": "string"}
    client.get("/items/no/such/item")
    text = client.get("/metrics").text
    assert 'ccrk_requests_total{method="GET",route="/items/{id:path}",status="404"}' in text
    assert "ccrk_batch_queries_count" in text and "no/such" not in text


def test_security_headers(client):
    headers = client.get("/health").headers
    assert (
        headers["x-content-type-options"] == "nosniff" and "default-src 'self'" in headers["content-security-policy"]
    )


# --- who may ask --------------------------------------------------------------------------------------------------

TOKEN = "päßword-of-the-service"


@pytest.fixture(scope="module")
def guarded(serve):
    with serve(token=TOKEN) as client:
        yield client


@pytest.mark.parametrize("path", ["/search", "/info", "/metrics", "/openapi.json", "/items/00.png", "/images/00.png"])
def test_without_the_token_nothing_is_told(guarded, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN.encode()}, {"Cookie": "a=b"}):
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401 and "token" in answer.json()["detail"] and TOKEN not in answer.text
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_opens(guarded):
    assert guarded.get("/health").status_code == 200, "for those who only look whether it runs"
    assert guarded.get("/info", headers={"Authorization": f"Bearer {TOKEN}".encode()}).status_code == 200


def test_the_login_page_gives_a_cookie(serve):
    with serve(token=TOKEN) as client:
        away = client.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
        assert away.status_code == 303 and away.headers["location"] == "login"
        assert "Token of this service" in client.get("/login").text
        wrong = client.post("/login", data={"token": "wrong"})
        assert wrong.status_code == 401 and "not the token" in wrong.text
        right = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        cookie = right.headers["set-cookie"]
        assert right.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/info").status_code == 200, "the client keeps the cookie"
    with serve(token=TOKEN) as another:
        assert another.get("/info", headers={"Cookie": cookie.split(";")[0]}).status_code == 401


def test_other_host_names_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1"):
        assert client.get("/info", headers={"Host": host}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/info", headers={"Host": host}).status_code == 200


def test_a_client_that_does_not_read_is_let_go():
    """Its place among the requests that run becomes free, and the application is not held up."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def send(message):
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    guard = TrafficGuard(app, ServingOptions(body_timeout=0.1))
    scope = {"type": "http", "path": "/", "headers": []}
    asyncio.run(asyncio.wait_for(guard(scope, None, send), 20))
    assert sent == ["http.response.start", "http.response.body"] and guard._running == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "short"}, "the token has 5 characters"),
        ({"port": 70000}, "--port is 70000"),
        ({"max_batch": 0}, "--max-batch is 0; it is at least 1"),
        ({"max_wait_ms": float("nan")}, "--max-wait-ms is nan"),
        ({"rerank": "always"}, "--rerank is 'always'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message) as error:
        ServingOptions(**options)
    assert "short" not in str(error.value)


def test_the_token_comes_from_the_environment_and_is_not_printed(monkeypatch):
    monkeypatch.setenv("CCRK_TOKEN", TOKEN)
    options = ServingOptions()
    assert options.token == TOKEN and TOKEN not in repr(options)
