"""Hostile input: whatever is sent, no answer is a 5xx, and none tells what lies outside of the gallery."""

from __future__ import annotations

import http.client
import io
import json
import struct
import zlib

import pytest
from PIL import Image

SECRET = "this line stands outside of the gallery"  # as in conftest.py


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file that says it has this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG whose comment takes 200 MB when it is unpacked."""
    packed = zlib.compress(b"a" * 200_000_000, 9)
    body = b"Comment\0\0" + packed
    extra = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png(1, 1, zlib.compress(b"\0\1\2\3"), extra)


def photo(kind: str = "PNG", size=(40, 30), **options) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, kind, **options)
    return out.getvalue()


def animation(frames: int) -> bytes:
    out = io.BytesIO()
    images = [Image.new("P", (16, 16), n % 250) for n in range(frames)]
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=10)
    return out.getvalue()


def svg(inner: str = "") -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{inner}</svg>'.encode()


XXE = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n"
MVG = b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 '/etc/passwd'\npop graphic-context\n"

REFUSED, ACCEPTED = 422, 200

PHOTOS = {
    "nothing": (b"", REFUSED),
    "one byte": (b"\xff", REFUSED),
    "no photo": (b"this is no photo" * 100, REFUSED),
    "NUL bytes": (bytes(10_000), REFUSED),
    "bomb: 60,000 x 60,000 pixels in 3.5 MB": (png(60_000, 60_000, zlib.compress(bytes(10**9), 9)[:1000]), REFUSED),
    "bomb: largest size that PNG can tell": (png(2**31 - 1, 2**31 - 1), REFUSED),
    "bomb: a little above the limit": (photo("JPEG", (1100, 1000)), REFUSED),
    "bomb: 200 MB of comment": (text_bomb(), REFUSED),
    "no pixels: 0 x 0": (png(0, 0), REFUSED),
    "truncated PNG": (photo()[:200], REFUSED),
    "truncated JPEG": (photo("JPEG")[:300], REFUSED),
    "truncated WebP": (photo("WEBP", lossless=True)[:200], REFUSED),
    "JPEG head alone": (photo("JPEG")[:20], REFUSED),
    "PNG with a wrong checksum": (photo().replace(b"IDAT", b"IDAX"), REFUSED),
    "GIF of 3,000 frames": (animation(3000), ACCEPTED),
    "GIF without a frame": (b"GIF89a\x10\0\x10\0\0\0\0;", REFUSED),
    "TIFF that points beyond its end": (b"II*\0\xff\xff\xff\x7f", REFUSED),
    "TIFF whose directory is its own next": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", REFUSED),
    "SVG": (svg(), REFUSED),
    "SVG that runs a script": (svg("<script>alert(1)</script>"), REFUSED),
    "SVG that reads a file": (svg('<image href="file:///etc/passwd"/>'), REFUSED),
    "XML with an entity from a file": (XXE, REFUSED),
    "PostScript": (EPS, REFUSED),
    "ImageMagick's language": (MVG, REFUSED),
    "PDF": (b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>", REFUSED),
    "HTML": (b"<html><script>fetch('/metrics')</script>", REFUSED),
    "polyglot: GIF and script": (b"GIF89a/*" + bytes(10) + b"*/=1;alert(1)//", REFUSED),
    "polyglot: PNG and HTML": (photo() + b"<script>alert(1)</script>", ACCEPTED),
    "polyglot: JPEG and zip": (photo("JPEG") + b"PK\3\4" + bytes(100), ACCEPTED),
    "polyglot: SVG called PNG": (b"\x89PNG" + svg(), REFUSED),
    "EXIF that is none": (photo("JPEG", exif=b"Exif\0\0" + b"\xff" * 500), ACCEPTED),
    "a wide and flat one": (photo(size=(20_000, 1)), ACCEPTED),
    "one pixel": (photo(size=(1, 1)), ACCEPTED),
}


@pytest.fixture(scope="module")
def limited(serve):
    with serve(max_pixels=1_000_000, max_upload_bytes=4 * 2**20) as client:
        yield client


def check(answer) -> dict | None:
    assert answer.status_code < 500, answer.text
    assert SECRET not in answer.text and "root:" not in answer.text
    if answer.status_code >= 400:
        detail = answer.json()["detail"]
        assert isinstance(detail, str) and detail
        assert "Traceback" not in detail and "/tests/" not in detail
    return answer


@pytest.mark.parametrize("name", PHOTOS)
def test_photos(limited, name):
    data, expected = PHOTOS[name]
    answer = check(limited.post("/search/image", files={"image": ("../../etc/passwd\0.svg", data, "image/svg+xml")}))
    assert answer.status_code == expected, answer.text
    assert limited.get("/health").status_code == 200


FORMS = {
    "no photo at all": {"data": {"k": "3"}},
    "a text in the place of the photo": {"data": {"image": "/etc/passwd"}},
    "two photos": {"files": [("image", photo()), ("image", photo())]},
    "a file too many": {"files": [("image", photo()), ("other", photo())]},
    "a hundred fields": {"files": {"image": photo()}, "data": {f"f{n}": "x" for n in range(100)}},
    "k is no number": {"files": {"image": photo()}, "data": {"k": "many"}},
    "k is huge": {"files": {"image": photo()}, "data": {"k": "9" * 400}},
    "weight is NaN": {"files": {"image": photo()}, "data": {"weight": "NaN", "text": "a dog"}},
    "weight is infinite": {"files": {"image": photo()}, "data": {"weight": "inf", "text": "a dog"}},
    "rerank is a word": {"files": {"image": photo()}, "data": {"rerank": "all"}},
    "rerank of photos with a photo": {"files": {"image": photo()}, "data": {"rerank": "5"}},
    "where is no JSON": {"files": {"image": photo()}, "data": {"where": "width > 5"}},
    "where is deep": {"files": {"image": photo()}, "data": {"where": "[" * 20_000}},
    "where is a list": {"files": {"image": photo()}, "data": {"where": "[1]"}},
    "a text of 50 kB": {"files": {"image": photo()}, "data": {"text": "a" * 50_000}},
    "a field of 100 kB": {"files": {"image": photo()}, "data": {"text": "a" * 100_000}},
    "a part without end": {
        "content": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + photo(),
        "headers": {"Content-Type": "multipart/form-data; boundary=x"},
    },
    "no boundary": {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}},
    "an endless boundary": {
        "content": b"--x\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=" + "x" * 5000},
    },
    "JSON in the place of a form": {"json": {"image": "x"}},
    "a photo above the limit": {"files": {"image": bytes(5 * 2**20)}},
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(limited, name):
    answer = check(limited.post("/search/image", **FORMS[name]))
    assert answer.status_code >= 400, answer.text


JSON = {
    "no JSON": b"queries=a",
    "half of it": b'{"queries": ["a"',
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "an unknown field": b'{"queries": "a", "sql": "DROP TABLE vectors"}',
    "100,000 levels": b'{"queries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "1,000 levels of objects": b'{"queries": "a", "where": ' + b'{"a": ' * 1000 + b"1" + b"}" * 1000 + b"}",
    "a number of 10,000 digits": b'{"queries": "a", "k": ' + b"9" * 10_000 + b"}",
    "k is 0": b'{"queries": "a", "k": 0}',
    "k is negative": b'{"queries": "a", "k": -9223372036854775808}',
    "k is 2**63": b'{"queries": "a", "k": 9223372036854775808}',
    "k above the limit": b'{"queries": "a", "k": 100000}',
    "k is a fraction": b'{"queries": "a", "k": 2.5}',
    "k is a text": b'{"queries": "a", "k": "5"}',
    "k is true": b'{"queries": "a", "k": true}',
    "k is NaN": b'{"queries": "a", "k": NaN}',
    "k is infinite": b'{"queries": "a", "k": Infinity}',
    "k is 1e400": b'{"queries": "a", "k": 1e400}',
    "no queries": b'{"queries": []}',
    "an empty query": b'{"queries": ""}',
    "blanks": '{"queries": "\u2003\u3000 \\n"}'.encode(),
    "control characters": b'{"queries": "\\u0000\\u0001\\u001b"}',
    "half a surrogate": b'{"queries": "\\ud800"}',
    "half a surrogate among words": b'{"queries": ["a dog", "a \\udfff dog"]}',
    "bytes that are no UTF-8": b'{"queries": "\xff\xfe"}',
    "UTF-16": '{"queries": "a dog"}'.encode("utf-16") + b"x",
    "a query of 100 kB": json.dumps({"queries": "a " * 50_000}).encode(),
    "1,000 queries": json.dumps({"queries": ["a"] * 1000}).encode(),
    "queries is an object": b'{"queries": {"a": "b"}}',
    "queries is a number": b'{"queries": 5}',
    "a null among the queries": b'{"queries": ["a", null]}',
    "rerank is huge": b'{"queries": "a", "rerank": 1000000}',
    "rerank is negative": b'{"queries": "a", "rerank": -1}',
    "rerank is a word": b'{"queries": "a", "rerank": "everything"}',
    "the other modality": b'{"queries": "a", "modality": "text"}',
    "where: a column that is not there": b'{"queries": "a", "where": {"x": 1}}',
    "where: the path of a file": b'{"queries": "a", "where": {"path": {"min": "/"}}}',
    "where: the hash of a file": b'{"queries": "a", "where": {"hash": "x"}}',
    "where: SQL as a column": b'{"queries": "a", "where": {"1=1 OR width": 1}}',
    "where: a range of nothing": b'{"queries": "a", "where": {"width": {}}}',
    "where: an unknown word": b'{"queries": "a", "where": {"width": {"$gt": 1}}}',
    "where: an empty list": b'{"queries": "a", "where": {"width": []}}',
    "where: NaN": b'{"queries": "a", "where": {"width": NaN}}',
    "where: 2**70": b'{"queries": "a", "where": {"width": 1180591620717411303424}}',
    "where: a list of lists": b'{"queries": "a", "where": {"width": [[1]]}}',
    "where: NUL": b'{"queries": "a", "where": {"taken": "a\\u0000b"}}',
    "where: half a surrogate": b'{"queries": "a", "where": {"taken": "\\ud800"}}',
    "300 kB": b'{"queries": "' + b"a" * 300_000 + b'"}',
}


@pytest.mark.parametrize("name", JSON)
def test_json(client, name):
    answer = check(client.post("/search", content=JSON[name], headers={"Content-Type": "application/json"}))
    assert answer.status_code in (400, 413, 422), answer.text


ODD_QUERIES = {
    "a right-to-left override": "a dog \u202egod a",
    "combining marks": "a" + "\u0301" * 1900,
    "a family": "👨‍👩‍👧‍👦" * 100,
    "a noncharacter": "a dog \uffff\ufdd0",
    "NUL among words": "a dog\0in the snow",
    "a language tag": "a \U000e0001\U000e0065 dog",
    "SQL": "'; DROP TABLE vectors; --",
    "a template": "{{7*7}} ${7*7} <%= 7*7 %>",
    "special tokens": "<s> </s> <mask> <pad>",
    "a path": "/etc/passwd",
    "a URI": "lance:///etc",
    "a format": "%s%s%n {0.__class__}",
}


@pytest.mark.parametrize("name", ODD_QUERIES)
def test_odd_queries_are_queries(client, name):
    answer = check(client.post("/search", json={"queries": ODD_QUERIES[name], "k": 3}))
    assert answer.status_code == 200 and len(answer.json()["results"][0]["hits"]) == 3


ODD_VALUES = ["' OR 1=1 --", '"; DROP TABLE vectors; --', "a' UNION SELECT path", "\\' OR ''='", "%", "*", "\u2019"]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_odd_values_of_a_filter_meet_nothing(client, value):
    for where in ({"taken": value}, {"taken": [value, value]}, {"taken": {"min": value, "max": value}}, {"id": value}):
        answer = check(client.post("/search", json={"queries": "a dog", "where": where}))
        assert answer.status_code == 200 and answer.json()["results"][0]["hits"] == [], where


IDS = [
    "../secret.txt",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "%2e%2e%2fsecret.txt",
    "%252e%252e%252fsecret.txt",
    "..%5csecret.txt",
    "..\\secret.txt",
    "....//secret.txt",
    "more/../../secret.txt",
    "more/%2e%2e/%2e%2e/secret.txt",
    "..%c0%afsecret.txt",
    "%c0%ae%c0%ae/secret.txt",
    "．．/secret.txt",
    "..／secret.txt",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "00.png%00",
    "00.png%00.txt",
    "%00",
    "00.png/",
    "./00.png",
    "00.png%20",
    "00.PNG",
    "outside.png",
    "../outside.png",
    "link.png",
    "%ff%fe",
    "%ed%a0%80",
    "~root",
    "more",
    ".",
    "..",
    "*",
    "a" * 1500,
    "é" * 1000,
    "' OR '1'='1",
    "x' OR id != 'x",
    "http://127.0.0.1/00.png",
    "con",
    "%0d%0aSet-Cookie:a=b",
]


@pytest.fixture(scope="module")
def live(make_app, listening):
    """Services that listen, by name of their gallery: clients of the tests would tidy up what they send."""
    with listening(make_app("lance", allow_hosts=[])) as lance, listening(make_app("folder")) as folder:
        yield {"lance": lance, "folder": folder}


def get(port: int, path: str) -> tuple[int, bytes, dict]:
    """Asks for exactly this path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", "/", skip_host=True)
    connection._buffer[0] = f"GET {path} HTTP/1.1".encode()
    connection.putheader("Host", "localhost")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return found


