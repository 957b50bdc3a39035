"""Names of languages, splits, images and files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# a language tag as users write it: zh, pt-BR
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")

# an image of COCO: COCO_val2014_000000391895.jpg, or 000000391895.jpg since 2017
COCO_NAME = re.compile(r"(?:COCO_(?P<folder>\w+2014)_)?(?P<number>\d{12})")


def coco_id(name: str) -> str:
    """COCO's number of an image, from its file's name; for other names the name without its suffix."""
    stem = Path(name.split("#")[0].strip()).stem
    match = COCO_NAME.fullmatch(stem)
    return str(int(match["number"])) if match else stem


def choose_split(found: Iterable[str], split: str | None, path: Any) -> str:
    """The split that is asked for, or the only one there is.

    Raises:
        ValueError: if it is not there, or none is named and there are several; with those that are there.
    """
    found = sorted(set(found))
    if split is None and len(found) == 1:
        return found[0]
    if split in found:
        return split
    if not found:
        raise ValueError(f"'{path}' holds no captions" + (f" of a split '{split}'" if split else ""))
    asked = f"has no split '{split}'; it has" if split else "has several splits, and split= must name one:"
    raise ValueError(f"'{path}' {asked} {', '.join(found)}")


_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def list_files(pattern: str | Path | Iterable[str | Path], suffix: str = "") -> list[str]:
    """The files that a pattern names, in order.

    Args:
        pattern: a path, a pattern with `*` and `?`, one with braces such as `train-{000..012}.tar` or
            `{train,val}.tar`, a folder, or a list of these. Of a folder its files are taken, but for hidden ones.
        suffix: how the files of a folder must end.

    Raises:
        ValueError: if a pattern names no file.
    """
    if not isinstance(pattern, (str, os.PathLike)):
        return [file for one in pattern for file in list_files(one, suffix)]
    found: list[str] = []
    for path in dict.fromkeys(_expand(os.fspath(pattern))):
        if os.path.isdir(path):
            matches = sorted(f for f in glob.glob(os.path.join(glob.escape(path), "*" + suffix)) if os.path.isfile(f))
        else:
            matches = [path] if os.path.isfile(path) else sorted(glob.glob(path))
        if not matches:
            ending = f" ending in {suffix}" if suffix and os.path.isdir(path) else ""
            raise ValueError(f"'{path}' names no file{ending}")
        found += matches
    return found


def _expand(pattern: str) -> list[str]:
    """All texts that the braces of a pattern stand for."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ValueError(f"'{pattern}': the numbers {match[0]} go down")
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    return [text for choice in choices for text in _expand(pattern[: match.start()] + choice + pattern[match.end() :])]
