"""`ccrk embed`: embeds a large corpus into Parquet shards, on one machine or many, and brings them into an index."""

from __future__ import annotations

import argparse
import json

from ccrk.cli.shared import comma_list, tell_skipped

NAME = "embed"
HELP = """Embed a large corpus into Parquet shards, on one machine or on a Ray cluster, and bring them into an index.

SOURCE is what `ccrk index` takes. The corpus is cut into slices by the order of its ids; a slice whose shard is there
is never computed again, so a run that was cut off goes on when it is started again. For a gallery that fits one
machine and changes every day, `ccrk index` alone is simpler.

  ccrk embed photos/ --model my-model --to shards/ --into lance://photos.lance
  ccrk embed photos/ --model my-model --to /cluster/shards --ray auto --workers 16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; those that are not given keep the defaults of `EmbedOptions`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="folder, table or text file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="of the shards")
    options = (
        ("--into", {"metavar": "URI", "help": "bring the rows into this index once all shards are finished"}),
        ("--shard-size", {"type": int, "metavar": "N", "help": "items in a shard (default: 1000)"}),
        (
            "--columns",
            {
                "type": comma_list,
                "metavar": "A,B",
                "help": "a table's own columns to keep (default: all of plain values)",
            },
        ),
        ("--photos", {"metavar": "FOLDER", "help": "what a table's paths are relative to (default: the table)"}),
        (
            "--ray",
            {"nargs": "?", "const": "local", "metavar": "ADDRESS", "help": "on a cluster; by itself: on this machine"},
        ),
        ("--workers", {"type": int, "metavar": "N", "help": "on the cluster (default: one for each GPU, or CPU)"}),
        ("--batch-size", {"type": int, "metavar": "N", "help": "photos or texts in a pass (default: 32)"}),
        ("--bf16", {"action": "store_true", "help": "compute in bfloat16"}),
        ("--compile", {"action": "store_true", "help": "compile the encoders first; takes minutes, pays in hours"}),
        ("--threads", {"type": int, "metavar": "N", "help": "CPU threads (with --ray: of each worker, 1)"}),
    )
    for name, words in options:
        parser.add_argument(name, default=argparse.SUPPRESS, **words)
    parser.add_argument("--json", action="store_true", help="print what was done as a line of JSON")


def run(args: argparse.Namespace) -> int:
    """Embeds and says what was done.

    Returns:
        0, also if something was skipped; whatever is wrong with what the user gave is raised.
    """
    from dataclasses import asdict, fields

    from ccrk.pipelines.embed_run import EmbedOptions, run_embed

    given = {name: value for name, value in vars(args).items() if name in {one.name for one in fields(EmbedOptions)}}
    report = run_embed(EmbedOptions(**given))
    tell_skipped("embed", report.skipped, f", listed in {args.to}/corpus.json")
    if args.json:
        print(json.dumps({**asdict(report), "skipped": len(report.skipped), "seconds": round(report.seconds, 3)}))
        return 0
    print(f"{report.rows:10,}  rows in {report.shards} shards in {args.to}, {report.computed} computed now")
    if report.index_rows is not None:
        print(f"{report.written:10,}  rows written, {report.index_rows:,} in {args.into}")
    print(f"{report.seconds:10,.1f}  seconds")
    return 0
