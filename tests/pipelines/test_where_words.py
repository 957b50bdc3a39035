"""Filters of a command line."""

from __future__ import annotations

import pytest

from ccrk.pipelines.index import parse_where
from ccrk.pipelines.where_words import where_from_words

COLUMNS = {"place": "string", "year": "int64", "share": "float64", "good": "bool"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("place=Paris", {"place": "Paris"}),
        ("place=Paris,Rom", {"place": ["Paris", "Rom"]}),
        ("place=a=b", {"place": "a=b"}),
        ("place=", {"place": None}),
        ('place=["Paris, Texas"]', {"place": ["Paris, Texas"]}),
        ('place="a..b"', {"place": "a..b"}),
        ("place=2024..2025", {"place": {"min": "2024", "max": "2025"}}),
        ("place=it's; drop", {"place": "it's; drop"}),
        ("id=more/02.png", {"id": "more/02.png"}),
        ("year=2001", {"year": 2001}),
        ("year=-3,4", {"year": [-3, 4]}),
        ("year=2001..", {"year": {"min": 2001}}),
        ("year=..2005", {"year": {"max": 2005}}),
        ("share=0.5..1", {"share": {"min": 0.5, "max": 1.0}}),
        ("good=true", {"good": True}),
        ("good=False", {"good": False}),
    ],
)
def test_words(word, expected):
    assert where_from_words([word], COLUMNS) == expected
    parse_where(expected, COLUMNS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["place"], "'place' is no condition; write column=value"),
        (["=3"], "'=3' is no condition"),
        (["nope=3"], "column 'nope', but the index has: good, id, place, share, year"),
        (["year=x"], "'year' has 'x', and the column holds a whole number"),
        (["year=1,,2"], "'year' has ''"),
        (["year=.."], "range without ends"),
        (["good=yes"], "true or false"),
        (['place=["a"'], "begins as JSON does and is none"),
        (["year=1", "year=2"], "names 'year' twice"),
    ],
)
def test_what_is_no_filter(words, message):
    with pytest.raises(ValueError, match=message):
        where_from_words(words, COLUMNS)


def test_without_an_index():
    with pytest.raises(ValueError, match="'year=1' needs an index"):
        where_from_words(["year=1"], None)
