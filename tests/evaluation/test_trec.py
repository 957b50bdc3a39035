"""TREC files: figures that trec_eval computes from them are ours, also with ties; what is read is what was written."""

from __future__ import annotations

import csv
import gzip
import io
import json

import numpy as np
import pytest
import pytrec_eval
import torch

from ccrk.evaluation.tiles import best_matches
from ccrk.evaluation.trec import (
    caption_query_ids,
    descending,
    lists_of_run,
    qrels_of_targets,
    ranked_lists,
    read_qrels,
    read_run,
    run_of_lists,
    targets_of_qrels,
    write_qrels,
    write_run,
)
from ccrk.metrics.ccr_recall.recall import recall_at, target_ranks, top_ranks

KS = (1, 5, 10)
MEASURES = {"success.1,5,10", "recall.1,5,10", "recip_rank"}


def trec_eval(run_file, qrels_file) -> dict[str, dict[str, float]]:
    """Query -> figures, computed by trec_eval from the files, which its own parser reads."""
    data = [gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in (run_file, qrels_file)]
    run, qrels = (io.StringIO(text.decode("utf-8")) for text in data)
    evaluator = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(qrels), MEASURES)
    return evaluator.evaluate(pytrec_eval.parse_run(run))


def mean(figures, measure: str, queries) -> float:
    return float(np.mean([figures[query][measure] for query in queries]))


def names(letter: str, count: int) -> list[str]:
    """Distinct ids whose order is not that of the rows."""
    return [f"{letter}{number * 37 % 101:03d}-é" for number in range(count)]


# --- figures of trec_eval are ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("right", ["one", "several"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_trec_eval_computes_our_recall(tmp_path, right, suffix):
    rng = np.random.default_rng(7)
    items, queries = names("i", 80), 50
    lists, all_scores, query_ids, all_targets, ours = [], [], [], [], {}
    for tag, noise in (("en", 0.4), ("de", 1.0), ("zh", 2.0)):
        targets = [[q] if right == "one" else sorted({q, q + 20, int(rng.integers(80))}) for q in range(queries)]
        # a step of a half: most scores have several equals, and the right item is often among them
        scores = np.round(2 * (np.eye(queries, 80) + noise * rng.standard_normal((queries, 80)))) / 2
        ranks = target_ranks(scores, targets)
        ours[tag] = recall_at(ranks, KS)
        assert ours[tag] != recall_at(target_ranks(scores, targets, "optimistic"), KS), "ties matter here"
        of_tag, of_scores = ranked_lists(scores, 20, targets)
        known = ranks < 20
        np.testing.assert_array_equal(top_ranks(of_tag.tolist(), targets)[known], ranks[known])
        lists += of_tag.tolist()
        all_scores += of_scores.tolist()
        all_targets += targets
        query_ids += [f"{tag}:{q}" for q in range(queries)]
    run, qrels = tmp_path / f"run{suffix}", tmp_path / f"qrels{suffix}"
    write_run(run, lists, all_scores, query_ids, items)
    write_qrels(qrels, all_targets, query_ids, items)
    figures = trec_eval(run, qrels)
    assert len(figures) == 150
    for tag, of_tag in ours.items():
        of_language = [name for name in query_ids if name.startswith(tag)]
        for k in KS:
            assert mean(figures, f"success_{k}", of_language) == of_tag[k]
            if right == "one":
                assert mean(figures, f"recall_{k}", of_language) == of_tag[k]


def test_trec_eval_ranks_every_item_where_we_do():
    """All scores equal, and the names in no order: the reciprocal rank of each item is that of its place."""
    items = names("i", 40)
    order = np.random.default_rng(1).permutation(40).tolist()
    run = run_of_lists([order] * 40, [[0.25] * 40] * 40, names("q", 40), items)
    qrels = qrels_of_targets(order, names("q", 40), items)
    figures = pytrec_eval.RelevanceEvaluator(qrels, MEASURES).evaluate(run)
    for place, query in enumerate(names("q", 40)):
        assert figures[query]["recip_rank"] == 1 / (place + 1)


