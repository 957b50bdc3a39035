"""`ccrk evaluate`: how often a model finds the right photo in each language, and whether languages agree."""

from __future__ import annotations

import argparse

NAME = "evaluate"
HELP = """Measure a model: recall by language in both directions, MRV, agreement between languages.

Say what to measure on: your own captions (--data) or a published benchmark (--benchmark, with the folder of its
images). With --rerank the fusion encoder re-scores the best candidates. --out FOLDER takes evaluation.json and a
report to look at, report.html. --cache FOLDER keeps what was computed, so that a run that was cut off goes on when
the command is given again. Several processes: torchrun --nproc_per_node 2 -m ccrk.cli.main evaluate ..."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; those that are not given keep the defaults of `EvaluationOptions`."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model")
    groups = {
        "what to measure on": (
            ("--data", {"nargs": "+", "metavar": "DATA", "help": "files, folders or Hub names; joined by image id"}),
            ("--benchmark", {"metavar": "NAME", "help": "xflickrco, wit, multi30k or coco"}),
            ("--images", {"metavar": "FOLDER", "help": "folder of the photos (default: that of the data)"}),
            ("--captions", {"metavar": "FOLDER", "help": "a benchmark's annotation files (default: --images)"}),
            ("--year", {"nargs": "+", "metavar": "YEAR", "help": "of multi30k: 2016, 2017, 2017_mscoco, 2018, all"}),
            ("--fold", {"type": int, "metavar": "N", "help": "of coco: one of the five folds"}),
            ("--allow-missing", {"action": "store_true", "help": "go on without photos that are not there"}),
            ("--no-check", {"dest": "check", "action": "store_false", "help": "other checksums are no error"}),
            ("--format", {"metavar": "NAME", "help": "of --data (default: seen from the files)"}),
            ("--split", {"metavar": "NAME", "help": "part of a corpus that has several"}),
            ("--language", {"metavar": "TAG", "help": "language of captions that do not say theirs"}),
            ("--languages", {"nargs": "+", "metavar": "TAG", "help": "those to measure (default: all)"}),
            ("--source", {"nargs": "+", "metavar": "X", "help": "extra captions to take, such as zh=zh_human"}),
            ("--first-captions", {"action": "store_true", "help": "one query for each photo and language"}),
            ("--on-broken", {"choices": ("skip", "raise"), "help": "photos that cannot be read (default: skip)"}),
        ),
        "how": (
            ("--rerank", {"type": int, "metavar": "K", "help": "candidates re-scored for each query (default: 0)"}),
            ("--rerank-score", {"metavar": "NAME", "help": "itm+sim (default), itm or sim"}),
            (
                "--protocol",
                {"metavar": "NAME", "help": "ccrk (default), or official: as the authors, 128 or 256 re-ranked"},
            ),
            ("--mrv-languages", {"nargs": "+", "metavar": "TAG", "help": "those that MRV compares"}),
            ("--max-length", {"type": int, "metavar": "N", "help": "tokens of a caption (default: the model's)"}),
            ("--max-words", {"type": int, "metavar": "N", "help": "words of a caption (default: the model's)"}),
            (
                "--batch-size",
                {"type": int, "metavar": "N", "help": "photos, captions or pairs in a pass (default: 64)"},
            ),
            ("--bf16", {"action": "store_true", "help": "compute in bfloat16"}),
            ("--threads", {"type": int, "metavar": "N", "help": "CPU threads (default: torch's choice)"}),
            ("--cache", {"metavar": "FOLDER", "help": "keep features and scores, and go on from them"}),
        ),
        "what is written": (
            ("--out", {"metavar": "FOLDER", "help": "evaluation.json, report.html and report.md"}),
            ("--name", {"metavar": "NAME", "help": "of the model in the report (default: its folder)"}),
            ("--compare", {"nargs": "+", "metavar": "FILE", "help": "evaluation.json of other models, shown beside"}),
            ("--no-photos", {"dest": "photos", "action": "store_false", "help": "a report without thumbnails"}),
            ("--trec", {"action": "store_true", "help": "runs and qrels for TREC tools, one for each language"}),
        ),
    }
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, words in options:
            group.add_argument(name, default=argparse.SUPPRESS, **words)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    from dataclasses import fields

    from ccrk.evaluation.run import EvaluationOptions, evaluate

    names = {one.name for one in fields(EvaluationOptions)}
    evaluate(EvaluationOptions(**{name: value for name, value in vars(args).items() if name in names}))
    return 0