@pytest.mark.parametrize("gallery", ["lance", "folder"])
@pytest.mark.parametrize("item", IDS)
def test_ids(live, gallery, item):
    for kind in ("images", "items", "similar"):
        status, body, headers = get(live[gallery], f"/{kind}/{item}")
        found = item == "link.png" and kind != "images"
        assert status == 200 if found else status in (400, 404, 422), (kind, body)
        assert SECRET.encode() not in body and b"root:" not in body and "set-cookie" not in headers
    assert get(live[gallery], "/health")[0] == 200


@pytest.mark.parametrize("path", ["/", "//", "/../etc/passwd", "/docs", "/redoc", "/.git/config", "/static/x", "/%00"])
def test_paths(live, path):
    assert get(live["lance"], path)[0] == 404


@pytest.mark.parametrize(
    "query",
    ["size=0", "size=-1", "size=99999999", "size=NaN", "size=1e9", "size=", "size=%00", "size=1&size=a", "size=٣x"],
)
def test_sizes(client, query):
    assert check(client.get(f"/images/00.png?{query}")).status_code == 422


@pytest.mark.parametrize("query", ["k=0", "k=-1", "k=1e3", "k=999999", "where={", "where=[]", "where=%00", "where=1"])
def test_neighbours(client, query):
    assert check(client.get(f"/similar/00.png?{query}")).status_code == 422


