"""The command `ccrk`: finds the command that was asked for, runs it, and turns known errors into one line.

Only the module of the chosen command is imported, so `ccrk --help` costs what `import ccrk` costs and no more. That
much cannot be saved: Python imports the parent package before this file, and the parent registers its classes with
transformers, which takes torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import ccrk

# One line per command: its name, which is also its module in this folder, and what `ccrk --help` says about it.
COMMANDS = {
    "demo": "train a small model and search with it, from start to finish",
    "train": "train on your captions",
    "evaluate": "measure recall and consistency, by language, with a report",
    "index": "make an index of photos or texts, or bring one up to date",
    "search": "find photos by captions and captions by photos",
    "serve": "search over HTTP, and on a web page",
    "space": "make a folder that the Hub runs as a Space",
    "embed": "embed a large corpus into shards, on one machine or many",
    "export": "write the encoders as ONNX files",
    "publish": "put a model with its card on the Hub",
    "convert": "turn a checkpoint of the authors' code into a model folder",
}

EXIT_KNOWN_ERROR = 2
EXIT_INTERRUPTED = 128 + 2  # SIGINT
EXIT_CLOSED_PIPE = 128 + 13  # SIGPIPE


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        chosen: Command whose module is imported for its options; the others are listed by name alone.

    Returns:
        A parser whose result has `command`, `debug` and, for the chosen command, `run` and its own options.
    """
    parser = argparse.ArgumentParser(prog="ccrk", description="Cross-lingual cross-modal retrieval.")
    parser.add_argument("--version", action="version", version=f"ccrk {ccrk.__version__}")
    debug = {"action": "store_true", "help": "show the full traceback of an error"}
    parser.add_argument("--debug", **debug, default=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        # No default here: it would overwrite what was given before the command.
        command.add_argument("--debug", **debug, default=argparse.SUPPRESS)
        if name == chosen:
            module = importlib.import_module(f"ccrk.cli.{name}")
            command.description = module.HELP
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str], command: str | None) -> argparse.Namespace:
    """Parse a command line; bare words may also follow the options of a command that takes a list of them (`words`).

    `argparse` fills a list of bare words at the first of them, and refuses those that come after an option.
    """
    parser = build_parser(command)
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "words") and all(not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.words += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after `ccrk`; those of the process by default.

    Returns:
        The command's own exit code; 2 for an error in what the user gave, 130 after Ctrl-C, 141 when the reader of
        the output has gone away.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Options before the command take no value, so the first bare word is the command.
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = parse(argv, command)
        code = args.run(args)
        sys.stdout.flush()  # a closed pipe shows here rather than at exit, where nothing can catch it
        return code
    except (OSError, ValueError, ImportError, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return EXIT_CLOSED_PIPE
        message = _explain(error)
        if message is None:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"ccrk {command}: {message}", file=sys.stderr)
        return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_KNOWN_ERROR


def _explain(error: BaseException) -> str | None:
    """Put a known error into words for the user; None for a missing module of ours, which is a bug."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ModuleNotFoundError):
        if error.name is None or error.name.partition(".")[0] == "ccrk":
            return None
        return f"{error.name} is not installed; try: pip install 'ccrk[all]'"
    if isinstance(error, ImportError):  # transformers names what is too old or missing
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _stdout_is_closed() -> bool:
    """Tell a reader that went away (`ccrk ... | head`) from any other broken pipe, and silence stdout if so."""
    try:
        # Only a write can tell: what failed before is no longer in the buffer, so a flush alone would succeed.
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more on its way out; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