def test_lists_of_best_matches_keep_their_order(tmp_path):
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator), dim=1)
    gallery = torch.cat([gallery, gallery])  # every item has an equal
    queries = gallery[:20] + 0.1 * torch.randn(20, 8, generator=generator)
    scores, lists = best_matches(queries, gallery, 12)
    items, query_ids = names("i", 60), names("q", 20)
    write_run(tmp_path / "run", lists, scores, query_ids, items)
    for targets in (np.arange(20), np.arange(30, 50)):
        write_qrels(tmp_path / "qrels", targets, query_ids, items)
        figures = trec_eval(tmp_path / "run", tmp_path / "qrels")
        ours = recall_at(top_ranks(lists.tolist(), targets), KS)
        assert {k: mean(figures, f"success_{k}", query_ids) for k in KS} == ours
    read, _ = lists_of_run(read_run(tmp_path / "run"), query_ids, items)
    assert read == lists.tolist()


def test_published_lists_give_the_published_figure(shared, tmp_path):
    """Lists without scores; queries whose image is not among the best 20 count as well."""
    folder = shared / "reference" / "iglue"
    with gzip.open(folder / "uc2_de_top20.json.gz", "rt") as file:
        lists = json.load(file)
    with open(folder / "xFlickrCO_ir_0.csv", newline="") as file:
        published = next(float(row["de"]) for row in csv.DictReader(file) if row["model"] == "uc2")
    images, queries = [f"photo{n}" for n in range(2000)], [f"de:{n}" for n in range(2000)]
    write_run(tmp_path / "run.gz", lists, None, queries, images, "uc2")
    write_qrels(tmp_path / "qrels", range(2000), queries, images)
    figures = trec_eval(tmp_path / "run.gz", tmp_path / "qrels")
    ours = recall_at(top_ranks(lists, range(2000)), KS)
    assert {k: mean(figures, f"success_{k}", queries) for k in KS} == ours
    assert 100 * ours[1] == pytest.approx(published, rel=1e-12)


# --- scores -----------------------------------------------------------------------------------------------------


def test_scores_that_differ_enough_stay_as_they_are():
    scores = np.array([3.5, 1.0, 0.1, 0.0, -1e-30, -2.0])
    np.testing.assert_array_equal(descending(scores), scores.astype(np.float32))


def test_equal_scores_are_moved_by_single_steps():
    near = 1 - 2.0**-40  # differs from 1 in double precision alone
    found = descending([1.0, 1.0, near, 1 - 2.0**-23, 0.5, 0.0, -0.0])
    assert found.dtype == np.float32 and (np.diff(found) < 0).all()
    steps = 2.0**-24
    np.testing.assert_array_equal(found[:5], np.float32([1, 1 - steps, 1 - 2 * steps, 1 - 3 * steps, 0.5]))
    assert found[5] == 0 and -1e-44 < found[6] < 0


