"""`ccrk index`: makes an index of photos or texts, or brings one up to date."""

from __future__ import annotations

import argparse
import json

from ccrk.cli.shared import comma_list, tell_skipped

NAME = "index"
HELP = """Make an index of photos or texts, or bring one up to date; `ccrk search MODEL URI ...` searches it.

SOURCE is a folder of photos, a table (.parquet, .csv, .jsonl) with a column `path` (or `image`) or `text` (or
`caption`), a .txt file with a text a line, or a folder written by datasets' save_to_disk. Run the same command again
after photos came, changed or went: only what is new or changed goes through the model, what is gone is removed, and a
run that was killed goes on where it was.

  ccrk index photos/ --model my-model --to lance://photos.lance
  ccrk index photos.csv --model my-model --to lance://photos.lance --photos /data/photos --columns year,place
  ccrk index photos/ --model my-model --to lance://photos.lance --states     # re-ranking without opening photos
  ccrk search my-model lance://photos.lance "ein Hund im Schnee" --where taken=2024..2025"""

TOLD = {
    "added": "added",
    "changed": "changed",
    "retold": "with other metadata",
    "deleted": "deleted",
    "unchanged": "unchanged",
    "kept": "out of reach, left as they are",
    "embedded": "went through the model",
    "reused": "known under another name",
    "states": "image states kept",
    "skipped": "skipped",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; those that are not given keep the defaults of `IndexOptions`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="folder, table or text file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument("--to", required=True, metavar="URI", help="lance://PATH or milvus://HOST:PORT/COLLECTION")
    groups = {
        "what is indexed": (
            (
                "--columns",
                {
                    "type": comma_list,
                    "metavar": "A,B",
                    "help": "a table's own columns to keep (default: all of plain values)",
                },
            ),
            ("--photos", {"metavar": "FOLDER", "help": "what a table's paths are relative to (default: the table)"}),
            ("--rehash", {"action": "store_true", "help": "read every file, whatever its size and time say"}),
            (
                "--allow-delete-all",
                {"action": "store_true", "help": "remove rows even if that is more than half of the index"},
            ),
            ("--skipped", {"metavar": "FILE", "help": "write what could not be read, a line of JSON each"}),
        ),
        "states for re-ranking": (
            (
                "--states",
                {"nargs": "?", "const": "", "metavar": "FOLDER", "help": "keep them (default: beside a lance index)"},
            ),
            ("--states-gib", {"type": float, "metavar": "N", "help": "room for them (default: 8)"}),
        ),
        "how": (
            ("--batch-size", {"type": int, "metavar": "N", "help": "photos or texts in a pass (default: 32)"}),
            ("--bf16", {"action": "store_true", "help": "compute in bfloat16"}),
            ("--threads", {"type": int, "metavar": "N", "help": "CPU threads (default: torch's choice)"}),
            ("--json", {"action": "store_true", "help": "print what was done as a line of JSON"}),
        ),
    }
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, words in options:
            group.add_argument(name, default=argparse.SUPPRESS, **words)


def run(args: argparse.Namespace) -> int:
    """Updates the index and says what was done.

    Returns:
        0, also if something was skipped; whatever is wrong with what the user gave is raised.
    """
    from dataclasses import fields

    from ccrk.pipelines.index import without_secrets
    from ccrk.pipelines.index_run import IndexOptions, run_index

    given = {name: value for name, value in vars(args).items() if name in {one.name for one in fields(IndexOptions)}}
    report = run_index(IndexOptions(**given))
    tell_skipped("index", report.skipped, "" if "skipped" in given else " (--skipped FILE)")
    if getattr(args, "json", False):
        print(json.dumps({"index": without_secrets(args.to), **report.counts()}))
        return 0
    counts = report.counts()
    for name, words in TOLD.items():
        if counts[name] or name in ("added", "changed", "deleted", "unchanged"):
            print(f"{counts[name]:10,}  {words}")
    print(f"{counts['rows']:10,}  rows in {without_secrets(args.to)}, {report.seconds:.1f} s")
    return 0
