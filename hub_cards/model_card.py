"""The model card: its template filled with what the results files hold."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ccrk.hub_cards.card_words import (
    INTENDED_USE,
    LIMITS,
    WHAT,
    PartWords,
    carbon,
    measured_on,
    training_cost,
    training_rows,
)
from ccrk.hub_cards.figures import CardError, Figure, Sources, escape, fill
from ccrk.metrics.report_figures import language_name

PIPELINE_TAG = "ccr-retrieval"
TAGS = ("ccrk", "cross-lingual", "image-text-retrieval", "multilingual")
PAPER = "arxiv:2406.18254"  # as a tag it links the model to the paper
RECALLS = ("ir@1", "ir@5", "ir@10", "tr@1", "tr@5", "tr@10")
TEXTS = ("what", "intended_use", "limits")
"""Parts of a card that a person may write; figures in them are placeholders, see `figures.fill`."""

PLOTS = {
    "recall": ("recall", "Recall at 1 by language, with 95 % intervals"),
    "spread": ("consistency", "Share of the photos by how far their rank varies over languages"),
    "growth": (
        "consistency",
        "MRV over more and more languages, the closest first, and of as many languages in the mean",
    ),
    "rerank": ("reranking", "Recall and MRV by the number of photos re-ranked"),
}

CITATION = """@inproceedings{nie2024ccrk,
  title     = {Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive Learning},
  author    = {Nie, Zhijie and Zhang, Richong and Feng, Zhangchi and Huang, Hailang and Liu, Xudong},
  booktitle = {Proceedings of the 30th ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year      = {2024}
}"""


@dataclass
class CardOptions:
    """What a person says of a model; everything else on the card is looked up.

    Attributes:
        name: of the model, the heading of the card.
        repo: `org/name` on the Hub, for the lines that load it; the name without it.
        license: identifier of the Hub, such as `apache-2.0`; without it the card says that there is none.
        license_link: where a licence of the name `other` stands.
        base_model: Hub ids of what the model was made from; by default those that the training knows.
        datasets: Hub ids of the training data.
        languages: tags for the metadata; by default those that were trained or measured.
        tags: further tags.
        adapter: empty for a model; for adapters the auto class that loads what they are put onto, see
            `adapter_class`.
        texts: Markdown in the place of a standard text: `what`, `intended_use` or `limits`.
        leaderboards: benchmark -> `dataset` and `task` on the Hub, whose results page takes an entry.
    """

    name: str
    repo: str | None = None
    license: str | None = None
    license_link: str | None = None
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    adapter: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    leaderboards: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.texts) - set(TEXTS)
        if unknown:
            raise CardError(f"a card has no text '{sorted(unknown)[0]}'; it has {', '.join(TEXTS)}")
        for name, entry in self.leaderboards.items():
            if set(entry) != {"dataset", "task"}:
                raise CardError(f"the leaderboard of '{name}' needs a dataset (org/name) and a task on the Hub")


@dataclass
class RenderedCard:
    """A card as text.

    Attributes:
        text: of `README.md`.
        figures: all that it shows, with their sources.
        files: further files that are made from the results: entries for leaderboards.
    """

    text: str
    figures: list[Figure]
    files: dict[str, bytes] = field(default_factory=dict)


def adapter_class(folder: str | os.PathLike[str]) -> str:
    """The auto class that loads the base of the adapters in a folder; empty for a folder with a whole model."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return ""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    base = (config.get("auto_mapping") or {}).get("base_model_class") or ""
    return "AutoModelForPreTraining" if base.endswith("ForPreTraining") else "AutoModel"


def template(name: str) -> str:
    """A template of this package."""
    return (resources.files("ccrk.hub_cards") / "templates" / name).read_text(encoding="utf-8")


def documents_of(documents: Mapping[str, Any], kind: str) -> list[str]:
    """Names of the results files of a kind."""
    return [name for name, document in documents.items() if document.get("kind") == kind]


def render_model_card(options: CardOptions, documents: Mapping[str, Any], assets: Iterable[str] = ()) -> RenderedCard:
    """Fills the template. The same arguments give the same text: a check renders once more and compares.

    Args:
        options: of the card.
        documents: `results/NAME.json` -> what it holds, see `ccrk.hub_cards.runs`.
        assets: paths of the plots that there are, see `asset_name`.

    Raises:
        CardError: if a figure has no source.
    """
    sources, assets = Sources(documents), set(assets)
    training = next(iter(documents_of(documents, "training")), None)
    emissions = next(iter(documents_of(documents, "emissions")), None)
    parts = [
        (file, number)
        for file in documents_of(documents, "evaluation")
        for number in range(len(documents[file]["results"]))
    ]
    data = _metadata(options, documents, sources, parts, training, emissions)
    texts = {name: fill(text, sources, f"the text '{name}'") for name, text in options.texts.items()}
    words = [PartWords(sources, file, number) for file, number in parts]
    bases = list(data.get("base_model") or [])
    card = ModelCard.from_template(
        data,
        template_str=template("model_card.md"),
        name=escape(options.name),
        repo=options.repo or options.name,
        adapter=options.adapter,
        base=bases[0] if bases else "org/ccrk",
        what=texts.get("what", WHAT),
        training_languages=_languages(_trained(documents, training)),
        measured_languages=_languages(_measured(documents)),
        evaluations=[_evaluation(one, assets) for one in words],
        training=training_rows(sources, training) if training else None,
        cost=training_cost(sources, training) if training else "Of the training: not measured.",
        carbon=carbon(sources, emissions),
        intended_use=texts.get("intended_use", INTENDED_USE),
        limits=texts.get("limits", LIMITS),
        diagnoses=[text for one in words for text in one.diagnoses()],
        citation=CITATION,
    )
    text, figures = sources.finish(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")
    return RenderedCard(text, figures, _leaderboard_files(options, documents))


# --- parts of the body ----------------------------------------------------------------------------------------------


def _evaluation(words: PartWords, assets: set[str]) -> dict[str, Any]:
    languages = words.part["recall"]["languages"].values()
    keys = [key for key in RECALLS if any(key in figures for figures in languages)]
    intervals = any(figures.get("low") is not None for figures in languages)
    plots: dict[str, list[dict[str, str]]] = {place: [] for place in ("recall", "consistency", "reranking")}
    for name, (place, alt) in PLOTS.items():
        path = asset_name(words.file, words.at[1], name)
        if path in assets:
            plots[place].append({"path": path, "alt": alt})
    return {
        "title": words.title(),
        "lead": words.lead(),
        "recalls": keys,
        "intervals": intervals,
        "before": any(figures.get("plain") is not None for figures in languages),
        "columns": len(keys) + 1 + intervals,
        "rows": words.recall_rows(keys, intervals),
        "recall_policy": words.recall_policy(intervals),
        "consistency": words.consistency(),
        "rerank": words.rerank_rows(),
        "cost": words.cost(),
        **{f"plots_of_{place}": of_place for place, of_place in plots.items()},
    }


def asset_name(file: str, number: int, plot: str) -> str:
    """Path of a plot: of which results file, of which part of it, and of what."""
    stem = file.removeprefix("results/").removesuffix(".json")
    return f"assets/{stem}-{number + 1}-{plot}.png"


def _trained(documents: Mapping[str, Any], training: str | None) -> list[str]:
    return list((documents[training].get("data") or {}).get("captions") or ()) if training else []


def _measured(documents: Mapping[str, Any]) -> list[str]:
    parts = [part for file in documents_of(documents, "evaluation") for part in documents[file]["results"]]
    return list(dict.fromkeys(tag for part in parts for tag in part["recall"]["languages"]))


def _languages(tags: list[str]) -> str:
    return ", ".join(escape(language_name(tag)) for tag in sorted(tags, key=language_name))


# --- metadata -------------------------------------------------------------------------------------------------------


def _metadata(
    options: CardOptions,
    documents: Mapping[str, Any],
    sources: Sources,
    parts: list[tuple[str, int]],
    training: str | None,
    emissions: str | None,
) -> ModelCardData:
    tags = options.languages or [*_trained(documents, training), *_measured(documents)]
    bases = options.base_model or _hub_ids(documents[training].get("started_from") or () if training else ())
    more: dict[str, Any] = {}
    if emissions:
        more["co2_eq_emissions"] = {
            "emissions": round(1000 * sources.value(emissions, "kg"), 3),  # the Hub wants grams
            "source": sources.value(emissions, "source"),
        }
    results = [one for file, number in parts for one in _index(options, sources, file, number)]
    return ModelCardData(
        language=sorted({tag.split("-")[0].lower() for tag in tags}) or None,
        license=options.license,
        license_link=options.license_link,
        library_name="peft" if options.adapter else "transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys([*TAGS, *options.tags, PAPER])),
        base_model=bases or None,
        datasets=options.datasets or None,
        metrics=["recall", "mrv"] if parts else None,
        model_name=options.name if results else None,
        eval_results=results or None,
        **more,
    )


def _hub_ids(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)]


def _index(options: CardOptions, sources: Sources, file: str, number: int) -> list[EvalResult]:
    """Entries of `model-index` for one part: recall over languages and MRV, then recall at 1 by language."""
    part = sources.value(file, "results", number)
    name = measured_on(part)
    known = options.leaderboards.get(part.get("benchmark") or "")
    common = {
        "task_type": "image-text-retrieval",
        "task_name": "Cross-lingual image-text retrieval",
        "dataset_type": known["dataset"] if known else re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "data",
        "dataset_name": name,
        "dataset_split": part["settings"].get("split"),
    }
    at = ("results", number)
    found = [
        EvalResult(
            **common,
            metric_type="recall",
            metric_name=f"{key}, mean of languages, %",
            metric_value=sources.number("percent", file, *at, "means", key),
        )
        for key in RECALLS
        if key in part["means"]
    ]
    if part.get("mrv"):
        value = sources.number("number", file, *at, "mrv", "mrv")
        found.append(EvalResult(**common, metric_type="mrv", metric_name="MRV, lower is better", metric_value=value))
    languages = part["recall"]["languages"]
    for tag in languages if len(languages) > 1 else ():
        value = sources.number("percent", file, *at, "recall", "languages", tag, "ir@1")
        named: dict[str, Any] = {"metric_name": f"ir@1, {language_name(tag)}, %", "metric_value": value}
        found.append(EvalResult(**common, metric_type="recall", **named))
    return found


def leaderboard_file(benchmark: str) -> str:
    """Path of the entry for the results page of a benchmark."""
    return f".eval_results/{re.sub(r'[^A-Za-z0-9_-]+', '-', benchmark)}.yaml"


def _leaderboard_files(options: CardOptions, documents: Mapping[str, Any]) -> dict[str, bytes]:
    """Entries for the results pages of benchmarks on the Hub: mean recall at 1, text to image, in percent."""
    entries: dict[str, list[EvalResultEntry]] = {}
    for file in documents_of(documents, "evaluation"):
        for part in documents[file]["results"]:
            known = options.leaderboards.get(part.get("benchmark") or "")
            if known is None or "ir@1" not in part["means"]:
                continue
            tags = ", ".join(part["recall"]["languages"])
            notes = f"{measured_on(part)}: recall at 1 in percent, text to image, mean of {tags}; {part['ranking']}"
            value = round(100 * part["means"]["ir@1"], 2)
            entry = EvalResultEntry(dataset_id=known["dataset"], task_id=known["task"], value=value, notes=notes)
            entries.setdefault(part["benchmark"], []).append(entry)
    return {
        leaderboard_file(name): yaml.safe_dump(
            eval_result_entries_to_yaml(of_one), sort_keys=False, allow_unicode=True
        ).encode()
        for name, of_one in entries.items()
    }
