"""Files that a training or an evaluation wrote, stripped to the figures and settings that a card may show.

What is stripped is published as `results/NAME.json` beside the card, so it holds no caption, no image id and no path
of the machine that it was measured on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccrk.hub_cards.figures import CardError
from ccrk.metrics.diagnosis import diagnose
from ccrk.metrics.report_figures import check_results, final_languages, plain, summarise

TRAINING_RUN = "training_run.json"
"""What a training writes about itself, see `ccrk.trainer.run_facts`."""

EVALUATION = "evaluation.json"

SETTINGS = (
    "benchmark", "year", "fold", "allow_missing", "split", "format", "language", "languages", "mrv_languages",
    "source", "first_captions", "rerank", "rerank_score", "protocol", "batch_size", "bf16", "on_broken", "max_length",
    "max_words", "ties", "threads", "misses", "step", "weights", "ccrk", "torch", "transformers", "wall_s", "cpu_s",
    "peak_rss_mib",
)  # fmt: skip
"""Settings of an evaluation that are published; all others stay."""

EMISSIONS = (
    "duration",
    "emissions",
    "energy_consumed",
    "country_name",
    "cpu_model",
    "gpu_model",
    "codecarbon_version",
)
"""Columns of codecarbon's file that are published: not the project, the coordinates, or who ran it."""


