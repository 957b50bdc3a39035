"""The sentences of a model card, with every figure in them looked up in a results file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ccrk.hub_cards.figures import Sources, escape, named
from ccrk.metrics.report_words import STATISTICS, mrv_explained

WHAT = (
    "A CCRk model for cross-lingual image-text retrieval: an image tower and a text tower put photos and captions in "
    "many languages into one space, so that photos are found by captions and captions by photos, and a fusion encoder "
    "that reads a caption together with a photo scores the best candidates anew."
)

INTENDED_USE = (
    "Finding photos by a description in one of the languages that were measured, and finding or ranking descriptions "
    "of a photo. The model gives an order, not a decision: what stands first is the most similar photo of the gallery "
    "even where none fits, and scores are not comparable between galleries.\n\n"
    "Not meant for recognising persons, for inferring who somebody is or what they are like, for surveillance, or for "
    "decisions about people."
)

LIMITS = (
    "* The figures are of the data that they were measured on. Other photos, other ways to describe them and larger "
    "galleries give others; recall falls and MRV rises as a gallery grows.\n"
    "* In a language that was neither trained nor measured the model may answer at random, with scores that look as "
    "usual.\n"
    "* What the training data and the pretrained towers show often, and how they name it, is what the model knows. "
    "Their gaps and prejudices are in it, and were not measured here.\n"
    "* Re-ranking orders only what the embeddings have found."
)

NOT_MEASURED = "not measured."

_TIES = {
    "pessimistic": "ties count against the model: the right one stands behind wrong ones of equal score",
    "optimistic": "ties count for the model: the right one stands before wrong ones of equal score",
    "mean": "the right one stands in the middle of wrong ones of equal score",
}


class PartWords:
    """Sentences of one part of an evaluation.

    Args:
        sources: where figures are looked up.
        file: results file.
        number: of the part in it.
    """

    def __init__(self, sources: Sources, file: str, number: int):
        self.sources, self.file, self.at = sources, file, ("results", number)
        self.part = sources.value(file, *self.at)

    def figure(self, form: str, *place: str | int) -> str:
        """A figure of this part."""
        return self.sources.figure(form, self.file, *self.at, *place)

    def title(self) -> str:
        """What it was measured on."""
        return escape(measured_on(self.part))

    def lead(self) -> str:
        """Mean recall, best and worst language."""
        recall = self.part["recall"]
        images = f" among {self.figure('count', 'images')} photos" if self.part.get("images") else ""
        mean = f"**{self.figure('percent', 'recall', 'mean')} %** of the captions{images}"
        if len(recall["languages"]) == 1:
            best = self.figure("language", "recall", "best")
            return f"Asked in {best}, the model finds the right photo first for {mean}."
        ends = [
            f"{self.figure('language', 'recall', end)} "
            f"({self.figure('percent', 'recall', 'languages', recall[end], 'ir@1')} %)"
            for end in ("best", "worst")
        ]
        return (
            f"Asked in {self.figure('count', 'counts', 'languages')} languages, the model finds the right photo first "
            f"for {mean}: most often in {ends[0]}, least often in {ends[1]}, a gap of "
            f"{self.figure('percent', 'recall', 'gap')} points."
        )

    def recall_rows(self, keys: list[str], intervals: bool) -> list[list[str]]:
        """Cells of the table by language, and of the mean where there are several."""
        rows = []
        for tag, figures in self.part["recall"]["languages"].items():
            here = ("recall", "languages", tag)
            cells = [named(tag), *(self.figure("percent", *here, k) if k in figures else "" for k in keys)]
            if intervals:
                known = figures.get("low") is not None
                cells.append(
                    f"{self.figure('percent', *here, 'low')} to {self.figure('percent', *here, 'high')}"
                    if known
                    else ""
                )
            rows.append([*cells, self.figure("count", *here, "queries") if figures.get("queries") else ""])
        if len(rows) > 1:
            means = [f"**{self.figure('percent', 'means', k)}**" if k in self.part["means"] else "" for k in keys]
            rows.append(["**mean of languages**", *means, *[""] * (1 + intervals)])
        return rows

    def recall_policy(self, intervals: bool) -> str:
        """What the columns are and how they came about."""
        settings = self.part["settings"]
        ties = _TIES.get(settings.get("ties"), "how ties count is not recorded")
        text = (
            "In percent. ir@k: captions whose photo is among the first k (text to image); tr@k: photos that have a "
            f"right caption among the first k (image to text). Order: {self.figure('text', 'ranking')}; {ties}"
        )
        text += f"; protocol {self.figure('text', 'protocol')}." if self.part.get("protocol") else "."
        if intervals:
            text += (
                " Intervals by resampling photos, as wide as the first caption of each photo gives, for chance in "
                "which photos were taken and nothing else."
            )
        left_out = self.part.get("skipped") or {}
        if left_out.get("images"):
            text += f" Left out: {self.figure('count', 'skipped', 'images')} photos that could not be read."
        return text

    def consistency(self) -> str:
        """MRV with its policy, agreement on the first page, prevalence."""
        texts = [self._mrv()]
        agreement, prevalence = self.part.get("agreement"), self.part.get("prevalence")
        if agreement:
            text = (
                f"Of the first {self.figure('count', 'agreement', 'k')} photos, two languages have "
                f"{self.figure('percent', 'agreement', 'mean')} % in common, on average over photos and pairs of "
                "languages"
            )
            if agreement["closest"][:2] != agreement["furthest"][:2]:
                ends = [
                    f"{self.figure('language', 'agreement', end, 0)} and "
                    f"{self.figure('language', 'agreement', end, 1)} ({self.figure('percent', 'agreement', end, 2)} %)"
                    for end in ("closest", "furthest")
                ]
                text += f": most {ends[0]}, least {ends[1]}"
            texts.append(f"{text}.")
        if prevalence:
            ends = [
                f"{self.figure('language', 'prevalence', end)} takes "
                f"{self.figure('number', 'prevalence', 'ratio', prevalence[end])} times"
                for end in ("most", "least")
            ]
            texts.append(
                f"Asked by photo among the captions of all languages, {ends[0]} the places on the first page that its "
                f"share of the captions would give it, {ends[1]}."
            )
        return "\n\n".join(texts)

    def _mrv(self) -> str:
        mrv = self.part.get("mrv")
        if not mrv:
            return "MRV compares languages, and there is none here: " + (
                "only one language was measured."
                if len(self.part["recall"]["languages"]) < 2
                else "it was not computed."
            )
        statistic = mrv.get("statistic", "std")
        text = f"**MRV {self.figure('number', 'mrv', 'mrv')}**"
        if mrv.get("low") is not None:
            text += f" (95 % interval {self.figure('number', 'mrv', 'low')} to {self.figure('number', 'mrv', 'high')})"
        if self.part.get("plain_mrv") is not None:
            text += f", {self.figure('number', 'plain_mrv')} before re-ranking"
        text += f". {mrv_explained({'mrv': mrv})}"
        policy = (
            f"Policy: {STATISTICS.get(statistic, statistic)} (`{escape(statistic)}`) of the 0-based rank of the right "
            f"photo, text to image, first caption of each photo, over {self.figure('tags', 'mrv', 'languages')}; "
            f"{self.figure('count', 'mrv', 'items')} photos with ranks in two languages or more, "
            f"{self.figure('count', 'mrv', 'left_out')} left out; gallery of {self.figure('count', 'images')} photos; "
            f"{self._misses(mrv)}"
        )
        spread = self.part.get("spread")
        if spread:
            policy += (
                f"\n\n{self.figure('percent', 'spread', 'still')} % of the photos keep their place in every language"
            )
            if spread.get("half") is not None:
                policy += f", and {self.figure('percent', 'spread', 'half')} % of them make up half of the variation"
            policy += "."
        return f"{text}\n\n{policy}"

    def _misses(self, mrv: dict) -> str:
        if mrv.get("missed"):
            return (
                f"{self.figure('count', 'mrv', 'missed')} ranks were misses, and count as the middle of the places "
                "below what was re-ranked."
            )
        return "no rank was a miss: what is not re-ranked keeps its order by embeddings."

    def rerank_rows(self) -> list[list[str]]:
        """Cells of the table by the number of photos re-ranked."""
        return [
            [
                self.figure("count", "rerank", n, "top"),
                self.figure("percent", "rerank", n, "ir@1"),
                self.figure("percent", "rerank", n, "worst"),
                self.figure("number", "rerank", n, "mrv"),
            ]
            for n in range(len(self.part.get("rerank") or ()))
        ]

    def cost(self) -> str:
        """What the evaluation took."""
        settings = self.part["settings"]
        if settings.get("wall_s") is None:
            return ""
        text = f"The evaluation took {self.figure('duration', 'settings', 'wall_s')}"
        if settings.get("cpu_s") is not None:
            text += f", {self.figure('duration', 'settings', 'cpu_s')} of processor time"
        return f"{text}."

    def diagnoses(self) -> list[str]:
        """What stands out, in the words of the report."""
        return [self.figure("text", "diagnoses", number) for number in range(len(self.part.get("diagnoses") or ()))]


def measured_on(part: dict[str, Any]) -> str:
    """What a part was measured on: a benchmark, files, or nothing that was recorded."""
    settings, label = part["settings"], part.get("part")
    whole = part.get("benchmark") or ", ".join(settings.get("data") or ())
    if not whole:
        return label or "evaluation"
    return whole if label in (None, "data", whole) else f"{whole}, {label}"


# --- training -------------------------------------------------------------------------------------------------------


def training_rows(sources: Sources, file: str) -> list[tuple[str, str]]:
    """Name and value of what is known of a training."""
    run = sources.value(file)

    def figure(form: str, *place: str | int) -> str:
        return sources.figure(form, file, *place)

    data, model, batch = run.get("data") or {}, run.get("model") or {}, run.get("batch") or {}
    rows = [
        ("started from", _joined(figure("text", "started_from", n) for n in range(len(run.get("started_from") or ()))))
    ]
    if data.get("rows") is not None:
        text = f"{figure('count', 'data', 'rows')} photos"
        if data.get("captions"):
            counts = (f"{escape(tag)} {figure('count', 'data', 'captions', tag)}" for tag in data["captions"])
            text += f"; captions: {_joined(counts)}"
        rows.append(("data", text))
    elif data.get("kind"):
        rows.append(("data", figure("text", "data", "kind")))
    if data.get("files"):
        rows.append(("files", _joined(figure("text", "data", "files", n) for n in range(len(data["files"])))))
    skipped = [f"{figure('count', 'data', 'skipped', cause)} × {escape(cause)}" for cause in data.get("skipped") or {}]
    rows.append(("left out", _joined(skipped)))
    if model.get("parameters") is not None:
        trained = (
            f"{figure('count', 'model', 'parameters')}, of which {figure('count', 'model', 'trained')} were trained"
        )
        rows.append(("parameters", trained))
    objectives = [
        f"{figure('text', 'objectives', n, 'name')} (weight {figure('place', 'objectives', n, 'weight')})"
        for n in range(len(run.get("objectives") or ()))
    ]
    rows.append(("objective", _joined(objectives)))
    if run.get("steps") is not None:
        rows.append(("steps", f"{figure('count', 'steps')} ({figure('short', 'epochs')} epochs)"))
    if batch.get("images") is not None:
        text = f"{figure('count', 'batch', 'images')} photos"
        if batch.get("processes", 1) > 1:
            text += f", shared by {figure('count', 'batch', 'processes')} processes"
        rows.append(("batch", text))
    for name, label in (("learning_rate", "learning rate"), ("weight_decay", "weight decay")):
        if run.get(name) is not None:
            rows.append((label, figure("place", name)))
    for name, label in (
        ("schedule", "schedule"),
        ("precision", "precision"),
        ("lora", "adapters"),
        ("frozen", "frozen"),
    ):
        if run.get(name):
            rows.append((label, figure("text", name)))
    if run.get("seed") is not None:
        rows.append(("seed", figure("place", "seed")))
    versions = run.get("versions") or {}
    rows.append(("versions", _joined(f"{escape(name)} {figure('text', 'versions', name)}" for name in versions)))
    return [(name, value) for name, value in rows if value]


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def training_cost(sources: Sources, file: str) -> str:
    """Time and memory of a training."""
    cost = sources.value(file).get("cost") or {}
    if cost.get("wall_s") is None:
        return f"Of the training: {NOT_MEASURED}"
    text = f"The training took {sources.figure('duration', file, 'cost', 'wall_s')}"
    if cost.get("cpu_s") is not None:
        text += f", {sources.figure('duration', file, 'cost', 'cpu_s')} of processor time"
    if cost.get("peak_rss_mib"):
        text += f", and {sources.figure('mib', file, 'cost', 'peak_rss_mib')} of memory at its highest"
    if cost.get("device"):
        text += f", on {sources.figure('text', file, 'cost', 'device')}"
    own = " Processor time and memory are those of the first process." if cost.get("processes", 1) > 1 else ""
    return f"{text}, evaluations during it included.{own}"


def carbon(sources: Sources, file: str | None) -> str:
    """Emissions, if they were measured or stated with a source."""
    if file is None:
        return NOT_MEASURED
    text = f"{sources.figure('short', file, 'kg')} kg CO₂-equivalent, by {sources.figure('text', file, 'source')}"
    measured = sources.value(file, "measured")
    if measured.get("energy_consumed") is not None:
        text += f"; {sources.figure('short', file, 'measured', 'energy_consumed')} kWh"
    if measured.get("country_name"):
        text += f" in {sources.figure('text', file, 'measured', 'country_name')}"
    return f"{text}."
