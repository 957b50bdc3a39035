"""`ccrk search`: one search in a folder of photos, an index or a file of captions, from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

NAME = "search"
HELP = "find photos by captions and captions by photos"

TABLE_WIDTH = 12  # of a column of scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.usage = "ccrk search [OPTION ...] MODEL (GALLERY | --captions FILE) QUERY [QUERY ...]"
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument(
        "words",
        metavar="GALLERY QUERY",
        nargs="+",
        help="a folder of photos or the URI of an index, and what to look for; with --captions only the latter",
    )
    parser.add_argument("--captions", metavar="FILE", help="search this text file, a caption a line, and no folder")
    parser.add_argument("--image", action="store_true", help="the queries are paths of photos, not texts")
    parser.add_argument("--top-k", type=int, default=10, help="results for each query (default: 10)")
    parser.add_argument(
        "--rerank",
        type=number_or_auto,
        metavar="N",
        help='let the fusion encoder score the best N anew; "auto" if affordable',
    )
    parser.add_argument("--rerank-score", help='"itm+sim" (default), "itm" or "sim"')
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows of an index with this value; also COLUMN=A,B and COLUMN=MIN..MAX; may be given several times",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="photos or texts in one pass (default: 32)")
    parser.add_argument("--threads", type=int, help="threads of the processor; all by default")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each query")


def number_or_auto(text: str) -> int | str:
    """A whole number, or the word."""
    return text if text == "auto" else int(text)


def run(args: argparse.Namespace) -> int:
    """Searches and prints.

    Returns:
        0; whatever is wrong with what the user gave is raised.
    """
    from ccrk.pipelines.loading import load_pipeline

    gallery, queries = (None, args.words) if args.captions else (args.words[0], args.words[1:])
    if not queries:
        raise ValueError(f"there is no query: name one after the gallery '{gallery}'")
    if args.captions:
        lines = Path(args.captions).read_text(encoding="utf-8").splitlines()
        gallery = [line for line in lines if line.strip()]
        if not gallery:
            raise ValueError(f"the file '{args.captions}' holds no caption")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        search = load_pipeline(
            args.model,
            threads=args.threads,
            gallery=gallery,
            batch_size=args.batch_size,
            top_k=args.top_k,
            rerank=args.rerank,
            rerank_score=args.rerank_score,
        )
        where = None
        if args.where:
            from ccrk.pipelines.where_words import where_from_words

            where = where_from_words(args.where, getattr(search.gallery, "columns", None))
        answers = search([Path(query) for query in queries] if args.image else list(queries), where=where)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"ccrk search: {warning.message}", file=sys.stderr)
    for query, results in zip(queries, answers, strict=True):
        if args.json:
            print(json.dumps({"query": query, "results": results}, ensure_ascii=False))
        else:
            print_table(query, results)
    return 0


def print_table(query: str, results: list[dict]) -> None:
    """Prints the results of one query: place, scores, and the path or the text found."""
    scores = [name for name in ("score", "similarity", "match") if any(name in result for result in results)]
    print(query)
    print("   #" + "".join(f"{name:>{TABLE_WIDTH}}" for name in scores))
    for place, result in enumerate(results, 1):
        numbers = "".join(
            f"{'-':>{TABLE_WIDTH}}" if result[name] is None else f"{result[name]:{TABLE_WIDTH}.4f}" for name in scores
        )
        print(f"{place:4d}{numbers}  {result.get('path') or result.get('text') or result['id']}")
    print()