def test_files_hold_every_digit(tmp_path):
    scores = descending(np.sort(np.random.default_rng(0).standard_normal(3000) * 1e-3)[::-1])
    write_run(tmp_path / "run", [range(3000)], [scores], ["q"], [str(n) for n in range(3000)])
    read = list(read_run(tmp_path / "run")["q"].values())
    np.testing.assert_array_equal(np.float32(read), scores)
    assert (np.diff(read) < 0).all(), "in double precision too"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], r"query 'q': scores rise from place 0 to 1 \(1, 2\), but a list is best first"),
        ([1.0, float("nan")], "the score at place 1 is nan"),
        ([1.0, float("-inf")], "the score at place 1 is -inf"),
        ([1e39, 1.0], r"the score at place 0 is 1e\+39, which single precision does not hold"),
        ([1.0], "has 2 items, but 1 scores"),
    ],
)
def test_scores_that_cannot_be_written(tmp_path, scores, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", [[0, 1]], [scores], ["q"], ["a", "b"])
    assert not list(tmp_path.iterdir())


# --- files ------------------------------------------------------------------------------------------------------


def test_files_in_full(tmp_path):
    write_run(tmp_path / "run", [[2, 0], [1]], [[0.5, 0.5], [-1]], ["en:1", "de:1"], ["a", "b", "ü"], "my-run")
    assert (tmp_path / "run").read_text(encoding="utf-8") == (
        "en:1 Q0 ü 1 0.5 my-run\nen:1 Q0 a 2 0.49999997 my-run\nde:1 Q0 b 1 -1 my-run\n"
    )
    write_qrels(tmp_path / "qrels", [[0, 2], 1], ["en:1", "de:1"], ["a", "b", "ü"])
    assert (tmp_path / "qrels").read_text(encoding="utf-8") == "en:1 0 a 1\nen:1 0 ü 1\nde:1 0 b 1\n"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_there_and_back(tmp_path, suffix):
    items, queries = names("i", 9), names("q", 3)
    lists, scores = [[3, 1, 2], [8], [0, 5]], [[2.0, 2.0, 1.0], [0.1], [-1.0, -1.0]]
    run, qrels = tmp_path / f"run{suffix}", tmp_path / f"qrels{suffix}"
    write_run(run, lists, scores, queries, items)
    read = read_run(run)
    assert list(read) == queries and [list(of_query) for of_query in read.values()] == [
        [items[item] for item in row] for row in lists
    ]
    found, values = lists_of_run(read, queries, items)
    assert found == lists
    np.testing.assert_allclose(np.concatenate(values), np.concatenate(scores), rtol=1e-6)
    write_qrels(qrels, [[3, 2], 8, 5], queries, items)
    assert read_qrels(qrels) == qrels_of_targets([[3, 2], 8, 5], queries, items)
    assert targets_of_qrels(read_qrels(qrels), queries, items) == [[2, 3], [8], [5]]
    written = run.read_bytes()
    write_run(run, lists, scores, queries, items)
    assert run.read_bytes() == written, "equal content makes equal files"


def test_lists_have_the_order_of_trec_whatever_that_of_the_lines(tmp_path):
    (tmp_path / "run").write_bytes(
        b"q Q0 a 1 0.5 x\r\n\nq\tQ0\tc\t2\t0.50000000001\tx\nq Q0 b 3 7e-1 x\nr Q0 \xc2\xa0 0 -.5 x\n"
    )
    read = read_run(tmp_path / "run")
    assert read == {"q": {"a": 0.5, "c": 0.50000000001, "b": 0.7}, "r": {"\xa0": -0.5}}
    # a and c are equal in single precision, so the later name comes first
    assert lists_of_run({"q": read["q"]}, ["p", "q"], ["a", "b", "c"])[0] == [[], [1, 2, 0]]
    for place, item in enumerate("bca"):
        figures = pytrec_eval.RelevanceEvaluator({"q": {item: 1}}, MEASURES).evaluate({"q": read["q"]})
        assert figures["q"]["recip_rank"] == 1 / (place + 1)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_run, "q Q0 a 1 0.5 x\nq Q0 b 2 0.4\n", "line 2 has 5 fields, but there must be 6: QUERY Q0 ITEM RANK"),
        (read_run, "q Q0 a first 0.5 x\n", "line 1: the rank is 'first', which is no whole number"),
        (read_run, "q Q0 a 1 nan x\n", "line 1: the score is 'nan', which is no finite number"),
        (read_run, "q Q0 a 1 1_0 x\n", "line 1: the score is '1_0'"),
        (read_run, "q Q0 a 1 1e999 x\n", "line 1: the score is '1e999'"),
        (read_run, "q Q0 a 1 2 x\n\nq Q0 a 2 1 x\n", "line 3 has the item 'a' of query 'q' a second time"),
        (read_run, "\n", "has no line"),
        (read_qrels, "q 0 a 1\nq a 1\n", "line 2 has 3 fields, but there must be 4: QUERY 0 ITEM RELEVANCE"),
        (read_qrels, "q 0 a 0.5\n", "line 1: the relevance is '0.5', which is no whole number"),
        (read_qrels, "q 0 a 1\nq 0 a 1\n", "line 2 has the item 'a' of query 'q' a second time"),
        (read_qrels, "", "has no line"),
    ],
)
def test_files_that_are_not_of_the_format(tmp_path, read, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "file")


