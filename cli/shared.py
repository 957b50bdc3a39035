"""What several commands have in common: lists in one word, and what they tell of items that were skipped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

SHOWN = 10  # skipped items that are told one by one


def comma_list(word: str) -> list[str]:
    """`A,B` as a list, for argparse."""
    return [part.strip() for part in word.split(",") if part.strip()]


def tell_skipped(command: str, skipped: Sequence[tuple[str, str]], rest: str) -> None:
    """Tells on stderr what was skipped.

    Args:
        command: its name.
        skipped: (name, cause) of each item; names may hold anything, so they are shown as printable text.
        rest: said after the number of those beyond the first ten.
    """
    for name, cause in skipped[:SHOWN]:
        print(f"ccrk {command}: skipped {name if name.isprintable() else ascii(name)}: {cause}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"ccrk {command}: and {len(skipped) - SHOWN} more{rest}", file=sys.stderr)