COMPARISONS = [
    {"queries": {}},
    {"queries": {"en": "a dog"}},
    {"queries": {"en": "a dog", "de": ""}},
    {"queries": {"en": "a dog", "de": None}},
    {"queries": {str(n): "a" for n in range(100)}},
    {"queries": ["a", "b"]},
    {"queries": {"en": "a", "de": "b"}, "depth": 1, "k": 5},
    {"queries": {"en": "a", "de": "b"}, "depth": 10**6},
    {"queries": {"en": "a", "de": "b"}, "k": 10**6},
]


@pytest.mark.parametrize("body", COMPARISONS)
def test_comparisons(client, body):
    assert check(client.post("/compare", json=body)).status_code == 422


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/xml", "", "application/json; charset=utf-7", "x"],
)
def test_content_types(client, kind):
    answer = check(client.post("/search", content=b'{"queries": "a dog"}', headers={"Content-Type": kind}))
    assert answer.status_code in (200, 400, 415, 422)
    assert answer.status_code != 200 or kind.startswith("application/json")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "GET", "HEAD", "X" * 50])
def test_methods(client, method):
    answer = client.request(method, "/search")
    assert answer.status_code == 405
    assert f'method="{"X" * 50}"' not in client.get("/metrics").text


def test_there_are_enough_cases():
    by_hand = (PHOTOS, FORMS, JSON, ODD_QUERIES, ODD_VALUES, IDS, COMPARISONS)
    assert sum(map(len, by_hand)) > 150