def test_files_that_are_not_text_or_not_gzip(tmp_path):
    (tmp_path / "latin").write_bytes(b"q 0 a 1\nq 0 \xfc 1\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_qrels(tmp_path / "latin")
    packed = gzip.compress(b"q 0 a 1\n" * 100)
    for data in (b"q 0 a 1\n", packed[:-9], packed[:15] + b"\xff" * 9 + packed[24:]):
        (tmp_path / "qrels.gz").write_bytes(data)
        with pytest.raises(ValueError, match="qrels.gz"):
            read_qrels(tmp_path / "qrels.gz")
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "none")


# --- ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "items", "tag", "message"),
    [
        (["my query"], ["a", "b"], "x", "the query id 'my query' holds whitespace, which ends a field"),
        (["q"], ["a", "b\u00a0c"], "x", r"the item id 'b\\xa0c' holds whitespace"),
        (["q"], ["a", "b\n"], "x", r"the item id 'b\\n' holds whitespace"),
        (["q"], ["a", ""], "x", "the item id is ''; it must be a text that is not empty"),
        (["q"], ["a", 7], "x", "the item id is 7; it must be a text"),
        (["q"], ["a", "a"], "x", "the item id 'a' occurs twice"),
        (["q"], ["a", "b"], "my run", "the tag 'my run' holds whitespace"),
        (["q", "r"], ["a", "b"], "x", "there are 2 query ids, but 1 lists"),
    ],
)
def test_ids_that_a_file_cannot_hold(tmp_path, queries, items, tag, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", [[0, 1]], None, queries, items, tag)
    if tag == "x" and len(queries) == 1:
        with pytest.raises(ValueError, match=message):
            write_qrels(tmp_path / "qrels", [0], queries, items)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "the list of query 'r' is empty; TREC tools would leave it out"),
        ([0, 2], "the list of query 'r' has item 2, but there are 2 items"),
        ([1, 1], "the list of query 'r' names an item twice"),
    ],
)
def test_a_list_that_cannot_be_written_leaves_the_old_file(tmp_path, row, message):
    (tmp_path / "run").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", [[0, 1], row], None, ["q", "r"], ["a", "b"])
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_what_the_ids_do_not_know():
    with pytest.raises(ValueError, match="the run has a query 'x' that is not among the query ids"):
        lists_of_run({"x": {"a": 1.0}}, ["q"], ["a"])
    with pytest.raises(ValueError, match="query 'q' of the run has an item 'b' that is not among the item ids"):
        lists_of_run({"q": {"b": 1.0}}, ["q"], ["a"])
    with pytest.raises(ValueError, match="the qrels have no right answer of query 'q'"):
        targets_of_qrels({"q": {"a": 0}}, ["q"], ["a"])
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        qrels_of_targets([[0], []], ["q", "r"], ["a"])
    with pytest.raises(ValueError, match="scores hold NaN"):
        ranked_lists(np.array([[1.0, np.nan]]), 1)


def test_ids_of_captions_are_in_the_order_of_the_features():
    def row(image_id, *tags):
        return {"image": None, "image_id": image_id, "captions": [{"language": tag, "text": "x"} for tag in tags]}

    dataset = [row("7", "en", "de", "en"), row("8", "de"), row("7", "en")]
    assert caption_query_ids(dataset) == ["de:7:0", "de:8:0", "en:7:0", "en:7:1", "en:7:2"]
    assert caption_query_ids(dataset, ["en"]) == ["en:7:0", "en:7:1", "en:7:2"]
    from ccrk.evaluation.features import read_rows

    captions, _ = read_rows(dataset, None)
    of_rows = [f"{tag}:{dataset[place]['image_id']}" for tag, pairs in captions.items() for place, _ in pairs]
    assert [name.rsplit(":", 1)[0] for name in caption_query_ids(dataset)] == of_rows
