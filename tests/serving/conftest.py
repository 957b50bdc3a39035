"""A tiny model, an index of photos and one of texts, and the service over them."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ccrk import CCRkModel, CCRkRetrievalPipeline
from ccrk.pipelines.gallery_sources import gallery_items
from ccrk.pipelines.gallery_update import open_gallery_index, update_index
from ccrk.pipelines.model_fingerprint import embedding_fingerprint
from ccrk.serving.app import create_app
from ccrk.serving.options import ServingOptions

SPEC = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).parents[1] / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)

SECRET = "this line stands outside of the gallery"


@pytest.fixture(scope="session")
def processor():
    return tiny.build_processor()


@pytest.fixture(scope="session")
def model(processor):
    return tiny.build_model(len(processor.tokenizer), CCRkModel)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """`photos/`, with photos below it, a link out of it and files beside it that nobody may see."""
    root = tmp_path_factory.mktemp("service")
    folder = root / "photos"
    (folder / "more").mkdir(parents=True)
    for number, photo in enumerate(tiny.build_photos()):
        photo.save(folder / ("more" if number % 3 == 2 else "") / f"{number:02d}.png")
    odd = ["größe & 50%.png", "雪 {{x}} ${y}.png", "a?b#c.png", "<b>.png", "image.png"]
    for name, photo in zip(odd, tiny.build_photos(len(odd), seed=1), strict=True):
        photo.save(folder / name)
    (root / "secret.txt").write_text(SECRET)
    tiny.build_photos(1, seed=2)[0].save(root / "outside.png")
    (folder / "link.png").symlink_to(root / "outside.png")
    (root / "texts.csv").write_text(
        "text,language,year\n" + "\n".join(f"{text},{text[:1]},{n}" for n, text in enumerate(tiny.CAPTIONS))
    )
    return root


@pytest.fixture(scope="session")
def search(model, processor):
    """Builds a pipeline on the CPU: `search(gallery)`."""
    return lambda gallery=None, **options: CCRkRetrievalPipeline(
        model, processor, gallery=gallery, device="cpu", **options
    )


@pytest.fixture(scope="session")
def uris(place, search) -> dict[str, str]:
    """Galleries by name: a folder, and indexes of photos and texts."""
    found = {"folder": str(place / "photos")}
    sources = {"lance": place / "photos", "memory": place / "photos", "texts": place / "texts.csv"}
    for name, source in sources.items():
        uri = f"memory:{place.name}" if name == "memory" else f"lance://{place}/{name}.lance"
        pipe, items = search(), gallery_items(source)
        index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
        update_index(index, items, pipe)
        index.close()
        found[name] = uri
    return found


@pytest.fixture(scope="session")
def make_app(uris, search):
    """Builds the application over one of the galleries."""

    def build(gallery: str = "lance", pipe=None, **options):
        given = {"page": False, "allow_hosts": ["testserver"], "rerank": None, **options}
        uri = uris[gallery]
        return create_app(ServingOptions(gallery=uri, **given), pipe or search(uri))

    return build


@pytest.fixture(scope="session")
def serve(make_app):
    """A client of the service, for a `with`."""

    @contextlib.contextmanager
    def build(gallery: str = "lance", **options):
        with TestClient(make_app(gallery, **options), raise_server_exceptions=False) as client:
            yield client

    return build


@pytest.fixture(scope="module")
def client(serve):
    with serve() as client:
        yield client


@pytest.fixture(scope="session")
def listening():
    """Lets an application listen on a port of this machine, for a `with` that gives the port."""
    spec = importlib.util.spec_from_file_location("ccrk_tests_listening", Path(__file__).with_name("listening.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.listening
