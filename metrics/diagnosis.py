"""What the figures of a model suggest, in words; nothing where they show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccrk.metrics.mrv.rank_variation import rank_variation
from ccrk.metrics.report_figures import RESAMPLES, final_mrv, growth_over_languages, language_name, rank_columns
from ccrk.metrics.significance import interval

MIN_ITEMS = 30
"""Photos below which nothing is said: an interval by resampling is too narrow for so few."""

GOOD_RECALL = 0.5
"""Recall at 1 from which a model counts as good: half of the questions find their photo first."""

HIGH_MRV = 10.0
"""Places from which MRV counts as high: a photo is off the first page of ten in one language, on it in another."""

HIGH_MRV_SHARE = 0.05
"""In galleries of fewer than 200 photos, the share of the gallery that counts as high instead."""

BRIDGE = "en"
"""Language that others are most often learned through."""

BRIDGE_LEAD = 0.02
"""Lead in recall at 1 over the mean of the others that is worth saying, as a share."""

GROWTH = 1.25
"""MRV that the closest half of interchangeable languages would have over that of the closest half, from which MRV is
said to grow."""

GROWTH_P = 0.025
"""Probability of such a half among interchangeable languages up to which it is not taken for chance."""


def diagnose(result: Mapping[str, Any]) -> list[str]:
    """What a person should know beside the figures, one sentence or a few for each.

    All three look at the final text-to-image ranks of the first captions, by photo. A difference that a 95 % interval
    by resampling photos, or a test, does not confirm is not told, nor anything on fewer than `MIN_ITEMS` photos.

    * Good recall with high MRV: the whole interval of recall at 1 (mean over languages) lies above `GOOD_RECALL`, and
      that of MRV above `HIGH_MRV` places, in small galleries above `HIGH_MRV_SHARE` of the photos if that is less.
    * English ahead of the others, as when they were learned through it and inherit its errors: the interval of its
      lead over the mean of the others lies above `BRIDGE_LEAD`, and that of its lead over the best of them above 0.
      One weak language does not make English ahead.
    * MRV that grows with the number of languages by more than it would among interchangeable ones (see
      `growth_over_languages`): the half of the languages that is closest would have at least `GROWTH` times its MRV if
      languages were interchangeable, and by chance it would come about in at most `GROWTH_P` of all cases. That a
      standard deviation over more languages is larger is never told by itself.

    Args:
        result: what an evaluation returns.

    Returns:
        The sentences; an empty list if there is nothing to say, fewer than two languages, or no items.
    """
    table, tags = rank_columns(result)
    if len(tags) < 2:
        return []
    varied, names = rank_columns(result, (final_mrv(result) or {}).get("languages"))
    found = (_good_but_varied(varied, len(table)), _bridge(table, tags), _growth(varied, names))
    return [text for text in found if text]


def _good_but_varied(table: np.ndarray, images: int) -> str | None:
    table = table[(~np.isnan(table)).sum(1) > 1]
    if len(table) < MIN_ITEMS:
        return None
    recall, good, _ = interval(np.nanmean(np.where(np.isnan(table), np.nan, table < 1), axis=1), resamples=RESAMPLES)
    values = rank_variation(table)["std"]
    mrv, low, high = interval(values, resamples=RESAMPLES)
    if good < GOOD_RECALL or low < min(HIGH_MRV, HIGH_MRV_SHARE * images):
        return None
    falling = np.sort(values)[::-1]
    few = (np.searchsorted(falling.cumsum(), falling.sum() / 2) + 1) / len(falling)
    return (
        f"Good recall with high MRV: {100 * recall:.0f} % of the questions find their photo first, yet from one "
        f"language to another the place of a photo varies by {mrv:.1f} on average (95 % interval {low:.1f} to "
        f"{high:.1f}). Half of that comes from {100 * few:.1f} % of the photos."
    )


def _bridge(table: np.ndarray, tags: list[str]) -> str | None:
    english = next((tag for tag in tags if tag.split("-")[0] == BRIDGE), None)
    others = [column for column, tag in enumerate(tags) if tag.split("-")[0] != BRIDGE]
    if english is None or not others:
        return None
    hits = np.where(np.isnan(table), np.nan, table < 1)
    rows = ~np.isnan(hits[:, tags.index(english)]) & (~np.isnan(hits[:, others])).any(1)
    if rows.sum() < MIN_ITEMS:
        return None
    of_english, rest = hits[rows, tags.index(english)], hits[rows][:, others]
    of_rest = np.nanmean(rest, axis=1)
    lead, low, high = interval(of_english - of_rest, resamples=RESAMPLES)
    # means over the photos that have both, so that a language with few captions is not favoured by which they are
    leads = of_english[:, None] - rest
    counts = (~np.isnan(rest)).sum(0)
    means = np.where(counts > 0, np.nansum(leads, axis=0) / np.maximum(counts, 1), np.inf)
    best = int(np.argmin(means))
    pairs = leads[:, best][~np.isnan(leads[:, best])]
    if low < BRIDGE_LEAD or len(pairs) < MIN_ITEMS or interval(pairs, resamples=RESAMPLES)[1] <= 0:
        return None
    return (
        f"English is ahead: it finds {100 * of_english.mean():.0f} % of the photos first, the other languages "
        f"{100 * of_rest.mean():.0f} % on average, {100 * lead:.0f} points less (95 % interval {100 * low:.0f} to "
        f"{100 * high:.0f}); even {language_name(tags[others[best]])}, which comes nearest, is behind. It is the "
        f"pattern of a bridge language: what the others learn through English comes with its errors and their own. "
        f"Captions that are easier in English look the same."
    )


def _growth(table: np.ndarray, tags: list[str]) -> str | None:
    growth = growth_over_languages(table, tags)
    if growth is None or growth["items"] < MIN_ITEMS:
        return None
    half, mrv = growth["half"], growth["closest"]
    if half["p"] > GROWTH_P or half["interchangeable"] < GROWTH * half["closest"]:
        return None
    order = [language_name(tag) for tag in growth["order"]]
    return (
        f"MRV grows with the number of languages: it is {mrv[0]:.1f} over {order[0]} and {order[1]}, "
        f"{half['closest']:.1f} over the {half['size']} languages that are closest, {mrv[-1]:.1f} over all "
        f"{len(order)}. Were languages interchangeable, the closest {half['size']} would have "
        f"{half['interchangeable']:.1f}; so some bring more disagreement than others. Last to join: "
        f"{', '.join(order[half['size'] :])}."
    )
