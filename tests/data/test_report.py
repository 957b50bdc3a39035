"""Counts by cause: adding, merging, writing down, telling."""

from __future__ import annotations

import json
import pickle  # noqa: S403 - only to see that a report survives the way from a worker process

import pytest

from ccrk.data.report import CAPTION_EMPTY, IMAGE_MISSING, SkipReport


@pytest.fixture
def report() -> SkipReport:
    report = SkipReport(max_examples=2)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        report.add(IMAGE_MISSING, name)
    report.add(CAPTION_EMPTY)
    return report


def test_counts_and_the_first_examples(report):
    assert report == {IMAGE_MISSING: 3, CAPTION_EMPTY: 1} and report.total == 4
    assert report.examples(IMAGE_MISSING) == ["a.jpg", "b.jpg"]
    assert report.examples(CAPTION_EMPTY) == report.examples("never") == []
    assert report.get("never", 0) == 0 and "never" not in report
    assert bool(report) and not SkipReport()


def test_merging_adds_and_keeps_as_many_examples(report):
    other = SkipReport(max_examples=5)
    other.add(CAPTION_EMPTY, "d.jpg")
    other.add(IMAGE_MISSING, "e.jpg")
    assert report.merge(other) is report
    assert report == {IMAGE_MISSING: 4, CAPTION_EMPTY: 2}
    assert report.examples(IMAGE_MISSING) == ["a.jpg", "b.jpg"] and report.examples(CAPTION_EMPTY) == ["d.jpg"]
    assert other == {CAPTION_EMPTY: 1, IMAGE_MISSING: 1}


def test_draining_starts_anew(report):
    taken = report.drain()
    assert taken == {IMAGE_MISSING: 3, CAPTION_EMPTY: 1} and not report
    report.add(CAPTION_EMPTY, "x")
    assert taken[CAPTION_EMPTY] == 1 and report.examples(CAPTION_EMPTY) == ["x"]


@pytest.mark.parametrize("way", ["json", "process"])
def test_there_and_back(report, way):
    if way == "json":
        back = SkipReport.from_dict(json.loads(json.dumps(report.to_dict())))
    else:
        back = pickle.loads(pickle.dumps(report))  # noqa: S301
    assert back == report and back.to_dict() == report.to_dict()
    back.add(IMAGE_MISSING, "z")
    assert back[IMAGE_MISSING] == 4 and report[IMAGE_MISSING] == 3


@pytest.mark.parametrize("data", [{}, {"counts": [1], "examples": {}, "max_examples": 1}, {"counts": {"a": "x"}}])
def test_something_else_is_no_report(data):
    with pytest.raises(ValueError, match="no skip report"):
        SkipReport.from_dict(data)


def test_described(report):
    assert report.describe() == "1 x caption empty, 3 x image file missing"
    assert report.table().splitlines() == ["3  image file missing  a.jpg, b.jpg, ...", "1  caption empty"]
    assert SkipReport().describe() == SkipReport().table() == ""
