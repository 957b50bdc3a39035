"""The card of a data set of captions: how many photos and captions in which languages, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ccrk.hub_cards.figures import CardError, Sources, escape, fill, named
from ccrk.hub_cards.model_card import RenderedCard, template

DATA = "results/data.json"
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass
class DataCardOptions:
    """What a person says of a data set.

    Attributes:
        name: heading of the card.
        repo: `org/name` on the Hub.
        license: identifier of the Hub.
        license_link: where a licence of the name `other` stands.
        sources: where photos and captions are from, in words or addresses.
        source_datasets: Hub ids of the data sets that it was made of.
        tags: further tags.
        texts: Markdown: `what` it is, and `limits`; figures in it are placeholders, see `figures.fill`.
    """

    name: str
    repo: str | None = None
    license: str | None = None
    license_link: str | None = None
    sources: list[str] = field(default_factory=list)
    source_datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.texts) - {"what", "limits"}
        if unknown:
            raise CardError(f"the card of a data set has no text '{sorted(unknown)[0]}'; it has what, limits")


def check_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is counted of a data set.

    Args:
        facts: `rows` (photos), `captions` (language -> number) and, where they are known, `splits` (name -> photos),
            `skipped` (cause -> number) and `with_all_languages` (photos that have a caption in every language).

    Returns:
        The same, with `texts` (all captions) and `captions_per_photo`.

    Raises:
        CardError: for what is missing, unknown or no count.
    """
    known = ("rows", "captions", "splits", "skipped", "with_all_languages")
    unknown = set(facts) - set(known)
    if unknown:
        raise CardError(
            f"'{sorted(unknown)[0]}' is nothing that a card of a data set tells; it tells {', '.join(known)}"
        )
    for name in ("rows", "captions"):
        if name not in facts:
            raise CardError(f"the facts of a data set lack '{name}'")
    counts = {"rows": facts["rows"]}
    for name in ("captions", "splits", "skipped"):
        counts |= {f"{name} of '{key}'": value for key, value in (facts.get(name) or {}).items()}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CardError(f"the number of {name} is {value!r}; expected a whole number, 0 or more")
    if not facts["rows"] or not facts["captions"]:
        raise CardError("the data set is empty: there is no photo or no caption")
    texts = sum(facts["captions"].values())
    return {**facts, "texts": texts, "captions_per_photo": texts / facts["rows"]}


def render_data_card(
    options: DataCardOptions, documents: Mapping[str, Any], assets: Iterable[str] = ()
) -> RenderedCard:
    """Fills the template; see `model_card.render_model_card`.

    Raises:
        CardError: if a figure has no source.
    """
    sources = Sources(documents)
    facts = sources.value(DATA)
    tags = sorted({tag.split("-")[0].lower() for tag in facts["captions"]})
    data = DatasetCardData(
        language=tags,
        license=options.license,
        license_link=options.license_link,
        pretty_name=options.name,
        multilinguality="multilingual" if len(tags) > 1 else "monolingual",
        size_categories=next((name for limit, name in SIZES if facts["rows"] < limit), "n>10M"),
        source_datasets=options.source_datasets or None,
        tags=list(dict.fromkeys(["image-text-retrieval", "captions", "ccrk", *options.tags])),
    )

    def rows(name: str) -> list[tuple[str, str]]:
        return [(escape(key), sources.figure("count", DATA, name, key)) for key in facts.get(name) or {}]

    everywhere = facts.get("with_all_languages") is not None
    card = DatasetCard.from_template(
        data,
        template_str=template("dataset_card.md"),
        name=escape(options.name),
        repo=options.repo or options.name,
        what=fill(options.texts.get("what", ""), sources, "the text 'what'"),
        limits=fill(options.texts.get("limits", ""), sources, "the text 'limits'"),
        photos=sources.figure("count", DATA, "rows"),
        texts=sources.figure("count", DATA, "texts"),
        per_photo=sources.figure("tenth", DATA, "captions_per_photo"),
        everywhere=sources.figure("count", DATA, "with_all_languages") if everywhere else None,
        captions=[(named(tag), sources.figure("count", DATA, "captions", tag)) for tag in facts["captions"]],
        splits=rows("splits"),
        skipped=rows("skipped"),
        origins=[escape(source) for source in options.sources],
        license=options.license,
    )
    text, figures = sources.finish(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")
    return RenderedCard(text, figures)
