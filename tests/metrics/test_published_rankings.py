"""Recall, MRV and consistency of real systems: the top-20 lists that IGLUE publishes, against plain versions."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest

from ccrk.metrics.ccr_recall.recall import recall_at, top_ranks
from ccrk.metrics.consistency import consistency
from ccrk.metrics.mrv.rank_variation import mean_rank_variance

LANGUAGES = ("en", "de", "es", "id", "ja", "ru", "tr", "zh")
SYSTEMS = ("ctrl_muniter", "uc2")
IMAGES, TOP = 2000, 20


@pytest.fixture(scope="module")
def iglue(shared):
    return shared / "reference" / "iglue"


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request, iglue):
    lists = {}
    for tag in LANGUAGES:
        with gzip.open(iglue / f"{request.param}_{tag}_top20.json.gz", "rt") as file:
            lists[tag] = json.load(file)
    return request.param, lists


def published(iglue, name):
    with open(iglue / "xFlickrCO_ir_0.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return next(row for row in rows if row["model"] == name)


def test_recall_at_one_is_the_published_one(system, iglue):
    name, lists = system
    expected = published(iglue, name)
    found = {}
    for tag in LANGUAGES:
        found[tag] = 100 * recall_at(top_ranks(lists[tag], range(IMAGES)), [1])[1]
        assert found[tag] == pytest.approx(float(expected[tag]), rel=1e-14)
    average = np.mean([found[tag] for tag in LANGUAGES if tag != "en"])
    assert average == pytest.approx(float(expected["avg"]), rel=1e-14)


@pytest.mark.parametrize("policy", ["rank_k", "mean_of_rest", "drop"])
def test_mrv_against_plain_numpy(system, policy):
    name, lists = system
    chosen = ("en", "de", "ja", "zh")
    ranks = {tag: top_ranks(lists[tag], range(IMAGES)) for tag in chosen}
    result = mean_rank_variance(ranks, misses=policy, top_k=TOP, candidates=IMAGES)
    stds, variances, mads = [], [], []
    for item in range(IMAGES):
        values = []
        for tag in chosen:
            if item in lists[tag][item]:
                values.append(float(lists[tag][item].index(item)))
            elif policy == "rank_k":
                values.append(20.0)
            elif policy == "mean_of_rest":
                values.append(sum(range(20, 2000)) / 1980)
        if len(values) > 1:
            stds.append(np.std(values))
            variances.append(np.var(values))
            mads.append(np.mean(np.abs(np.array(values) - np.mean(values))))
    figures = "  ".join(f"{one} {result[one]:.2f}" for one in ("std", "variance", "mad"))
    print(f"{name} {policy}: {figures}  items {result['items']}  misses {result['missed']}")
    assert result["items"] == len(stds)
    assert result["missed"] == sum(item not in lists[tag][item] for tag in chosen for item in range(IMAGES))
    for name, values in (("std", stds), ("variance", variances), ("mad", mads)):
        assert abs(result[name] - np.mean(values)) <= 1e-12 * max(1, np.mean(values))


def test_consistency_against_plain_numpy(system):
    _, lists = system
    result = consistency(lists, IMAGES)
    for tag in LANGUAGES[1:]:
        pairs = list(zip(lists["en"], lists[tag], strict=True))
        overlap = np.mean([len(set(a[:10]) & set(b[:10])) / 10 for a, b in pairs])
        assert abs(result["overlap"][tag] - overlap) < 1e-12
        correlations = []
        for a, b in pairs:
            one, two = np.full((2, IMAGES), (20 + 1999) / 2)
            one[a], two[b] = np.arange(20), np.arange(20)
            correlations.append(np.corrcoef(one, two)[0, 1])
        assert abs(result["correlation"][tag] - np.mean(correlations)) < 1e-12