def read_run(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """A run file, stripped.

    Args:
        path: `evaluation.json` of `ccrk evaluate`, `ccrk train` or `ccrk demo`, `training_run.json`, or codecarbon's
            `emissions.csv`.

    Returns:
        The name under which it is published, such as `evaluation`, and what it holds then: `kind`, `run_sha256` (of
        the file as it was), and its figures.

    Raises:
        OSError: if it cannot be read.
        CardError: if it is no such file.
    """
    path = Path(path)
    content = path.read_bytes()
    origin = {"run_sha256": hashlib.sha256(content).hexdigest()}
    if path.suffix.lower() == ".csv":
        return "emissions", {"kind": "emissions", **origin, **_emissions(content, path)}
    try:
        run = json.loads(content)
    except ValueError as error:
        raise CardError(f"'{path}' is no run file: it is not JSON ({error})") from None
    if isinstance(run, Mapping) and run.get("kind") == "training":
        return "training", {**strip_training(run), **origin}
    return _safe_name(path.stem), {"kind": "evaluation", **origin, "results": strip_evaluation(run, str(path))}


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "evaluation"


def dumps(document: Any) -> bytes:
    """A results file as it is written: the same figures give the same bytes."""
    return (json.dumps(plain(document), ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


# --- evaluations ----------------------------------------------------------------------------------------------------


def evaluation_parts(run: Any, where: str) -> list[dict[str, Any]]:
    """The results of an evaluation file, in whichever of its forms: a list, one result, or one for each gallery.

    Raises:
        CardError: if it has none of them.
    """
    if isinstance(run, Sequence) and not isinstance(run, (str, bytes)):
        parts = list(run)
    elif isinstance(run, Mapping) and "languages" in run:
        parts = [dict(run)]
    elif isinstance(run, Mapping):
        parts = [{"part": name, **one} for name, one in run.items() if isinstance(one, Mapping)]
    else:
        parts = []
    if not parts or not all(isinstance(one, Mapping) and isinstance(one.get("languages"), Mapping) for one in parts):
        raise CardError(
            f"'{where}' is no evaluation: expected evaluation.json of ccrk evaluate, ccrk train or ccrk demo"
        )
    return parts


def strip_evaluation(run: Any, where: str = EVALUATION) -> list[dict[str, Any]]:
    """Figures and settings of each part of an evaluation.

    Returns:
        For each part `name`, `part`, `images`, `texts`, `skipped` (numbers), `settings`, and what
        `metrics.report_figures.summarise` computes, but for single photos; `means` (recall over languages),
        `plain_mrv` (before re-ranking) and `diagnoses`.

    Raises:
        CardError: naming the file.
    """
    parts = []
    for part in evaluation_parts(run, where):
        settings = _settings(part)
        try:
            (checked,) = check_results({**part, "settings": settings})
        except ValueError as error:
            raise CardError(f"'{where}': {error}") from None
        try:
            summary, diagnoses = summarise(checked, worst=0), diagnose(checked)
        except ModuleNotFoundError:  # scipy, for intervals: without it there are the figures alone
            checked.pop("items", None)
            summary, diagnoses = summarise(checked, worst=0), []
        for of_photos in ("worst", "published"):
            summary.pop(of_photos)
        skipped = checked.get("skipped") or {}
        parts.append(
            {
                **summary,
                "name": _last(checked["name"]),
                "part": None if checked.get("part") is None else str(checked["part"]),
                "skipped": {kind: skipped[kind] for kind in ("images", "captions") if skipped.get(kind)},
                "counts": {"languages": len(summary["recall"]["languages"])},
                "means": _means(checked),
                "plain_mrv": (checked.get("mrv") or {}).get("mrv") if checked.get("reranked") else None,
                "reranked": (checked.get("reranked") or {}).get("top"),
                "diagnoses": diagnoses,
                "settings": settings,
            }
        )
    return plain(parts)


def _settings(part: Mapping) -> dict[str, Any]:
    given = part.get("settings") or part.get("arguments") or {}
    kept = {name: given[name] for name in SETTINGS if given.get(name) not in (None, [], "")}
    data = given.get("eval") if "arguments" in part and "settings" not in part else given.get("data")
    if data:  # a file's name says what was measured on; where it lay is nobody's business
        kept["data"] = [_last(one) for one in ([data] if isinstance(data, str) else data)]
    return {**kept, "ties": kept.get("ties", "pessimistic")}


_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".tar", ".gz", ".zip")


def _last(path: Any) -> str:
    """The name of a file or folder; a Hub id as it is."""
    text = str(path)
    if Path(text).suffix.lower() in _DATA_FILES:
        return re.split(r"[\\/]", text)[-1]
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not os.path.exists(text) and not text.startswith(".")
    return text if named else re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def _means(result: Mapping) -> dict[str, float]:
    languages = final_languages(result)
    keys = dict.fromkeys(key for figures in languages.values() for key in figures if "@" in key)
    columns = {key: [f[key] for f in languages.values() if f.get(key) is not None] for key in keys}
    return {key: math.fsum(values) / len(values) for key, values in columns.items() if len(values) == len(languages)}


# --- trainings ------------------------------------------------------------------------------------------------------


def strip_training(run: Mapping) -> dict[str, Any]:
    """A training's facts without paths: names of files and folders stay, where they lie does not."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): clean(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(one) for one in value]
        return _last(value) if isinstance(value, str) and _is_path(value) else value

    return plain(clean(run))


def _is_path(text: str) -> bool:
    return bool(re.match(r"(?:[A-Za-z]:)?[\\/]|\.{1,2}[\\/]|~", text)) or (os.sep in text and os.path.exists(text))


def public_config(text: str) -> str:
    """`training_config.yaml` with names of files and folders in the place of their paths.

    Lines are kept as they are, so comments and order stay; a text without paths is not touched.

    Raises:
        CardError: if it is not YAML.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CardError(f"the training's configuration is not YAML: {' '.join(str(error).split())}") from None
    wanted = strip_training({"value": document})["value"]
    if wanted == document:
        return text
    lines = []
    for line in text.splitlines():
        key, colon, rest = line.partition(": ")
        try:
            value = yaml.safe_load(rest) if colon and not line.startswith("#") else None
        except yaml.YAMLError:
            value = None
        cleaned = strip_training({"value": value})["value"]
        if cleaned != value:
            shown = yaml.safe_dump(cleaned, default_flow_style=True, width=10**6, allow_unicode=True)
            line = f"{key}: {shown.removesuffix(chr(10) + '...' + chr(10)).strip()}"
        lines.append(line)
    changed = "\n".join(lines) + "\n"
    # a file that somebody wrote in another form than ours loses its comments rather than keep a path
    return changed if yaml.safe_load(changed) == wanted else yaml.safe_dump(wanted, allow_unicode=True)


# --- emissions ------------------------------------------------------------------------------------------------------


def _emissions(content: bytes, path: Path) -> dict[str, Any]:
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
        row = rows[-1]
        kg = float(row["emissions"])
    except (UnicodeDecodeError, IndexError, KeyError, TypeError, ValueError):
        raise CardError(
            f"'{path}' is no emissions.csv of codecarbon: expected a header and a row with the column 'emissions' (kg)"
        ) from None
    facts: dict[str, Any] = {}
    for name in EMISSIONS:
        text = (row.get(name) or "").strip()
        if text:
            facts[name] = _number(text)
    return {"kg": kg, "source": "codecarbon", "measured": facts}


def _number(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def stated_emissions(kg: float, source: str) -> dict[str, Any]:
    """Emissions that somebody states, with where they are from.

    Raises:
        CardError: if the source is missing or the figure is no amount.
    """
    if not source.strip():
        raise CardError(f"emissions of {kg:g} kg have no source: say how or where they were measured")
    if not math.isfinite(kg) or kg < 0:
        raise CardError(f"emissions of {kg:g} kg: expected a number of kilograms, 0 or more")
    return {"kind": "emissions", "kg": float(kg), "source": source.strip(), "measured": {}}
