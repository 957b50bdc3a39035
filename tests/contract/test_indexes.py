"""What every index does alike: in memory, in a folder, in a file or server of Milvus Lite, in a whole Milvus."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ccrk.pipelines import lance_index
from ccrk.pipelines.index import VectorIndex, parse_where
from ccrk.pipelines.indexes import create_index, drop_index, open_index

SPEC = importlib.util.spec_from_file_location("ccrk_index_back_ends", Path(__file__).with_name("index_back_ends.py"))
back_ends = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = back_ends  # dataclasses look for it there
SPEC.loader.exec_module(back_ends)
clustered, fingerprint, units = back_ends.clustered, back_ends.fingerprint, back_ends.units

COLUMNS = {"language": "string", "Language": "string", "year": "int64", "size": "float64", "public": "bool"}
NASTY = [
    "it's",
    'say "hi"',
    "back\\slash",
    "\\",
    '\\"',
    "\\'",
    "100%",
    "_",
    "ünï 猫 😀",
    "e\u0301",
    "two\nlines\r\n\ttab",
    "\x01\x7f\x85\u2028",
    "' OR '1'='1",
    '" or id != "',
    "') OR 1=1 --",
    '"] or 1 == 1 or id in ["',
    "x'; DROP TABLE vectors; --",
    "{value}",
    "$1 ?",
    "/* */ -- #",
    "NULL",
    "a\\nb",
    "../../etc/passwd",
    "  padded  ",
]
WRITER = """
import runpy, sys
from ccrk.pipelines.indexes import open_index
units = runpy.run_path(sys.argv[2])["units"]
index = open_index(sys.argv[1])
for batch in range(1000):
    index.upsert([f"{batch}-{n}" for n in range(50)], units(50, seed=batch), [{"year": batch}] * 50)
    print(batch, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(
    scope="module",
    params=["memory", "lance", "lite file", "lite server", pytest.param("standalone", marks=pytest.mark.slow)],
)
def back_end(request, folder):
    if request.param in ("lite server", "standalone"):
        yield from (back_ends.lite_server if request.param == "lite server" else back_ends.standalone)(folder)
    else:
        yield back_ends.local(request.param, folder)


@pytest.fixture
def uri(back_end):
    uri = back_end.uri()
    yield uri
    with contextlib.suppress(FileNotFoundError):
        drop_index(uri)


@pytest.fixture
def index(uri):
    index = create_index(uri, fingerprint(), COLUMNS)
    yield index
    index.close()


def rows_of(index, **options):
    return {row["id"] for row in index.scan(**options)}


def test_an_empty_index_answers(index, uri):
    assert isinstance(index, VectorIndex)
    assert (index.uri, index.fingerprint, index.columns) == (uri, fingerprint(), COLUMNS)
    index.optimize()
    assert index.count() == index.count({"year": 3}) == index.delete(["a"]) == 0
    assert index.search(units(2), 5) == index.search(units(2), 5, exact=True) == [([], [])] * 2
    assert index.search(units(1), 5, {"language": "de"}) == [([], [])]
    assert list(index.scan(["vector"])) == index.entries([]) == index.search(units(2)[:0], 5) == []
    index.upsert([], units(1)[:0])
    with pytest.raises(KeyError, match="'a'"):
        index.entries(["a"])


def test_making_opening_and_dropping(back_end):
    uri = back_end.uri()
    for act in (open_index, drop_index):
        with pytest.raises(FileNotFoundError, match="there is no"):
            act(uri)
    create_index(uri, fingerprint(), {"a": "bool"}).close()
    with pytest.raises(FileExistsError, match="already"):
        create_index(uri, fingerprint(), {})
    index = open_index(uri)
    assert index.columns == {"a": "bool"}
    index.close()
    index.close()
    for act in (index.count, index.optimize, lambda: index.upsert(["a"], units(1)), lambda: index.search(units(1), 1)):
        with pytest.raises(ValueError, match="closed"):
            act()
    drop_index(uri)
    with pytest.raises(FileNotFoundError):
        open_index(uri)


def test_rows_are_added_replaced_and_deleted(index):
    vectors = units(6)
    rows = [{"language": "de", "year": n, "size": n / 3, "public": bool(n % 2)} for n in range(5)]
    index.upsert([f"r{n}" for n in range(5)], vectors[:5], rows)
    assert index.count() == 5
    empty = dict.fromkeys(COLUMNS)
    assert index.entries(["r3", "r0", "r3"]) == [
        {"id": i, **empty, **rows[n]} for i, n in (("r3", 3), ("r0", 0), ("r3", 3))
    ]
    index.upsert(["r3", "new"], vectors[[5, 3]], [{}, {"language": "", "year": 0, "size": 0.0, "public": False}])
    assert index.count() == 6
    replaced, new = index.entries(["r3", "new"])
    assert replaced == {"id": "r3", **empty}
    assert new == {"id": "new", **empty, "language": "", "year": 0, "size": 0.0, "public": False}
    (ids, scores), (second, _) = index.search(vectors[[5, 3]], 2)
    assert ids[0] == "r3" and second[0] == "new"
    assert scores == pytest.approx(
        [1.0, float(vectors[5] @ vectors[int(ids[1][1:]) if ids[1] != "new" else 3])], abs=1e-5
    )
    assert index.delete(["r3", "none", "r0", "r3"]) == 2
    assert rows_of(index) == {"r1", "r2", "r4", "new"}
    # a gap may be filled with another row, all of it
    assert index.entries(["r4", "r1", "r2"]) == [{"id": f"r{n}", **empty, **rows[n]} for n in (4, 1, 2)]
    assert index.entries(["new"]) == [new]
    assert "r3" not in index.search(vectors, 10)[5][0]
    with pytest.raises(KeyError, match="'r3'"):
        index.entries(["r1", "r3"])
    index.upsert(["r3"], vectors[3:4])
    assert index.count() == 5 and index.search(vectors[3:4], 5)[0][0][0] in ("r3", "new")


def test_search_gives_cosines_best_first(index):
    vectors = units(40)
    index.upsert([str(n) for n in range(40)], vectors)
    queries = units(3, seed=1)
    expected, order = (queries @ vectors.t()).sort(dim=1, descending=True)
    for exact in (False, True):
        for k in (1, 7, 40, 1000):
            for row, (ids, scores) in enumerate(index.search(3 * queries, k, exact=exact)):
                assert ids == [str(n) for n in order[row, :k].tolist()]
                assert scores == pytest.approx(expected[row, :k].tolist(), abs=1e-5)


def test_vectors_of_any_length_are_compared_by_direction(back_end):
    uri = back_end.uri()
    index = create_index(uri, fingerprint(normalised=False))
    vectors = units(20)
    lengths = torch.linspace(0.1, 30, 20)[:, None]
    index.upsert([str(n) for n in range(20)], vectors * lengths)
    assert [ids[0] for ids, _ in index.search(vectors, 1)] == [str(n) for n in range(20)]
    assert index.search(vectors[:1], 1)[0][1] == pytest.approx([1.0], abs=1e-5)
    (row,) = index.scan(["vector"], {"id": "7"})
    torch.testing.assert_close(row["vector"], vectors[7] * lengths[7])
    with pytest.raises(ValueError, match="'zero' has the length 0"):
        index.upsert(["zero"], torch.zeros(1, 16))
    index.close()
    drop_index(uri)


def test_bad_rows_are_refused_and_nothing_is_written(index):
    good = units(2)
    nan, zero = good.clone(), good.clone()
    nan[1, 3], zero[1] = float("nan"), 0
    for ids, vectors, metadata, message in (
        (["a", "b"], units(2, 8), None, "16-dimensional"),
        (["a", "b"], good[0], None, "16-dimensional"),
        (["a", "b"], nan, None, "'b' is not finite"),
        (["a", "b"], zero, None, "'b' has the length 0"),
        (["a", "b"], 2 * good, None, "'a' has the length 2"),
        (["a"], good, None, "1 ids for 2 vectors"),
        (["a", "a"], good, None, "same id"),
        (["a", ""], good, None, "cannot be an id"),
        (["a", 7], good, None, "cannot be an id"),
        (["a", "x" * 1025], good, None, "cannot be an id"),
        (["a", "nul\0"], good, None, "cannot be an id"),
        (["a", "\ud800"], good, None, "Unicode"),
        ("ab", good, None, "list of str"),
        (["a", "b"], good, [{}], "1 rows of metadata"),
        (["a", "b"], good, [{}, {"colour": "red"}], "'colour'"),
        (["a", "b"], good, [{}, {"year": "1990"}], "'year' is of type int64"),
        (["a", "b"], good, [{}, {"year": True}], "'year' is of type int64"),
        (["a", "b"], good, [{}, {"year": 2**63}], "too large"),
        (["a", "b"], good, [{}, {"size": float("inf")}], "'size' is of type float64"),
        (["a", "b"], good, [{}, {"language": "nul\0"}], "NUL"),
        (["a", "b"], good, [{}, {"language": "\ud800"}], "Unicode"),
    ):
        with pytest.raises(ValueError, match=message):
            index.upsert(ids, vectors, metadata)
    assert index.count() == 0


def test_bad_questions_are_refused(index):
    for vectors, k, message in (
        (units(1, 8), 1, "16-dimensional"),
        (units(1)[0], 1, "16-dimensional"),
        (units(1) * float("nan"), 1, "query 0"),
        (units(1) * 0, 1, "query 0"),
        (units(1), 0, "k is 0"),
        (units(1), 2.0, "k is 2.0"),
        (units(1), True, "k is True"),
    ):
        for exact in (False, True):
            with pytest.raises(ValueError, match=message):
                index.search(vectors, k, exact=exact)
    for where, message in (
        ({"colour": 1}, "'colour'"),
        ({"year": "x"}, "int64"),
        ({"year": []}, "empty list"),
        ({"year": {}}, "range"),
        ({"year": {"from": 1}}, "range"),
        ({"1 = 1 or year": 1}, "1 = 1"),
        ("year = 1", "it names columns"),
    ):
        for ask in (index.count, lambda where: index.search(units(1), 1, where), lambda where: index.scan([], where)):
            with pytest.raises(ValueError, match=message):
                ask(where)
    with pytest.raises(ValueError, match="no column 'colour'"):
        index.scan(["colour"])


def test_filters_by_hand(index):
    """Written down here, since the code that says below what meets a filter is what two back ends filter with."""
    rows = [{"year": n, "size": n / 2, "language": "abcd"[n]} for n in range(4)]
    index.upsert(["r0", "r1", "r2", "r3", "none"], units(5), [*rows, {}])
    for column, low, high in (("year", 1, 2), ("size", 0.5, 1.0), ("language", "b", "c"), ("id", "r1", "r2")):
        assert rows_of(index, where={column: {"min": low, "max": high}}) == {"r1", "r2"}, column
        assert rows_of(index, where={column: {"max": low}}) - {"none"} == {"r0", "r1"}, column
        assert rows_of(index, where={column: {"min": high}}) == {"r2", "r3"}, column
        assert rows_of(index, where={column: [low, high]}) == {"r1", "r2"}, column
    assert rows_of(index, where={"year": None}) == {"none"}
    assert "none" not in rows_of(index, where={"year": {"max": 10}})


def test_filters_mean_what_they_say(index):
    rows = [
        {
            "language": [None, "", "de", "en", "zh", *NASTY][n % (5 + len(NASTY))],
            "Language": "DE" if n % 2 else None,
            "year": None if n % 7 == 0 else n - 100,
            "size": None if n % 5 == 0 else (n - 100) * 1e-7,
            "public": [None, True, False][n % 3],
        }
        for n in range(200)
    ]
    ids = [f"row {n}" for n in range(200)]
    index.upsert(ids, units(200), rows)
    big = 2**63 - 1
    filters = [
        None,
        {},
        {"language": "de"},
        {"Language": "DE"},
        {"language": None},
        {"language": ""},
        {"language": ["de", None, "it's"]},
        {"language": {"min": "de", "max": "zh"}},
        {"year": 0},
        {"year": [-1, 5, 1000, None]},
        {"year": {"min": -3}},
        {"year": {"max": -90}},
        {"year": {"min": -3, "max": 3}},
        {"year": {"min": 3, "max": -3}},
        {"year": {"min": -big, "max": big}},
        {"year": [big, -big]},
        {"size": 1e-7},
        {"size": [3e-7, 1e300, -1e300, 5e-324]},
        {"size": {"min": -2e-7, "max": 2e-7}},
        {"size": {"min": 0}},
        {"public": True},
        {"public": False},
        {"public": None},
        {"public": [True, None]},
        {"public": [True, False]},
        {"id": "row 3"},
        {"id": ["row 3", "row 4", "none"], "public": True},
        {"id": {"min": "row 5", "max": "row 6"}},
        {"id": None},
        {"language": "de", "year": {"min": 0}, "public": [True, False]},
        {"language": ["de", "nobody"], "Language": None, "size": {"max": 0}},
        *({"language": text} for text in NASTY),
        {"language": NASTY},
        *({"id": text} for text in NASTY),
    ]
    for where in filters:
        conditions = parse_where(where, COLUMNS)
        meeting = {
            i
            for i, row in zip(ids, rows, strict=True)
            if all(c.holds(i if c.column == "id" else row[c.column]) for c in conditions)
        }
        assert rows_of(index, where=where) == meeting, where
        assert index.count(where) == len(meeting), where
        for exact in (False, True):
            ((found, _),) = index.search(units(1, seed=5), 300, where, exact)
            assert sorted(found) == sorted(meeting), where


def test_nasty_ids_and_texts_come_back_as_they_went(index):
    vectors = units(len(NASTY))
    index.upsert(NASTY, vectors, [{"language": text} for text in reversed(NASTY)])
    assert [row["language"] for row in index.entries(NASTY)] == NASTY[::-1]
    assert [ids[0] for ids, _ in index.search(vectors, 1)] == NASTY
    for number, text in enumerate(NASTY, 1):
        assert index.delete([text]) == 1
        assert index.count() == len(NASTY) - number, text


def test_scan_gives_every_row_once(index):
    # quotes at every end of a page, whichever size a page has
    ids = [f"{n:05d}'\"\\" for n in range(2500)]
    vectors = units(2500)
    index.upsert(ids, vectors, [{"year": n} for n in range(2500)])
    rows = list(index.scan(["year", "vector"]))
    assert sorted(row["id"] for row in rows) == ids
    assert all(list(row) in (["id", "year", "vector"], ["id", "vector", "year"]) for row in rows)
    assert all(ids[row["year"]] == row["id"] for row in rows)
    torch.testing.assert_close(torch.stack([row["vector"] for row in sorted(rows, key=lambda r: r["id"])]), vectors)
    assert sorted(row["year"] for row in index.scan(["year"], {"year": {"min": 100}})) == list(range(100, 2500))
    assert set(map(len, index.scan())) == {1}


def test_an_index_refuses_vectors_of_others(index):
    mine = index.fingerprint
    mine.require(replace(fingerprint(), model="the/same"), index.uri)
    for changed in ({"dimension": 8}, {"revision": "def"}, {"preprocessing": "p2"}, {"normalised": False}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            mine.require(replace(fingerprint(), **changed), index.uri)


def test_what_one_handle_writes_the_other_sees(index, uri):
    second = open_index(uri)
    assert (second.fingerprint, second.columns) == (index.fingerprint, index.columns)
    for number in range(5):
        index.upsert([f"{number}"], units(1, seed=number), [{"year": number}])
        assert second.count() == number + 1
        assert second.search(units(1, seed=number), 1)[0][0] == [f"{number}"]
        second.upsert([f"{number}"], units(1, seed=100 + number))
        assert index.search(units(1, seed=100 + number), 1)[0][0] == [f"{number}"]
    assert second.delete(["0", "1"]) == 2 and index.count() == 3
    second.close()
    assert index.count() == 3


def test_it_can_be_closed_and_opened_again(index, uri):
    vectors = units(30)
    index.upsert([str(n) for n in range(30)], vectors, [{"language": "de"}] * 30)
    index.delete(["3"])
    index.close()
    index = open_index(uri)
    assert index.count({"language": "de"}) == 29
    index.optimize()
    index.close()
    index = open_index(uri)
    assert index.search(vectors[4:5], 1)[0][0] == ["4"]
    assert rows_of(index) == {str(n) for n in range(30)} - {"3"}
    index.close()


def test_threads_may_share_it(index):
    index.upsert([str(n) for n in range(100)], units(100))
    errors = []

    def work(number):
        try:
            for turn in range(4):
                ids = [f"{number}-{turn}-{n}" for n in range(10)]
                index.upsert(ids, units(10, seed=1000 + 10 * number + turn))
                assert index.search(units(10, seed=1000 + 10 * number + turn), 1)[3][0] == [ids[3]]
                assert index.delete(ids[:5]) == 5
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert index.count() == 100 + 3 * 4 * 5


def recall(index, queries, where=None):
    exact = index.search(queries, 10, where, exact=True)
    found = index.search(queries, 10, where)
    return sum(len(set(a) & set(b)) for (a, _), (b, _) in zip(exact, found, strict=True)) / sum(
        len(a) for a, _ in exact
    )


def fill(uri, count, dimension):
    vectors, queries = clustered(count, dimension, 100)
    index = create_index(uri, fingerprint(dimension), {"share": "float64", "language": "string"})
    places = torch.rand(count, generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(0, count, 5000):
        part = range(start, min(start + 5000, count))
        metadata = [{"share": places[n], "language": ["de", "en", None][n % 3]} for n in part]
        index.upsert([str(n) for n in part], vectors[part.start : part.stop], metadata)
    return index, vectors, queries


def check_recall(index, vectors, queries):
    count = len(vectors)
    index.optimize()
    memory = create_index("memory:", index.fingerprint)
    memory.upsert([str(n) for n in range(count)], vectors)
    assert [ids for ids, _ in index.search(queries[:20], 10, exact=True)] == [
        ids for ids, _ in memory.search(queries[:20], 10)
    ]
    assert recall(index, queries) >= 0.98
    for where in ({"language": "de"}, {"share": {"max": 0.3}}, {"share": {"max": 0.05}}, {"share": {"max": 0.005}}):
        assert recall(index, queries, where) >= 0.95, where
    # what is written after it is found too, and what is replaced or deleted is not
    index.upsert(["late", "0"], queries[:2])
    assert [ids[0] for ids, _ in index.search(queries[:2], 1)] == ["late", "0"]
    assert index.search(vectors[:1], 1)[0][0] != ["0"]
    index.delete(["late"])
    assert "late" not in index.search(queries[:1], 10)[0][0]
    index.upsert([f"new {n}" for n in range(100)], queries[torch.arange(100) % len(queries)])
    memory.upsert(["0", *(f"new {n}" for n in range(100))], queries[[1, *(n % len(queries) for n in range(100))]])
    for _ in range(2):
        found = [row["id"] for row in index.scan()]
        assert sorted(found) == sorted([*map(str, range(count)), *(f"new {n}" for n in range(100))])
        assert recall(index, queries) >= 0.98
        scores = [row for _, row in index.search(queries, 10, exact=True)]
        torch.testing.assert_close(
            torch.tensor(scores), torch.tensor([row for _, row in memory.search(queries, 10)]), atol=1e-5, rtol=0
        )
        index.optimize()


def test_recall_after_optimize(uri, monkeypatch):
    monkeypatch.setattr(lance_index, "ANN_FROM", 1000)
    monkeypatch.setattr(lance_index, "EXACT_BELOW", 100)
    index, vectors, queries = fill(uri, 6000, 64)
    check_recall(index, vectors, queries)
    index.close()


@pytest.mark.slow
def test_recall_of_many_after_optimize(uri, back_end):
    if back_end.name == "memory":
        pytest.skip("it has no approximate search")
    index, vectors, queries = fill(uri, 60_000 if back_end.name == "lance" else 20_000, 128)
    check_recall(index, vectors, queries)
    index.close()


def test_what_was_acknowledged_survives_kill_9(back_end, uri):
    if not back_end.lasting:
        pytest.skip("it goes with its process")
    create_index(uri, fingerprint(), COLUMNS).close()
    writer = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, uri, back_ends.__file__], stdout=subprocess.PIPE, text=True
    )
    acknowledged = [int(writer.stdout.readline()) for _ in range(7)][-1]
    writer.kill()
    acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    writer.wait()
    index = open_index(uri)
    found = [row["id"] for row in index.scan()]
    assert len(found) == len(set(found)) == index.count()
    batches = {int(i.split("-")[0]) for i in found}
    assert batches >= set(range(acknowledged + 1)) and len(batches) <= acknowledged + 2
    assert len(found) == 50 * len(batches)  # no half of what was being written
    assert index.search(units(50, seed=acknowledged), 1)[49][0] == [f"{acknowledged}-49"]
    index.upsert(["after"], units(1, seed=5000))
    index.optimize()
    assert index.count() == len(found) + 1
    index.close()
