"""The plain path of the benchmark of re-ranking scores as the pipeline does, so that the two can be compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm

from ccrk import CCRkModel, CCRkRetrievalPipeline
from ccrk.pipelines.index_gallery import IndexGallery
from ccrk.pipelines.indexes import open_index

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "rerank_search.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("rerank_search", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_ways_score_alike(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "PHOTOS", 10)
    monkeypatch.setattr(script, "CANDIDATES", 6)
    monkeypatch.setattr(script, "PADDED", 36)
    processor = script.tiny.build_processor()
    model = script.tiny.build_model(len(processor.tokenizer), CCRkModel)
    pipe = CCRkRetrievalPipeline(model, processor, device="cpu")
    uri, states = script.build_index(pipe, str(tmp_path))
    script.measure_keys_values(pipe, states)
    query = script.QUERIES[0]
    timm.layers.set_fused_attn(True)
    recomputed, kept = (IndexGallery(open_index(uri), states=folder) for folder in (None, states))
    pipe.set_gallery(recomputed)
    found = script.pipe_search(pipe, query)
    pipe.set_gallery(kept)
    assert script.pipe_search(pipe, query) == pytest.approx(found, abs=2e-2)
    model.config.text_config._attn_implementation = "eager"
    plain = script.plain_search(pipe, recomputed, query)
    assert len(plain) == 6 and found == pytest.approx(plain, rel=1e-4, abs=1e-4)
    script.report({"plain": [2.0], "kept": [1.0]}, {"plain": [plain], "kept": [found]})
    assert "of plain 0.500" in capsys.readouterr().out
