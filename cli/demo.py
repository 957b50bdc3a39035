"""`ccrk demo`: trains a small model on drawn scenes and searches them in ten languages; downloads nothing."""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

NAME = "demo"
HELP = """Train a small CCRk from scratch and search with it, in about ten minutes of processor time.

Scenes of coloured shapes are drawn, described in ten languages, and learned. Then scenes whose colour-shape pairs were
never together in training are searched: recall and rank variation by language are printed, and a page shows what one
query finds in each language."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ccrk demo`."""
    parser.add_argument(
        "--out", default="demo_output", help="folder for the model and the page (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps; fewer are faster and worse")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration."""
    import torch

    from ccrk.trainer.demo import DemoPlan

    torch.set_num_threads(args.threads)
    plan = DemoPlan(seed=args.seed)
    if args.steps is not None:
        plan.steps = args.steps
    run_demo(plan, args.out)
    return 0


LANGUAGE_NAMES = {
    "zh": "中文",
    "en": "English",
    "de": "Deutsch",
    "fr": "Français",
    "ja": "日本語",
    "cs": "Čeština",
    "id": "Bahasa Indonesia",
    "es": "Español",
    "ru": "Русский",
    "tr": "Türkçe",
}


def run_demo(plan: Any, folder: str | Path) -> dict:
    """Trains, saves, evaluates, and writes `search.html` and `evaluation.json` into a folder.

    Returns:
        The figures, by gallery.

    Raises:
        OSError: if the folder cannot be written; found out before training.
    """
    from ccrk.data.scene_captions import LANGUAGES
    from ccrk.data.scenes import count_near_duplicates
    from ccrk.evaluation.retrieval import evaluate_retrieval, report_lines
    from ccrk.pipelines.ccr_retrieval import CCRkRetrievalPipeline
    from ccrk.trainer.demo import galleries, train

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text("{}")
    started = resource.getrusage(resource.RUSAGE_SELF)
    print(f"training on {plan.steps * plan.batch_size} drawn scenes with captions in {len(LANGUAGES)} languages")
    model, processor = train(plan, folder)
    CCRkRetrievalPipeline(model=model, processor=processor).save_pretrained(folder)
    reports: dict[str, Any] = {}
    for name, rows in zip(("held-out pairs", "hard: with twins"), galleries(plan), strict=True):
        near = count_near_duplicates(rows.scenes)
        print(f"\n{name}: {rows.described} scenes asked for among {len(rows)}, {near} pairs differ in one attribute")
        options = {"languages": LANGUAGES, "rerank": plan.rerank, "rerank_directions": ["text-to-image"]}
        report = evaluate_retrieval(model, processor, rows, **options, progress=False)
        reports[name] = {"gallery": len(rows), "near_duplicates": near, **report}
        print("\n".join(report_lines(report)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = round(used.ru_utime + used.ru_stime - started.ru_utime - started.ru_stime)
    reports["cpu_seconds"] = cost
    (folder / "evaluation.json").write_text(json.dumps(reports, indent=1), encoding="utf-8")
    page = write_page(folder / "search.html", model, processor, galleries(plan)[1], reports)
    print(f"\n{cost} seconds of processor time; the page is {page}")
    return reports


def write_page(path: Path, model: Any, processor: Any, rows: Any, reports: dict) -> Path:
    """One query in ten languages against the hard gallery, side by side, with the figures below."""
    from ccrk.data.scene_captions import LANGUAGES, describe
    from ccrk.evaluation.search_page import write_search_page
    from ccrk.pipelines.ccr_retrieval import CCRkRetrievalPipeline

    search = CCRkRetrievalPipeline(
        model=model, processor=processor, gallery=[rows[i]["image"] for i in range(len(rows))]
    )
    queries = []
    wanted = next(i for i, scene in enumerate(rows.scenes) if len(scene.groups) == 2)
    texts = [describe(rows.scenes[wanted], tag, variant=0) for tag in LANGUAGES]
    found = search(texts, top_k=5, rerank=10)
    shown = []
    for tag, text, results in zip(LANGUAGES, texts, found, strict=True):
        cells = []
        for result in results:
            place = int(result["id"])
            caption = describe(rows.scenes[place], "en", variant=0)
            cells.append(
                {
                    "image": rows[place]["image"],
                    "caption": caption,
                    "score": result["score"],
                    "correct": place == wanted,
                }
            )
        shown.append({"language": tag, "language_name": LANGUAGE_NAMES[tag], "text": text, "results": cells})
    queries.append({"heading": texts[LANGUAGES.index("en")], "rows": shown})
    tables = []
    for name, report in reports.items():
        if isinstance(report, dict):
            header = ["language", "R@1", "R@5", "R@10", "R@1 re-ranked"]
            body = [
                [LANGUAGE_NAMES[tag]]
                + [f"{100 * figures[f'ir@{k}']:.1f}" for k in (1, 5, 10)]
                + [f"{100 * report['reranked']['languages'][tag]['ir@1']:.1f}"]
                for tag, figures in report["languages"].items()
            ]
            mrv = f"MRV {report['mrv']['std']:.2f}, re-ranked {report['reranked']['mrv']['std']:.2f}"
            title = f"{name}: {report['gallery']} scenes, {report['near_duplicates']} near-duplicates; {mrv}"
            tables.append({"title": title, "header": header, "rows": body})
    return write_search_page(
        path,
        title="One scene, asked for in ten languages",
        intro="Trained from scratch on drawn scenes. The colour-shape pairs asked for here were never together in "
        "training, and every scene has twins that differ in one attribute.",
        queries=queries,
        tables=tables,
    )
