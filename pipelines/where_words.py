"""Filters in words of a command line, `column=value`, as the mapping that `parse_where` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def where_from_words(words: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Reads conditions.

    They are `column=value`, `column=a,b` (one of them), `column=min..max` (an end may be left out) or `column=` (not
    set). A value that begins with a quotation mark or a square bracket is JSON, for texts with commas or dots in them:
    `place=["Paris, Texas"]`.

    Args:
        words: one for each condition; all have to hold.
        columns: name -> type of the index's metadata; None if what is searched is no index.

    Raises:
        ValueError: if a word is no condition, or a value is not of its column's type.
    """
    if columns is None:
        raise ValueError(f"the filter '{words[0]}' needs an index; `ccrk index` makes one of a folder or a file")
    types = {"id": "string", **columns}
    where: dict[str, Any] = {}
    for word in words:
        column, equals, value = word.partition("=")
        if not equals or not column:
            raise ValueError(f"the filter '{word}' is no condition; write column=value, column=a,b or column=min..max")
        if column not in types:
            raise ValueError(f"the filter names a column '{column}', but the index has: {', '.join(sorted(types))}")
        if column in where:
            raise ValueError(f"the filter names '{column}' twice; several values are written {column}=a,b")
        where[column] = _value(value, column, types[column])
    return where


def _value(text: str, column: str, kind: str) -> Any:
    if text == "":
        return None
    if text[0] in '"[':
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"the filter of '{column}' begins as JSON does and is none: {text} ({error})") from error
    if ".." in text:
        low, _, high = text.partition("..")
        ends = {name: _one(end, column, kind) for name, end in (("min", low), ("max", high)) if end}
        if not ends:
            raise ValueError(f"the filter of '{column}' is a range without ends; write min..max, min.. or ..max")
        return ends
    parts = [_one(part, column, kind) for part in text.split(",")]
    return parts if len(parts) > 1 else parts[0]


def _one(text: str, column: str, kind: str) -> Any:
    """A value of a column's type."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"string": str, "int64": int, "float64": float}[kind](text)
    except (KeyError, ValueError):
        wanted = {"bool": "true or false", "int64": "a whole number", "float64": "a number"}[kind]
        raise ValueError(f"the filter of '{column}' has '{text}', and the column holds {wanted}") from None


__all__ = ["where_from_words"]
