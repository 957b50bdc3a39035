"""One evaluation from its options: data, model, figures, report, files for other tools; `ccrk evaluate` calls it."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import torch.distributed as dist
import transformers
from transformers import AutoModel, AutoProcessor

import ccrk
from ccrk.data.corpora import read_corpus
from ccrk.data.rows import CaptionDataset, first_captions, join_corpora
from ccrk.evaluation.benchmarks import Benchmark, benchmark_spec, load_benchmark
from ccrk.evaluation.reranking import RERANK_SCORES
from ccrk.evaluation.retrieval import evaluate_retrieval, report_lines
from ccrk.evaluation.stages import PROTOCOLS
from ccrk.metrics.files import weights_in, write_whole
from ccrk.metrics.report import write_report

OFFICIAL_TOP = 128
"""Candidates that the authors re-rank, but on COCO."""


@dataclass
class EvaluationOptions:
    """What `ccrk evaluate` is asked for.

    Attributes:
        model: folder or Hub id.
        data: files, folders or Hub names to evaluate on; or
        benchmark: the name of a published one, see `benchmarks`.
        format, split, language: of `data`, see `read_corpus`.
        source: extra captions to take, such as `zh=zh_human`.
        images: folder of the images.
        captions: folder of the benchmark's annotation files; that of the images by default.
        year, fold, allow_missing, check: of the benchmark, see `load_benchmark`.
        languages: those to evaluate; all by default.
        mrv_languages: those that MRV compares; see `evaluate_retrieval`.
        first_captions: one query for each image and language.
        rerank: candidates re-scored for each query; by default none, or what the benchmark's authors re-rank with
            `protocol="official"`.
        rerank_score, protocol, batch_size, bf16, on_broken, cache: see `evaluate_retrieval`.
        max_length, max_words: tokens and words that a caption is cut to; by default the processor's, or with a
            benchmark the benchmark's.
        compare: `evaluation.json` of other models, shown beside this one in the report.
        name: of the model in the report.
        out: folder for `evaluation.json` and the report; none by default.
        photos: whether the page holds thumbnails of photos.
        trec: write runs and right answers for TREC tools there too.
        threads: of the processor; torch's choice by default.
    """

    model: str
    data: list[str] = field(default_factory=list)
    benchmark: str | None = None
    format: str | None = None
    split: str | None = None
    language: str | None = None
    source: list[str] | None = None
    images: str | None = None
    captions: str | None = None
    year: list[str] | None = None
    fold: int | None = None
    allow_missing: bool = False
    check: bool = True
    languages: list[str] | None = None
    mrv_languages: list[str] | None = None
    first_captions: bool = False
    rerank: int | None = None
    rerank_score: str = "itm+sim"
    protocol: str = "ccrk"
    batch_size: int = 64
    bf16: bool = False
    on_broken: str = "skip"
    max_length: int | None = None
    max_words: int | None = None
    cache: str | None = None
    compare: list[str] = field(default_factory=list)
    name: str | None = None
    out: str | None = None
    photos: bool = True
    trec: bool = False
    threads: int | None = None

    def __post_init__(self):
        if bool(self.data) == (self.benchmark is not None):
            raise ValueError("say what to evaluate on: either --data or --benchmark")
        if self.rerank_score not in RERANK_SCORES:
            raise ValueError(f"--rerank-score is '{self.rerank_score}'; it is one of {', '.join(RERANK_SCORES)}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol is '{self.protocol}'; it is one of {', '.join(PROTOCOLS)}")
        for name in ("rerank", "batch_size", "threads", "max_length", "max_words"):
            value, least = getattr(self, name), 0 if name == "rerank" else 1
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it is at least {least}")
        if self.out is None and (self.trec or self.compare):
            raise ValueError("--trec and --compare write files: name a folder for them with --out")
        if self.benchmark is None and (self.year or self.fold or self.captions):
            raise ValueError("--year, --fold and --captions belong to --benchmark")

    @property
    def depth(self) -> int:
        """Candidates that are re-ranked."""
        if self.rerank is not None:
            return self.rerank
        if self.protocol == "ccrk":
            return 0
        return benchmark_spec(self.benchmark).k_test if self.benchmark else OFFICIAL_TOP


# --- data ---------------------------------------------------------------------------------------------------------


def read_parts(options: EvaluationOptions) -> tuple[list[tuple[str, CaptionDataset]], Benchmark | None]:
    """What is evaluated, part by part, and the benchmark that it is of.

    Raises:
        OSError, ValueError: of the readers.
    """
    if options.benchmark:
        chosen = {"languages": options.languages, "allow_missing": options.allow_missing, "check": options.check}
        if options.year:
            chosen["year"] = options.year[0] if len(options.year) == 1 else options.year
        if options.fold:
            chosen["fold"] = options.fold
        benchmark = load_benchmark(options.benchmark, options.captions, options.images, **chosen)
        return [(label, dataset) for label, dataset in benchmark.parts], benchmark
    given = {"format": options.format, "split": options.split, "images": options.images}
    given |= {"languages": options.languages, "sources": options.source, "language": options.language}
    given = {name: value for name, value in given.items() if value is not None}
    corpora = [read_corpus(source, **given) for source in options.data]
    return [("data", corpora[0] if len(corpora) == 1 else join_corpora(*corpora))], None


# --- the run ------------------------------------------------------------------------------------------------------


def _processes() -> tuple[int, int]:
    """Rank and number of processes, as torchrun says; they are connected where there are several."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if not torch.cuda.is_available() else "cpu:gloo,cuda:nccl")
    return rank, count


