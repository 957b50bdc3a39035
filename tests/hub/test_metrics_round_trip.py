"""Metrics published as Spaces by the command, and loaded by `evaluate.load("org/...")` without the package."""

from __future__ import annotations

import json

import pytest

from ccrk.metrics import mean_rank_variance
from ccrk.metrics.ccr_recall.recall import recall_figures, target_ranks
from ccrk.serving.space import build_metric_space, build_search_space

pytestmark = pytest.mark.slow

PUSH = """
from ccrk.cli.main import main
for name in ("mrv", "ccr_recall", "search"):
    words = ["publish", f"{sys.argv[1]}/{name}", f"org/{name}"]
    seen[name] = [main([*words, "--dry-run"]), main([*words, "--yes"]), main([*words, "--yes"])]
"""

LOAD = """
import evaluate
ranks, scores, rows = (json.loads(word) for word in sys.argv[1:4])
mrv = evaluate.load("org/mrv")
seen["module"] = type(mrv).__module__
seen["mrv"] = mrv.compute(predictions=ranks, misses="rank_k", top_k=50)
seen["mrv_scores"] = evaluate.load("org/mrv", "scores").compute(predictions=rows, references=[[0], [1], [0], [1]])
recall = evaluate.load("org/ccr_recall")
seen["recall"] = recall.compute(predictions=scores, references=[[0], [1], [1]], languages=["en", "de", "de"], ks=[1])
seen["revision"] = evaluate.load("org/mrv", revision="main").compute(predictions=[{"en": 0, "de": 4}])["mrv"]
"""
RANKS = [{"en": 0, "de": 4}, {"en": 3, "de": 3, "fr": None}, {"en": 7, "fr": 1.5}]
SCORES = [[0.9, 0.1, 0.3], [0.8, 0.2, 0.1], [0.1, 0.7, 0.7]]
ROWS = [
    {"item": "a", "language": "en", "scores": [0.9, 0.1, 0.3]},
    {"item": "b", "language": "en", "scores": [0.9, 0.1, 0.3]},
    {"item": "a", "language": "de", "scores": [0.2, 0.3, 0.1]},
    {"item": "b", "language": "de", "scores": [0.2, 0.3, 0.1]},
]


def test_metrics_of_the_hub_equal_ours(hub, client, tiny, tmp_path):
    for name in ("mrv", "ccr_recall"):
        build_metric_space(name, tmp_path / "spaces" / name)
    for name in ("pusher", "loader"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(tiny.build_photos(3)):
        photo.save(tmp_path / "photos" / f"{number}.png")
    build_search_space("org/ccrk", tmp_path / "spaces" / "search", gallery=tmp_path / "photos")
    done = client(PUSH, hub.environment(tmp_path / "pusher"), tmp_path / "spaces", package=True)
    assert done == {name: [0, 0, 0] for name in ("mrv", "ccr_recall", "search")}
    for name in done:
        repository = hub.store.repository("space", f"org/{name}")
        history = repository.history(repository.resolve("main"))
        assert len(history) == 2, "one commit after the first, empty one, though it was published twice"
        folder = tmp_path / "spaces" / name
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }
        tree = history[0][1]["tree"]
        assert {path: repository.content(tree[path]) for path in tree if path != ".gitattributes"} == files
    assert [entry["lfs"] for path, entry in tree.items() if path.startswith("photos/")] == [True] * 3
    words = [json.dumps(part) for part in (RANKS, SCORES, ROWS)]
    seen = client(LOAD, hub.environment(tmp_path / "loader"), *words)
    assert seen["module"].startswith("evaluate_modules.metrics.org--mrv.")
    assert seen["mrv"] == mean_rank_variance(RANKS, misses="rank_k", top_k=50)
    assert seen["mrv_scores"] == mean_rank_variance([{"en": 0, "de": 1}, {"en": 2, "de": 0}])
    ranks = target_ranks(SCORES, [[0], [1], [1]], "pessimistic")
    assert seen["recall"] == recall_figures({"ir": ranks}, {"ir": ["en", "de", "de"]}, [1])
    assert seen["revision"] == 2.0
    # what has been loaded once needs no connection: evaluate keeps the modules
    offline = LOAD.replace('seen["revision"]', "_ = 0 #")
    again = client(offline, hub.environment(tmp_path / "loader", HF_HUB_OFFLINE="1", HF_EVALUATE_OFFLINE="1"), *words)
    assert again["mrv"] == seen["mrv"] and again["recall"] == seen["recall"]
