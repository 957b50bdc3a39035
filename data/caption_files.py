"""Photos with captions in several languages, read from files into one schema.

A row is `{"image": path, "image_id": str, "captions": [{"language": str, "text": str, "source": str}, ...]}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class CaptionDataset:
    """A list of rows that can be trained on, with an account of what was left out.

    Attributes:
        rows: see the module.
        skipped: cause -> number of records (or captions) that were left out.
    """

    rows: list[dict[str, Any]]
    skipped: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    @property
    def languages(self) -> list[str]:
        """Languages that occur, most frequent first."""
        return [tag for tag, _ in Counter(c["language"] for r in self.rows for c in r["captions"]).most_common()]

    def describe(self) -> str:
        """One line: images, captions by language, and what was left out."""
        counts = Counter(c["language"] for row in self.rows for c in row["captions"])
        text = f"{len(self.rows)} images, captions: " + ", ".join(f"{tag} {n}" for tag, n in sorted(counts.items()))
        if self.skipped:
            text += "; left out: " + ", ".join(f"{n} x {cause}" for cause, n in sorted(self.skipped.items()))
        return text


def read_captions(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    sources: Sequence[str] = (),
) -> CaptionDataset:
    """Reads a JSON Lines file, one image a line.

    Each line is an object with the image's path under `image` (or `image_path`), an optional `id` (or `image_id`),
    and `captions` (or `caption`): either language -> text or list of texts, or a list of objects with `language` and
    `text`. Further captions may stand under `extra_captions`, as names -> list of texts.

    Args:
        path: the file.
        images: folder that relative image paths start from; the file's own folder by default.
        languages: languages to keep; all by default.
        sources: names under `extra_captions` to take as well, as `LANGUAGE=NAME`; `zh=zh_human` takes the texts of
            `zh_human` as Chinese captions.

    Returns:
        The rows. Records without an image file, and empty captions, are left out and counted.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is not such an object, a source is malformed, or nothing is left.
    """
    path = Path(path)
    folder = Path(images) if images is not None else path.parent
    extra = [_parse_source(source) for source in sources]
    dataset = CaptionDataset([])
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = _parse_line(line, f"{path}, line {number}")
            row = _to_row(record, folder, extra, languages, dataset.skipped, f"{path}, line {number}")
            if row is not None:
                dataset.rows.append(row)
    if not dataset.rows:
        wanted = f" in {', '.join(languages)}" if languages else ""
        raise ValueError(f"'{path}' holds no image with a caption{wanted}: {dataset.describe()}")
    return dataset


def _parse_source(source: str) -> tuple[str, str]:
    language, separator, name = source.partition("=")
    if not separator or not language or not name:
        raise ValueError(f"the caption source '{source}' is not of the form LANGUAGE=NAME, such as zh=zh_human")
    return language, name


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not an object with an image and its captions")
    return record


def _pairs(captions: Any, where: str) -> Iterable[tuple[str, Any]]:
    """(language, text) of either form of captions."""
    if isinstance(captions, dict):
        for language, texts in captions.items():
            for text in texts if isinstance(texts, list) else [texts]:
                yield language, text
    elif isinstance(captions, list) and all(
        isinstance(c, dict) and {"language", "text"} <= c.keys() for c in captions
    ):
        for caption in captions:
            yield caption["language"], caption["text"]
    else:
        raise ValueError(f"{where}: captions are neither language -> texts nor a list of language and text")


def _to_row(record, folder, extra, languages, skipped, where) -> dict[str, Any] | None:
    image = record.get("image", record.get("image_path"))
    if not isinstance(image, str):
        raise ValueError(f"{where} names no image (a path under 'image' or 'image_path')")
    image_path = folder / image
    if not image_path.is_file():
        skipped["image file missing"] += 1
        return None
    found = [
        (language, text, "captions")
        for language, text in _pairs(record.get("captions", record.get("caption", {})), where)
    ]
    for language, name in extra:
        texts = record.get("extra_captions", {}).get(name, [])
        found += [(language, text, name) for text in (texts if isinstance(texts, list) else [texts])]
    captions = []
    for language, text, source in found:
        if languages is not None and language not in languages:
            continue
        if not isinstance(text, str) or not text.strip():
            skipped["caption empty"] += 1
            continue
        captions.append({"language": language, "text": text, "source": source})
    if not captions:
        skipped["image without captions"] += 1
        return None
    identity = record.get("id", record.get("image_id", image))
    return {"image": str(image_path), "image_id": str(identity), "captions": captions}
