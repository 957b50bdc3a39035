"""Ranks and recall, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.ccr_recall.recall import (
    Targets,
    embedding_ranks,
    embedding_recall,
    recall_at,
    recall_figures,
    target_ranks,
    top_ranks,
)

SCORES = np.array([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, 0.7, 0.6, 0.8]])


@pytest.mark.parametrize(
    ("ties", "expected"), [("pessimistic", [2, 3, 1]), ("optimistic", [1, 0, 1]), ("mean", [1.5, 1.5, 1])]
)
def test_ties(ties, expected):
    assert target_ranks(SCORES, [[1], [0], [1]], ties).tolist() == expected


def test_right_answers_do_not_count_against_one_another():
    assert target_ranks(SCORES, [[1, 2], [0, 1, 2, 3], [1, 3]]).tolist() == [1, 0, 0]


def test_recall_counts_ranks_below_k():
    assert recall_at(np.array([0, 1, 4, 5, 9, 10])) == {1: 1 / 6, 5: 0.5, 10: 5 / 6}


def test_a_miss_is_never_found():
    ranks = top_ranks([[3, 1], [2, 0], [5]], [1, [4, 0], 4])
    assert ranks.tolist() == [1, 1, np.inf]
    assert recall_at(ranks, [1, 2, 100]) == {1: 0, 2: 2 / 3, 100: 2 / 3}
    with pytest.raises(ValueError, match="the list of query 0 names an item twice"):
        top_ranks([[1, 1]], [1])
    with pytest.raises(ValueError, match="2 lists of the best, but right answers of 1"):
        top_ranks([[1], [2]], [1])


def plain_recall(matrix: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of rows of which a right column is among the first k, wrong ones first where scores are equal."""
    found = 0
    for scores, flags in zip(matrix, right, strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], flags[i]))
        place = [flags[i] for i in order].index(True)
        found += place < k
    return found / len(matrix)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("tile", [(1, 3), (4, 5), (64, 64)])
def test_recall_in_both_directions_from_embeddings(kind, tile):
    """Several captions of an image, several images of a caption, two languages, ties."""
    rng = np.random.default_rng(3)
    images, texts = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (9, 20))
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])
    text_images = rng.integers(0, 8, 20)
    tags = np.array(["en", "de"])[rng.integers(0, 2, 20)]
    if kind == "torch":
        torch = pytest.importorskip("torch")
        images, texts = torch.from_numpy(images), torch.from_numpy(texts)
    result = embedding_recall(images, texts, text_images, tags, image_groups=groups, ks=[1, 3], tile=tile)
    matrix = np.asarray(texts) @ np.asarray(images).T
    right = groups[text_images][:, None] == groups[None]
    for tag in ("en", "de"):
        chosen = np.flatnonzero(tags == tag)
        of_tag = right[chosen].any(0)
        for k in (1, 3):
            assert result["languages"][tag][f"ir@{k}"] == plain_recall(matrix[chosen], right[chosen], k)
            there = plain_recall(matrix[chosen][:, of_tag].T, right[chosen][:, of_tag].T, k)
            assert result["languages"][tag][f"tr@{k}"] == there
    figures = [result["languages"][tag][name] for tag in ("en", "de") for name in ("ir@1", "ir@3", "tr@1", "tr@3")]
    assert result["mean_recall"] == pytest.approx(np.mean(figures))
    assert result["ir@1"] == pytest.approx(np.mean([result["languages"][tag]["ir@1"] for tag in ("en", "de")]))


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("tile", [(1, 1), (3, 4), (64, 64)])
def test_every_tie_policy_in_tiles(ties, tile):
    rng = np.random.default_rng(4)
    queries, items = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (13, 17))
    targets = [rng.choice(17, rng.integers(1, 5), replace=False) for _ in queries]
    matrix = queries @ items.T
    expected = []
    for scores, right in zip(matrix, targets, strict=True):
        wrong = np.delete(scores, right)
        best = scores[right].max()
        above, level = (wrong > best).sum(), (wrong == best).sum()
        expected.append(above + {"pessimistic": level, "optimistic": 0, "mean": level / 2}[ties])
    assert embedding_ranks(queries, items, targets, ties, tile).tolist() == expected
    assert target_ranks(matrix, targets, ties, tile).tolist() == expected


def test_infinite_scores_can_be_ranked():
    scores = np.array([[-np.inf, np.inf, 0], [np.inf, np.inf, -np.inf]])
    assert target_ranks(scores, [2, 2]).tolist() == [1, 2]


def test_means_without_and_with_languages():
    ranks = {"ir": np.array([0, 0, 3, 9]), "tr": np.array([2, 0])}
    plain = recall_figures(ranks, ks=[1, 5])
    assert plain == {"ir@1": 0.5, "ir@5": 0.75, "tr@1": 0.5, "tr@5": 1, "mean_recall": 0.6875}
    split = recall_figures(ranks, {"ir": ["en", "en", "de", "de"], "tr": ["en", "de"]}, ks=[1, 5])
    assert split["languages"]["de"] == {"ir@1": 0, "ir@5": 0.5, "tr@1": 1, "tr@5": 1, "mean_recall": 0.625}
    with pytest.raises(ValueError, match="ir: there are 4 queries, but languages of 1"):
        recall_figures({"ir": ranks["ir"]}, {"ir": ["en"]})
    with pytest.raises(ValueError, match="no query"):
        recall_figures({"ir": []})


def test_targets_by_groups_and_by_lists_are_the_same():
    queries, items = np.array([2, 0, 2]), np.array([0, 2, 1, 2])
    by_group = Targets.of_groups(queries, items)
    by_list = Targets.of([[1, 3], [0], [1, 3]])
    assert by_group.queries.tolist() == by_list.queries.tolist() and by_group.items.tolist() == by_list.items.tolist()
    assert [(a.tolist(), b.tolist()) for a, b in by_list.slots()] == [([0, 1, 2], [1, 0, 1]), ([0, 2], [3, 3])]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="there are 3 queries, but right answers of 2"):
        target_ranks(SCORES, [0, 1])
    with pytest.raises(ValueError, match="the right answer of query 1 is item 4, but there are 4 items"):
        target_ranks(SCORES, [0, 4, 1])
    with pytest.raises(ValueError, match="not finite"):
        embedding_ranks(np.array([[np.inf]]), np.ones((1, 1)), [0])
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        target_ranks(SCORES, [[0], [], [0]])
    with pytest.raises(ValueError, match="NaN"):
        target_ranks(np.array([[np.nan, 1.0]]), [[0]])
    with pytest.raises(ValueError, match="ties is 'lucky'"):
        target_ranks(SCORES, [[0]] * 3, "lucky")