def _settings(options: EvaluationOptions, cost: dict[str, float]) -> dict[str, Any]:
    versions = {"ccrk": ccrk.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    given = {name: value for name, value in asdict(options).items() if value not in (None, [], False)}
    measured = {"ties": "pessimistic", "rerank": options.depth, "bf16": options.bf16}
    weights = weights_in(options.model)  # a card takes figures of its own weights alone
    return {**given, **measured, **({"weights": weights} if weights else {}), **versions, **cost}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def evaluate(options: EvaluationOptions, say=print) -> list[dict]:
    """Evaluates, tells the figures, and writes what was asked for.

    Args:
        options: of the run.
        say: takes what is told to the user; process 0 alone tells.

    Returns:
        A report of `evaluate_retrieval` for each part, with `name`, `benchmark`, `part` and `settings`.

    Raises:
        OSError, ValueError: naming the file or the option.
    """
    rank, count = _processes()
    say = say if rank == 0 else lambda text: None
    if options.threads:
        torch.set_num_threads(options.threads)
    others = [load_results(path) for path in options.compare]  # before hours of work, not after
    parts, benchmark = read_parts(options)
    for note in (benchmark.describe(),) if benchmark else [f"evaluating on {parts[0][1].describe()}"]:
        say(note)
    model = AutoModel.from_pretrained(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(options.model)
    for name, known in (("max_length", "max_tokens"), ("max_words", "max_words")):
        value = getattr(options, name) or (getattr(benchmark.spec, known) if benchmark else None)
        if value is not None:
            setattr(processor, name, value)
    mrv_languages = options.mrv_languages or (list(benchmark.spec.mrv_languages) or None if benchmark else None)
    results = []
    for label, dataset in parts:
        begun, before = time.perf_counter(), _cpu_seconds()
        result = evaluate_retrieval(
            model,
            processor,
            first_captions(dataset) if options.first_captions else dataset,
            languages=options.languages if benchmark is None else None,
            mrv_languages=mrv_languages,
            rerank=options.depth,
            rerank_score=options.rerank_score,
            protocol=options.protocol,
            batch_size=options.batch_size,
            on_broken=options.on_broken,
            bf16=options.bf16,
            rank=rank,
            world_size=count,
            cache=options.cache,
            details=True,
            progress=True,
        )
        cost = {"wall_s": round(time.perf_counter() - begun, 2), "cpu_s": round(_cpu_seconds() - before, 2)}
        named = {"name": options.name or Path(options.model).name, "benchmark": options.benchmark, "part": label}
        results.append({**named, **result, "settings": _settings(options, cost)})
        say(f"\n{label}" if len(parts) > 1 else "")
        say("\n".join(report_lines(result)))
    if benchmark is not None:
        say("\n" + "\n".join(benchmark_lines(benchmark, results)))
    if options.out is not None and rank == 0:
        write(options, results, others, benchmark)
        say(f"\nwritten: {Path(options.out) / 'report.html'}, report.md, evaluation.json")
    return results


def benchmark_lines(benchmark: Benchmark, results: Sequence[dict]) -> list[str]:
    """The figures that published tables show, in percent."""
    tables = benchmark.figures({result["part"]: result for result in results})
    lines = [f"{benchmark.spec.title}, as published tables have it:"]
    for group, table in tables.items():
        names = table["reported"]
        lines.append(f"{group:<10}" + "".join(f"{name:>14}" for name in names))
        rows = dict(table["languages"])
        if "average" in table:
            rows[f"mean of {len(table['average_over'])}"] = table["average"]
        for tag, figures in rows.items():
            lines.append(f"{tag:<10}" + "".join(f"{100 * figures[name]:14.2f}" for name in names))
    return lines


# --- files --------------------------------------------------------------------------------------------------------


def load_results(path: str | os.PathLike) -> list[dict]:
    """Reports that an earlier evaluation has written.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not such a file.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(results, list) or not all(isinstance(one, dict) and "items" in one for one in results):
        raise ValueError(f"'{path}' is no evaluation.json of ccrk evaluate")
    return results


def write(
    options: EvaluationOptions, results: list[dict], others: Sequence[list[dict]], benchmark: Benchmark | None
) -> None:
    """Writes `evaluation.json`, a report of each part and, if asked for, TREC files.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = Path(options.out)
    write_whole(folder / "evaluation.json", json.dumps(results, ensure_ascii=False))
    if benchmark is not None and benchmark.missing:
        benchmark.write_missing(folder / "missing.tsv")
    for result in results:
        beside = [one for other in others for one in other if one.get("part") == result["part"]]
        place = folder if len(results) == 1 else folder / result["part"].replace(" ", "-")
        write_report([result, *beside], place, photos=options.photos)
        if options.trec:
            write_trec(result, place)


def write_trec(result: dict, folder: Path) -> None:
    """Runs and right answers of the first captions, a pair of files for each language: text to image, first page.

    Whitespace in an image id, which would end a field of such a file, is written as in a URL.

    Raises:
        OSError: if a file cannot be written.
    """
    from ccrk.evaluation.trec import write_qrels, write_run

    items, name = result["items"], "_".join(result["name"].split())
    names = _distinct(["".join(quote(c) if c.isspace() else c for c in i) or "_" for i in items["image_ids"]])
    rows: dict[str, list[int]] = {}
    for row, identity in enumerate(items["image_ids"]):
        rows.setdefault(identity, []).append(row)
    for tag, lists in items["found"].items():
        asked = [row for row, found in enumerate(lists) if found is not None]
        places = {"query_ids": [f"{tag}:{names[row]}" for row in asked], "item_ids": names}
        write_run(folder / f"{tag}.run", [lists[row] for row in asked], None, **places, tag=name)
        right = [rows[items["image_ids"][row]] for row in asked]
        write_qrels(folder / f"{tag}.qrels", right, **places)


def _distinct(names: Sequence[str]) -> list[str]:
    """Ids of rows, numbered where several rows share one."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(f"{name}#{seen[name]}" if seen[name] else name)
    return result
