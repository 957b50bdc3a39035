"""`ccrk publish`: puts a model, a Space or a data set on the Hub, in one commit, after showing what that would be."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ccrk.hub_cards.publishing import PublishOptions

NAME = "publish"
HELP = """Put a folder on the Hub: a model with its card, or a Space, a metric or a data set.

What would be published is shown first: the files, what stays here and why, and whether every figure on the card is as
in the run file that it is from. Then it is asked for, or --yes says so. --dry-run stops after the plan. Log in before
with `hf auth login`, or with HF_TOKEN."""

TEXTS = {"intended_use": "what the model is for, and what not", "limits": "what it cannot do", "what": "what it is"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("folder", metavar="DIR", help="folder to publish")
    parser.add_argument("repo", metavar="ORG/NAME", help="repository on the Hub")
    how = parser.add_argument_group("how")
    how.add_argument("--dry-run", action="store_true", help="show the plan, and stop; nothing is written")
    how.add_argument("--yes", action="store_true", help="do not ask")
    how.add_argument("--type", choices=("model", "space", "dataset"), help="(default: seen from the folder)")
    how.add_argument("--private", action="store_true", help="if the repository is made, only you see it")
    how.add_argument("--revision", "--branch", metavar="BRANCH", help="commit to it; made where it does not exist")
    how.add_argument("--create-pr", action="store_true", help="propose the commit instead of making it")
    how.add_argument("--tag", metavar="NAME", help="name the commit, such as v1")
    how.add_argument("--message", metavar="TEXT", help="of the commit")
    card = parser.add_argument_group("card of a model")
    card.add_argument("--new-card", action="store_true", help="make it of the run files in the folder")
    card.add_argument(
        "--evaluation", nargs="+", metavar="FILE", help="evaluation.json of these weights, to make a new card of"
    )
    card.add_argument("--license", metavar="ID", help="such as apache-2.0")
    card.add_argument("--license-link", metavar="URL", help="where a licence with the id 'other' stands")
    card.add_argument("--dataset", nargs="+", metavar="ORG/NAME", help="training data that are on the Hub")
    card.add_argument("--base-model", metavar="ORG/NAME", help="what the model, or the adapters, were made from")
    card.add_argument("--languages", nargs="+", metavar="TAG", help="(default: those trained on or measured)")
    card.add_argument("--tags", nargs="+", metavar="TAG", help="further tags")
    for name, text in TEXTS.items():
        card.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=f"Markdown: {text}")
    card.add_argument(
        "--leaderboard", nargs="+", metavar="X", help="BENCHMARK=ORG/DATASET:TASK, whose results page takes an entry"
    )
    card.add_argument("--emissions", metavar="FILE", help="emissions.csv of codecarbon")


def run(args: argparse.Namespace) -> int:
    """Plans, asks, publishes."""
    from huggingface_hub import HfApi, constants, get_token

    from ccrk import CCRkRetrievalPipeline
    from ccrk.hub_cards.publishing import compare, explain, is_hub_error, make_plan, plan_lines, publish

    options = read_options(args)
    plan = make_plan(options, CCRkRetrievalPipeline.files_beside)
    if plan.kind == "model":
        check_loads(args.folder)
    api = HfApi()
    try:
        if not args.dry_run and get_token() is None:
            raise_not_logged_in()
        compare(plan, api)
    except Exception as error:
        if not is_hub_error(error):
            raise
        if not args.dry_run:
            raise ValueError(f"{explain(error, options)}; nothing was published") from error
        plan.remarks.append(f"what would change at {constants.ENDPOINT} is not known: {explain(error, options)}")
    print("\n".join(plan_lines(plan)))
    if args.dry_run:
        print("\ndry run: nothing was published")
        return 0
    if not plan.changed and not plan.removed and plan.exists and not options.tag:
        print("\nnothing changed: the repository has these files already, and no commit was made")
        return 0
    if not args.yes and not confirmed():
        print("nothing was published")
        return 1
    try:
        url = publish(plan, api)
    except Exception as error:
        if not is_hub_error(error):
            raise
        raise ValueError(f"{explain(error, options)}; nothing was published") from error
    print(f"\npublished: {url}" if url else "\nno commit was made: the repository has these files already")
    return 0


def read_options(args: argparse.Namespace) -> PublishOptions:
    """The options of the command as those of `PublishOptions`.

    Raises:
        OSError: if a text cannot be read.
        ValueError: if a leaderboard is not of its form.
    """
    import re
    from pathlib import Path

    from ccrk.hub_cards.publishing import PublishOptions

    boards = {}
    for given in args.leaderboard or ():
        match = re.fullmatch(r"([^=]+)=([^:/]+/[^:/]+):(.+)", given)
        if match is None:
            raise ValueError(f"--leaderboard {given}: this is not of the form BENCHMARK=ORG/DATASET:TASK")
        boards[match[1]] = {"dataset": match[2], "task": match[3]}
    texts = {name: getattr(args, name) for name in TEXTS}
    card = {
        "license": args.license,
        "license_link": args.license_link,
        "datasets": args.dataset,
        "base_model": [args.base_model] if args.base_model else None,
        "languages": args.languages,
        "tags": args.tags,
        "leaderboards": boards,
        "texts": {name: Path(file).read_text(encoding="utf-8") for name, file in texts.items() if file},
    }
    return PublishOptions(
        folder=args.folder,
        repo=args.repo,
        kind=args.type,
        private=args.private,
        revision=args.revision,
        message=args.message,
        create_pr=args.create_pr,
        tag=args.tag,
        new_card=args.new_card,
        evaluations=list(args.evaluation or ()),
        emissions=args.emissions,
        base_model=args.base_model,
        card=card,
    )


def check_loads(folder: str) -> None:
    """Loads the configuration that is there: of the model, or of adapters.

    Raises:
        OSError, ValueError: if it cannot be loaded.
    """
    from pathlib import Path

    from transformers import AutoConfig

    if (Path(folder) / "config.json").is_file():
        AutoConfig.from_pretrained(folder)


def confirmed() -> bool:
    """Asks the person at the terminal.

    Raises:
        ValueError: if there is none.
    """
    if not sys.stdin.isatty():
        raise ValueError("there is no terminal to ask on: say --yes to publish, or --dry-run to see the plan alone")
    return input("\nPublish this? [y/N] ").strip().lower() in ("y", "yes")


def raise_not_logged_in() -> None:
    """The error of a command that needs a token and has none."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    raise LocalTokenNotFoundError("no token")
