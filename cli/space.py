"""`ccrk space`: makes a folder that the Hub runs as a Space."""

from __future__ import annotations

import argparse

NAME = "space"
HELP = """Make a folder that the Hub runs as a Space, and any machine by `python app.py`.

With a MODEL it is the page of `ccrk serve` over a small gallery, which goes into the folder: photos of yours
(--gallery), or the first ones of a data set (--dataset). They are copied small and without metadata. With --metric it
is a metric, to try out in the browser and to load with evaluate.load.

  ccrk space org/ccrk --gallery photos/ --out my-space
  ccrk space my-model --dataset org/photos --split test --limit 100 --out my-space
  ccrk space --metric mrv --out mrv

A model in a folder is copied into the Space; one on the Hub is loaded from there, at the --revision if one is given.
Nothing is sent anywhere: docs/hub.md says how a folder becomes a Space."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", nargs="?", help="Hub id or folder of a model")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the Space; new, or empty")
    parser.add_argument("--gallery", metavar="FOLDER", help="photos to search, and below it")
    parser.add_argument("--dataset", metavar="ID", help="data set whose photos to search, on the Hub or a folder")
    parser.add_argument("--split", default=argparse.SUPPRESS, help="of the data set (default: train)")
    parser.add_argument("--column", default=argparse.SUPPRESS, help="of its photos (default: image)")
    parser.add_argument("--limit", type=int, default=argparse.SUPPRESS, metavar="N", help="photos (default: 200)")
    parser.add_argument("--title", help="of the Space")
    parser.add_argument("--license", metavar="ID", help="of what is in the Space, such as cc-by-4.0")
    parser.add_argument("--revision", help="of the model on the Hub (default: the newest at each start)")
    parser.add_argument(
        "--requirement", metavar="LINE", help="how pip gets ccrk there (default: ccrk[serve]>=VERSION)"
    )
    parser.add_argument("--metric", metavar="NAME", help="in place of MODEL: mrv or ccr_recall")


def run(args: argparse.Namespace) -> int:
    """Makes the folder.

    Raises:
        OSError, ValueError: naming what was given and what is wrong with it.
    """
    from ccrk.cli.shared import tell_skipped
    from ccrk.serving.space import build_metric_space, build_search_space

    names = ("gallery", "dataset", "split", "column", "limit", "title", "license", "revision", "requirement")
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if (args.model is None) == (args.metric is None):
        raise ValueError("give a MODEL, or --metric NAME in its place")
    if args.metric is not None:
        if given:
            raise ValueError(f"--{next(iter(given))} goes with a MODEL, not with --metric")
        built = build_metric_space(args.metric, args.out)
        print(f"{built.folder}: the metric {args.metric}; try it out: cd {built.folder} && python app.py")
        return 0
    built = build_search_space(args.model, args.out, **given)
    tell_skipped("space", built.skipped, "")
    print(f"{built.folder}: {built.photos} photos; try it out: cd {built.folder} && python app.py")
    return 0
