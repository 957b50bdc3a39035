"""`ccrk serve`: search over HTTP and on a web page."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "serve"
HELP = """Search a gallery over HTTP, and on a web page for people.

GALLERY is an index that `ccrk index` made (lance://PATH, milvus://HOST:PORT/COLLECTION) or a folder of photos, which
is then embedded at every start. The page is at http://127.0.0.1:8000/, the description of the API at /openapi.json.

  ccrk serve my-model lance://photos.lance
  ccrk serve my-model photos/ --port 8080 --no-page
  CCRK_TOKEN=... ccrk serve my-model lance://photos.lance --host 0.0.0.0

  curl -s localhost:8000/search -H 'Content-Type: application/json' -d '{"queries": "ein Hund im Schnee", "k": 5}'

By default only this machine can reach it. With --host 0.0.0.0 everyone on the network can: set a token, and put a
server with TLS in front (docs/serving.md). Give the token by the environment: all users see the words of a command."""

GROUPS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "address": (
        ("--host", {"help": "address to listen on (default: 127.0.0.1, this machine alone)"}),
        ("--port", {"type": int, "help": "default: 8000; 0 for any that is free"}),
        ("--token", {"help": "what clients have to show (default: the environment's CCRK_TOKEN, if set)"}),
        (
            "--allow-host",
            {
                "action": "append",
                "dest": "allow_hosts",
                "metavar": "NAME",
                "help": "name of the service; * for all",
            },
        ),
    ),
    "what is served": (
        (
            "--embedded-in",
            {
                "action": "append",
                "metavar": "ORIGIN",
                "help": "pages from there may show this one, such as https://huggingface.co (default: none)",
            },
        ),
        ("--no-page", {"action": "store_false", "dest": "page", "help": "the API alone"}),
        (
            "--photos",
            {
                "action": "append",
                "metavar": "FOLDER",
                "help": "photos in it may be shown (default: the one indexed)",
            },
        ),
        ("--rerank", {"help": "candidates that are scored anew: auto (default), off or a number"}),
    ),
    "limits": (
        ("--max-k", {"type": int, "metavar": "N", "help": "results of a query (default: 200)"}),
        ("--max-queries", {"type": int, "metavar": "N", "help": "queries of a request (default: 64)"}),
        ("--max-rerank", {"type": int, "metavar": "N", "help": "candidates of a query (default: 100)"}),
        ("--max-text-chars", {"type": int, "metavar": "N", "help": "of a text (default: 2000)"}),
        ("--max-upload-bytes", {"type": int, "metavar": "N", "help": "of a photo (default: 20 MiB)"}),
        ("--max-json-bytes", {"type": int, "metavar": "N", "help": "of any other body (default: 256 KiB)"}),
        ("--max-pixels", {"type": int, "metavar": "N", "help": "of a photo (default: 50 million)"}),
        ("--max-requests", {"type": int, "metavar": "N", "help": "answered at a time (default: 256)"}),
        ("--max-waiting", {"type": int, "metavar": "N", "help": "queries in the queue (default: 512)"}),
        ("--body-timeout", {"type": float, "metavar": "S", "help": "seconds to send a request (default: 20)"}),
        ("--request-timeout", {"type": float, "metavar": "S", "help": "seconds to an answer (default: 60)"}),
        ("--keep-alive", {"type": int, "metavar": "S", "help": "seconds of an idle connection (default: 10)"}),
    ),
    "how": (
        ("--max-batch", {"type": int, "metavar": "N", "help": "queries in a pass, 1: no batches (default: 32)"}),
        ("--max-wait-ms", {"type": float, "metavar": "MS", "help": "that a query waits for others (default: 5)"}),
        ("--bf16", {"action": "store_true", "help": "compute in bfloat16"}),
        ("--threads", {"type": int, "metavar": "N", "help": "CPU threads (default: torch's choice)"}),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; those that are not given keep the defaults of `ServingOptions`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument("gallery", metavar="GALLERY", help="URI of an index, or a folder of photos")
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, words in options:
            group.add_argument(name, default=argparse.SUPPRESS, **words)


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to end.

    Returns:
        0, or 1 if the address cannot be listened on; whatever is wrong with what the user gave is raised.
    """
    from dataclasses import fields

    from ccrk.serving.options import ServingOptions

    given = {name: value for name, value in vars(args).items() if name in {one.name for one in fields(ServingOptions)}}
    if "rerank" in given:
        given["rerank"] = _rerank(given["rerank"])
    options = ServingOptions(**given)

    from ccrk.serving.run import run_service

    return run_service(options)


def _rerank(word: str) -> int | str | None:
    """The option's word as `ServingOptions` takes it."""
    return None if word == "off" else int(word) if word.isascii() and word.isdigit() else word
