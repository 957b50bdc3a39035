from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ccrk.pipelines.index import IndexFingerprint, without_secrets
from ccrk.pipelines.indexes import create_index, drop_index, open_index

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

from ccrk.pipelines.milvus_index import TOKEN, Place  # noqa: E402

FINGERPRINT = IndexFingerprint("org/model", "abc", 16)


def units(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1)


def test_uris(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN, raising=False)
    for uri, target, collection in (
        ("milvus://db.example:19530", "http://db.example:19530", "ccrk"),
        ("milvus://127.0.0.1:1/photos", "http://127.0.0.1:1", "photos"),
        ("milvus://[::1]:19530/photos?tls", "https://[::1]:19530", "photos"),
        ("MILVUS://gallery.db", f"{tmp_path}/gallery.db", "ccrk"),
        ("milvus://a b/gallery.db/captions", f"{tmp_path}/a b/gallery.db", "captions"),
        ("milvus:///data/gallery.db", "/data/gallery.db", "ccrk"),
        ("milvus:///data/x.db/y.db", "/data/x.db/y.db", "ccrk"),
    ):
        place = Place.of(uri)
        assert (place.target, place.collection, place.uri, place.token) == (target, collection, uri, "")
        assert place.file == target.endswith(".db")
    for uri in (
        "milvus://",
        "milvus:",
        "milvus://host",
        "milvus://host:1/a-b",
        "milvus://host:1/a/b",
        "milvus:///data",
    ):
        with pytest.raises(ValueError, match="milvus://HOST:PORT"):
            Place.of(uri)


def test_tokens_are_used_and_never_shown(monkeypatch):
    monkeypatch.setenv(TOKEN, "root:from-env")
    assert Place.of("milvus://host:1/a").token == "root:from-env"
    place = Place.of("milvus://root:s3cret@host:1/a")
    assert place.token == "root:s3cret" and place.uri == "milvus://***@host:1/a" and "s3cret" not in repr(place)
    assert "from-env" not in repr(Place.of("milvus://host:1/a"))
    assert without_secrets("milvus://to@ken@host:1/a") == "milvus://***@host:1/a"
    for uri in ("milvus://root:s3cret@host/a", "milvos://root:s3cret@host:1/a", "milvus://root:s3cret@127.0.0.1:9/a"):
        with pytest.raises((ValueError, OSError)) as caught:
            open_index(uri)
        assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_oserror():
    with pytest.raises(OSError, match="index 'milvus://127.0.0.1:9/a'.*127.0.0.1:9"):
        open_index("milvus://127.0.0.1:9/a")


@pytest.mark.slow
def test_a_file_belongs_to_one_process_until_its_last_handle_is_closed(tmp_path):
    uri = f"milvus://{tmp_path}/gallery.db"
    index = create_index(uri, FINGERPRINT, {"path": "string"})
    index.upsert(["a"], units(1), [{"path": "a.jpg"}])
    second = create_index(f"{uri}/captions", FINGERPRINT)
    command = f"from ccrk.pipelines.indexes import open_index; print(open_index({uri!r}).entries(['a']))"

    def other() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True)

    index.close()
    refused = other()
    assert refused.returncode and "another process may have it open" in refused.stderr
    second.close()
    assert other().stdout == "[{'id': 'a', 'path': 'a.jpg'}]\n"
    index = open_index(uri)
    assert index.count() == 1 and open_index(f"{uri}/captions").count() == 0
    drop_index(f"{uri}/captions")
    assert index.count() == 1


def test_a_collection_of_others_is_refused(tmp_path):
    from pymilvus import MilvusClient

    index = create_index(f"milvus://{tmp_path}/gallery.db", FINGERPRINT)
    client = MilvusClient(f"{tmp_path}/gallery.db")
    client.create_collection("theirs", dimension=4)
    with pytest.raises(ValueError, match="no index of this package"):
        open_index(f"milvus://{tmp_path}/gallery.db/theirs")
    assert index.count() == 0
    index.close()


def test_long_texts_and_many_rows(tmp_path, monkeypatch):
    from ccrk.pipelines import milvus_index

    index = create_index(f"milvus://{tmp_path}/gallery.db", FINGERPRINT, {"text": "string"})
    with pytest.raises(ValueError, match="'text' of 'b' is 65536 bytes long"):
        index.upsert(["a", "b"], units(2), [{"text": "猫"}, {"text": "x" * 65_536}])
    assert index.count() == 0
    monkeypatch.setattr(milvus_index, "BYTES_AT_ONCE", 100_000)
    index.upsert([str(n) for n in range(200)], units(200), [{"text": "猫" * 20_000}] * 200)
    assert index.count({"text": "猫" * 20_000}) == 200
    assert len(index.search(units(300, seed=1), 200)) == 300
    index.close()
