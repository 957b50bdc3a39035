"""`ccrk train`: trains on photos with captions in several languages."""

from __future__ import annotations

import argparse

from ccrk.trainer.options import FIELDS, GROUPS, KINDS, default_of, flag

NAME = "train"
HELP = """Train a CCRk model on your captions.

Say what to learn from (--data), what to start from (--model, or --image-tower and --text-tower) and where the result
goes (--out); or take a recipe (--recipe NAME, --list-recipes) and override what you like. --dry-run says beforehand
how many steps it will be and how much memory it takes. On a small machine start with --recipe small-cpu. Several
processes: torchrun --nproc_per_node 2 -m ccrk.cli.main train ..."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ccrk train`; what is not given is absent, so that a recipe can say it."""
    recipe = parser.add_argument_group("recipes")
    recipe.add_argument("--recipe", metavar="NAME|FILE", help="options from a recipe; those given here override it")
    recipe.add_argument("--list-recipes", action="store_true", help="print the recipes that there are, and stop")
    recipe.add_argument(
        "--dry-run", action="store_true", help="print steps, parameters, memory and the resolved recipe, and stop"
    )
    groups = {name: parser.add_argument_group(name, text) for name, text in GROUPS.items()}
    for name, one in FIELDS.items():
        _add(groups[one.metadata["group"]], name, one.metadata)


def _add(group, name: str, meta) -> None:
    default, text = default_of(name), meta["help"]
    if default not in (None, "", False, {}) and "(default" not in text:
        shown = " ".join(f"{part:g}" for part in default) if isinstance(default, list) else default
        text += f" (default: {'yes' if default is True else shown})"
    words = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    flags = (flag(name), *meta.get("flags", ()))
    if meta["kind"] == "switch":
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **words)
        return
    if meta.get("metavar"):
        words["metavar"] = meta["metavar"]
    elif not meta.get("choices"):
        words["metavar"] = {"text": "NAME", "whole number": "N", "layers": "LAYERS"}.get(meta["kind"], "X")
    if meta.get("choices"):
        words["choices"] = meta["choices"]
    if meta.get("many") or meta["kind"] == "pairs":
        words |= {"nargs": "+", "action": "extend"}
    group.add_argument(*flags, type=_reader(KINDS.get(meta["kind"], str)), **words)


def _reader(kind):
    """A function for `argparse` that keeps the words of an error."""

    def read(text: str):
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    read.__name__ = getattr(kind, "__name__", "value")
    return read if kind not in (int, float, str) else kind


def run(args: argparse.Namespace) -> int:
    """Trains, saves and evaluates."""
    from ccrk.trainer.options import pairs
    from ccrk.trainer.recipes import recipe_table, resolve
    from ccrk.trainer.run import TrainingRun, is_main, say

    if args.list_recipes:
        say(recipe_table())
        return 0
    given = {name: value for name, value in vars(args).items() if name in FIELDS}
    given |= {name: pairs(given[name], name) for name in ("columns", "set") if name in given}
    options, remarks = resolve(given, args.recipe)
    for remark in remarks:
        say(remark)
    if args.dry_run:
        from ccrk.trainer.estimate import plan

        say(plan(options))
        return 0
    training = TrainingRun(options)
    training.train()
    if is_main():
        from ccrk.pipelines.ccr_retrieval import CCRkRetrievalPipeline

        CCRkRetrievalPipeline(model=training.model, processor=training.processor).save_pretrained(options.out)
        training.evaluate()
        training.write_card()
    return 0
