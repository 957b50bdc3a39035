"""The sentences of a report: what its figures say, and by which rules they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ccrk.metrics.report_figures import language_name
from ccrk.metrics.report_plots import percent

MRV_EXPLAINED = (
    "MRV, mean rank variation: ask for the same photo once in every language and note at which place it is found each "
    "time; MRV is how far these places lie apart (their {statistic}), averaged over all photos. 0 means that every "
    "language finds every photo at the same place; lower is better."
)

STATISTICS = {
    "std": "standard deviation",
    "variance": "variance",
    "mad": "mean absolute deviation",
}

_TIES = {
    "pessimistic": "a photo stands behind wrong ones of equal score",
    "optimistic": "a photo stands before wrong ones of equal score",
    "mean": "a photo stands in the middle of wrong ones of equal score",
}


def title(summaries: Sequence[Mapping]) -> str:
    """Of the whole report."""
    return "Do the languages agree? " + ", ".join(summary["name"] for summary in summaries)


def mrv_explained(summary: Mapping) -> str:
    """One sentence for somebody who has never heard of it."""
    statistic = (summary["mrv"] or {}).get("statistic", "std")
    return MRV_EXPLAINED.format(statistic=STATISTICS.get(statistic, statistic))


def words(summary: Mapping) -> list[str]:
    """The headline figures of one result in sentences."""
    sentences = [_of_recall(summary)]
    if summary["mrv"]:
        sentences.append(_of_mrv(summary))
    elif len(summary["recall"]["languages"]) < 2:
        sentences.append("Consistency compares languages, so with one there is no MRV.")
    else:
        sentences.append("There is no MRV in this result.")
    if summary["agreement"]:
        sentences.append(_of_agreement(summary["agreement"]))
    if summary["prevalence"]:
        sentences.append(_of_prevalence(summary["prevalence"]))
    if summary["rerank"]:
        sentences.append(_of_reranking(summary["rerank"]))
    return sentences


def _of_recall(summary: Mapping) -> str:
    recall, count = summary["recall"], len(summary["recall"]["languages"])
    among = f" among {summary['images']:,} photos" if summary["images"] else ""
    if count == 1:
        return (
            f"Asked in {language_name(recall['best'])}, the model finds the right photo first for "
            f"{percent(recall['mean'])} % of the captions{among}."
        )
    best, worst = (
        f"{language_name(recall[end])} ({percent(recall['languages'][recall[end]]['ir@1'])} %)"
        for end in ("best", "worst")
    )
    return (
        f"Asked in {count} languages, the model finds the right photo first for {percent(recall['mean'])} % of the "
        f"captions{among}: most often in {best}, least often in {worst}, a gap of {percent(recall['gap'])} points."
    )


def _of_mrv(summary: Mapping) -> str:
    mrv, spread = summary["mrv"], summary["spread"]
    statistic = STATISTICS.get(mrv.get("statistic", "std"), mrv.get("statistic"))
    within = f", 95 % interval {mrv['low']:.2f} to {mrv['high']:.2f}" if mrv.get("low") is not None else ""
    text = f"From language to language the place of a photo varies by {mrv['mrv']:.2f} (MRV, {statistic}{within})"
    if not spread:
        return f"{text}."
    text += f"; {percent(spread['still'])} % of the photos do not move at all"
    if spread["half"] is not None:
        text += f", and {percent(spread['half'])} % of them make up half of the variation"
    return f"{text}."


def _of_agreement(agreement: Mapping) -> str:
    k = agreement["k"]
    text = f"Of the first {k} photos, two languages have {k * agreement['mean']:.1f} in common on average"
    (a, b, most), (c, d, least) = agreement["closest"], agreement["furthest"]
    if (a, b) == (c, d):
        return f"{text}."
    return (
        f"{text}: most {language_name(a)} and {language_name(b)} ({k * most:.1f}), least {language_name(c)} and "
        f"{language_name(d)} ({k * least:.1f})."
    )


def _of_prevalence(prevalence: Mapping) -> str:
    most, least = (
        f"{language_name(prevalence[end])} has {prevalence['ratio'][prevalence[end]]:.2f} times"
        for end in ("most", "least")
    )
    return (
        f"Asked by photo among the captions of all languages, {most} the places on the first page "
        f"({prevalence['k']}) that its share of the captions would give it, {least}; {percent(prevalence['bias'])} % "
        f"of the places went to other languages than an even-handed model would show."
    )


def _of_reranking(points: Sequence[Mapping]) -> str:
    before, after = points[0], points[-1]
    text = (
        f"Re-ranking the first {after['top']} {_moves(before['ir@1'], after['ir@1'])} mean recall at 1 from "
        f"{percent(before['ir@1'])} % to {percent(after['ir@1'])} %"
    )
    if before["mrv"] is not None and after["mrv"] is not None:
        verb = _moves(before["mrv"], after["mrv"])
        text += f" and {verb} MRV from {before['mrv']:.2f} to {after['mrv']:.2f}"
    return f"{text}."


def _moves(before: float, after: float) -> str:
    return "raises" if after > before else "lowers" if after < before else "leaves"


# --- policies -----------------------------------------------------------------------------------------------------


def policies(summary: Mapping, result: Mapping) -> dict[str, str]:
    """By which rules the figures of one result came about: `recall`, `spread`, `agreement`, `rerank` and `worst`."""
    tags = list(summary["recall"]["languages"])
    ties = (result.get("settings") or {}).get("ties")
    ties = f"ties {ties}: {_TIES[ties]}" if ties in _TIES else f"ties: {ties}" if ties else "ties: not stated"
    ranking = f"ranked {summary['ranking']}"
    rerank_languages = list((result.get("curve") or [{"languages": {}}])[0]["languages"])
    mrv, spread = summary["mrv"] or {}, summary["spread"] or {}
    statistic = STATISTICS.get(mrv.get("statistic", "std"), mrv.get("statistic"))
    missed = f"; {mrv['missed']} ranks were misses" if mrv.get("missed") else ""
    agreement = summary["agreement"] or {}
    return {
        "recall": (
            f"Recall at 1, text to image: share of all captions whose photo comes first, in percent; languages "
            f"{', '.join(tags)}; {ranking}; {ties}. Intervals: 95 %, by resampling photos, as wide as the first "
            f"caption of each photo gives."
        ),
        "spread": (
            f"Population standard deviation of the text-to-image rank of each photo's first caption over "
            f"{', '.join(spread.get('languages', ()))}; {spread.get('items', 0):,} photos with ranks in two languages "
            f"or more, {spread.get('left_out', 0):,} left out; {ranking}; {ties}."
        ),
        "mrv": (
            f"MRV: {statistic}, text to image, over {', '.join(mrv.get('languages', ()))}; {mrv.get('items', 0):,} "
            f"photos, {mrv.get('left_out', 0):,} left out{missed}; {ranking}; {ties}."
        ),
        "agreement": (
            f"Share of the first {agreement.get('k', 10)} photos that two languages have in common for captions of "
            f"the same photo, in percent, averaged over photos; text to image; {ranking}. Order: Spearman's "
            f"correlation of the ranks, where photos that a list does not hold share one."
        ),
        "rerank": (
            f"Text to image; recall at 1 is the mean over {', '.join(rerank_languages)}; 0 is the order by "
            f"embeddings; MRV is the {statistic}; {ties}."
        ),
        "worst": (
            f"The photos with the largest standard deviation of their text-to-image rank over languages; first "
            f"caption of each; {ranking}; {ties}. Places count from 1."
        ),
    }


def settings(model: Mapping) -> dict[str, str]:
    """What one result was measured with, and what was left out, as text."""
    facts = {key: model[key] for key in ("benchmark", "protocol", "images", "texts") if model[key] is not None}
    facts |= {"ranking": model["ranking"], **model["settings"]}
    facts |= {f"skipped {key}": value for key, value in model["skipped"].items() if value}
    return {key: _setting(value) for key, value in facts.items()}


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- two models ---------------------------------------------------------------------------------------------------


def comparison_rows(comparison: Mapping) -> list[tuple[str, str, str, str, str, str]]:
    """Figure, first model, second model, difference, its interval and p, of each test that there is."""
    tests = [(f"Recall at 1, {language_name(tag)}", test, True) for tag, test in comparison["languages"].items()]
    tests.append(("Recall at 1, all languages", comparison["hits"], True))
    tests.append(("Rank variation (std), lower is better", comparison["variation"], False))
    return [(name, *_test(test, share)) for name, test, share in tests if test]


def _test(test: Mapping, share: bool) -> tuple[str, str, str, str, str]:
    scale, digits = (100, 1) if share else (1, 2)
    first, second = (f"{scale * test[key]:.{digits}f}" for key in ("first", "second"))
    difference, low, high = (f"{scale * test[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    difference, low, high = (text.replace("-", "\N{MINUS SIGN}") for text in (difference, low, high))
    p = "≤ 0.001" if test["p"] <= 0.001 else f"{test['p']:.3f}"
    return first, second, difference, f"{low} to {high}", p


def comparison_policy(comparison: Mapping) -> str:
    """What is compared, and what the reader should mind."""
    first, second = comparison["names"]
    text = (
        f"{second} less {first}, on the {comparison['items']:,} photos that both were asked for (first captions, text "
        f"to image, final ranking). Intervals: 95 %, by resampling photos; p: exchanging the two models at random "
        f"within each photo, two-sided, not corrected for the number of rows."
    )
    if any(comparison["only"]):
        text += (
            f" The galleries differ ({comparison['only'][0]:,} photos are only {first}'s, {comparison['only'][1]:,} "
            f"only {second}'s), so ranks are places among different photos."
        )
    return text


def comparison_in_words(comparison: Mapping) -> str:
    """Whether the second model finds more, and whether its languages agree more, as far as the tests show it."""
    first, second = comparison["names"]
    if not comparison["hits"]:
        return f"{first} and {second} have no photo and language in common, so they cannot be compared."
    sentences = [
        _shown(
            comparison["hits"],
            f"{second} finds {{}} photos first than {first}",
            ("more", "fewer"),
            f"{first} and {second} do not measurably differ in how many photos they find first",
        )
    ]
    if comparison["variation"]:
        sentences.append(
            _shown(
                comparison["variation"],
                f"With {second} the place of a photo varies {{}} from language to language than with {first}",
                ("more", "less"),
                "The places of photos vary from language to language by the same with both, as far as can be measured",
            )
        )
    return " ".join(f"{sentence}." for sentence in sentences)


def _shown(test: Mapping, text: str, higher_lower: tuple[str, str], otherwise: str) -> str:
    if test["low"] > 0 or test["high"] < 0:
        return text.format(higher_lower[test["difference"] < 0])
    return otherwise
