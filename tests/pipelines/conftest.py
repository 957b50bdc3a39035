"""A tiny model, its processor, and photos for the tests of the pipeline."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ccrk import CCRkModel, CCRkRetrievalPipeline

SPEC = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return list(tiny.CAPTIONS)


@pytest.fixture(scope="session")
def processor():
    return tiny.build_processor()


@pytest.fixture(scope="session")
def model(processor):
    return tiny.build_model(len(processor.tokenizer), CCRkModel)


@pytest.fixture
def build_model(processor):
    """Builds another model: `build_model(model_class, seed)`."""
    return lambda *args, **kwargs: tiny.build_model(len(processor.tokenizer), *args, **kwargs)


@pytest.fixture(scope="session")
def photos():
    return tiny.build_photos()


@pytest.fixture(scope="session")
def folder(photos, tmp_path_factory) -> Path:
    """The photos as lossless files, some in a folder below."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    for number, photo in enumerate(photos):
        photo.save(root / ("more" if number % 3 == 2 else "") / f"{number:02d}.png")
    return root


@pytest.fixture
def search(model, processor):
    """Builds a pipeline on the CPU: `search(gallery, ...)`."""

    def build(gallery=None, **kwargs):
        chosen = kwargs.pop("model", model)
        return CCRkRetrievalPipeline(chosen, processor, gallery=gallery, device="cpu", **kwargs)

    return build
