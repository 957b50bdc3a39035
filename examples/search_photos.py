"""One question, several languages, one folder of photos: what is found in each, and how far the answers agree.

    python examples/search_photos.py MODEL PHOTOS
    python examples/search_photos.py MODEL PHOTOS --ask en="two boats" --ask fr="deux bateaux" --rerank 10

MODEL is a folder or a Hub id, PHOTOS a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers import pipeline

import ccrk  # noqa: F401  (registers the pipeline with transformers)

QUESTION = {
    "en": "a dog in the snow",
    "de": "ein Hund im Schnee",
    "fr": "un chien dans la neige",
    "es": "un perro en la nieve",
    "zh": "一只狗在雪地里",
    "ja": "雪の中の犬",
}


def language_and_text(word: str) -> tuple[str, str]:
    """`en=a dog` as ("en", "a dog")."""
    language, separator, text = word.partition("=")
    if not (language and separator and text.strip()):
        raise argparse.ArgumentTypeError(f"'{word}' is not of the form LANGUAGE=TEXT, such as en='a dog'")
    return language, text


def main(argv: Sequence[str] | None = None) -> int:
    """Searches and prints; `argv` are the words after the script's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a model")
    parser.add_argument("photos", help="folder of photos")
    parser.add_argument("--ask", action="append", type=language_and_text, metavar="LANGUAGE=TEXT")
    parser.add_argument("--top-k", type=int, default=5, help="photos for each language (default: 5)")
    parser.add_argument("--rerank", type=int, help="let the fusion encoder score the best so many anew")
    args = parser.parse_args(argv)

    question = dict(args.ask or QUESTION)
    search = pipeline("ccr-retrieval", model=args.model, gallery=args.photos)
    answers = search(list(question.values()), top_k=args.top_k, rerank=args.rerank)
    first = {result["id"] for result in answers[0]}
    for (language, text), results in zip(question.items(), answers, strict=True):
        shared = sum(result["id"] in first for result in results)
        print(f"{language}: {text}   ({shared} of {len(results)} also found in {next(iter(question))})")
        for place, result in enumerate(results, 1):
            print(f"  {place}. {result['score']:8.4f}  {result['path']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
