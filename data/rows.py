"""The schema that every corpus is read into, and how captions get there.

A row is `{"image": ..., "image_id": str, "captions": [{"language", "text", "source"?, "weight"?}, ...]}`; other
columns pass through. The image is a reference that is opened later: a path, a PIL image, bytes, a dict of `bytes` and
`path` as `datasets` has them, or an [`ImageReference`].
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ccrk.data.report import (
    CAPTION_EMPTY,
    IMAGE_MISSING,
    IMAGE_OUTSIDE,
    NO_CAPTIONS,
    NO_LANGUAGE,
    NOT_A_RECORD,
    NOT_JSON,
    OTHER_LANGUAGE,
    SkipReport,
)

if TYPE_CHECKING:
    import datasets

# what a row has of its own, and what is put into it on the way to a batch; a column of that name does not pass through
RESERVED = ("image", "image_id", "captions", "epoch", "row")

Row = dict[str, Any]


@dataclass
class CaptionDataset:
    """A list of rows that can be trained on, with an account of what was left out.

    Attributes:
        rows: see the module.
        skipped: what was left out, counted by cause.
    """

    rows: list[Row]
    skipped: SkipReport = field(default_factory=SkipReport)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
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
            text += f"; left out: {self.skipped.describe()}"
        return text

    def to_datasets(self, **options: Any) -> datasets.Dataset:
        """The rows as a `datasets.Dataset`; see `ccrk.data.to_datasets.to_datasets` for `embed` and `split`."""
        from ccrk.data.to_datasets import to_datasets

        return to_datasets(self, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publishes the rows with their photos; see `ccrk.data.to_datasets.push_to_hub`."""
        from ccrk.data.to_datasets import push_to_hub

        return push_to_hub(self, repo_id, **options)


def first_captions(dataset: CaptionDataset) -> CaptionDataset:
    """The first caption of each language: one query for each image and language."""
    rows = []
    for row in dataset.rows:
        first: dict[str, dict] = {}
        for caption in row["captions"]:
            first.setdefault(caption["language"], caption)
        rows.append({**row, "captions": list(first.values())})
    return CaptionDataset(rows, dataset.skipped)


def checked(dataset: CaptionDataset, path: Any, languages: Sequence[str] | None = None) -> CaptionDataset:
    """The data set itself.

    Raises:
        ValueError: if it is empty; what was left out may say why.
    """
    if dataset.rows:
        return dataset
    wanted = f" in {', '.join(languages)}" if languages else ""
    lost = [cause for cause in (IMAGE_MISSING, IMAGE_OUTSIDE) if cause in dataset.skipped]
    hint = f" (such as {dataset.skipped.examples(lost[0])[0]}; images= names their folder)" if lost else ""
    raise ValueError(f"'{path}' holds no image with a caption{wanted}: {dataset.describe()}{hint}")


def caption_items(captions: Any, where: str) -> Iterator[dict[str, Any]]:
    """Captions of either form, language -> text or texts, or a list of objects, as objects.

    Raises:
        ValueError: if they are of another form, or a weight is no number of 0 or more.
    """
    if isinstance(captions, Mapping):
        for language, texts in captions.items():
            for text in texts if isinstance(texts, list) else [texts]:
                yield {"language": language, "text": text}
    elif isinstance(captions, list) and all(
        isinstance(c, Mapping) and {"language", "text"} <= c.keys() for c in captions
    ):
        for caption in captions:
            item = {"language": caption["language"], "text": caption["text"]}
            if caption.get("source") is not None:
                item["source"] = str(caption["source"])
            if caption.get("weight") is not None:
                item["weight"] = _weight(caption["weight"], where)
            yield item
    else:
        raise ValueError(f"{where}: captions are neither language -> texts nor a list of language and text")


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
        raise ValueError(f"{where}: the weight of a caption is {value!r}, but it must be a number, 0 or more")
    return float(value)


def kept_captions(
    items: Iterable[dict[str, Any]], languages: Sequence[str] | None, report: SkipReport, item: str
) -> list[dict[str, Any]]:
    """The captions that have a text, a language, and one that is wanted; the others are counted.

    Args:
        items: captions.
        languages: languages to keep; all without them.
        report: takes the counts.
        item: what the captions belong to, as an example for the report.
    """
    kept = []
    for caption in items:
        language, text = caption["language"], caption["text"]
        if not isinstance(language, str) or not language:
            report.add(NO_LANGUAGE, item)
        elif languages is not None and language not in languages:
            report.add(OTHER_LANGUAGE, f"{item} ({language})")
        elif not isinstance(text, str) or not text.strip():
            report.add(CAPTION_EMPTY, f"{item} ({language})")
        else:
            kept.append(caption)
    return kept


def passing(record: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The columns of a record that pass through: all that are neither used nor reserved."""
    return {key: value for key, value in record.items() if key not in RESERVED and key not in used}


class RowJoiner:
    """Brings captions together by image: the same image in two languages is one row.

    Rows stand in the order in which images first occur. An image that is not there is counted once, however many
    captions it has.

    Args:
        languages: languages to keep; all without them.
    """

    def __init__(self, languages: Sequence[str] | None = None):
        self.languages = languages
        self.report = SkipReport()
        self._rows: dict[str, Row | None] = {}

    def add(
        self,
        image_id: str,
        find: Callable[[], Any],
        captions: Iterable[dict[str, Any]],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds captions of an image.

        Args:
            image_id: what the image is known by in every file.
            find: called once for each image; gives its reference, or counts why there is none and gives `None`.
            captions: what is said about it; see `kept_captions`.
            metadata: other columns, taken from the record in which the image first occurs.
        """
        if image_id not in self._rows:
            image = find()
            row = None if image is None else {"image": image, "image_id": image_id, "captions": [], **(metadata or {})}
            self._rows[image_id] = row
        row = self._rows[image_id]
        if row is not None:
            row["captions"] += kept_captions(captions, self.languages, self.report, image_id)

    def dataset(self, path: Any) -> CaptionDataset:
        """The rows that have captions.

        Raises:
            ValueError: if there are none.
        """
        rows = []
        for image_id, row in self._rows.items():
            if row is None:
                continue
            if row["captions"]:
                rows.append(row)
            else:
                self.report.add(NO_CAPTIONS, image_id)
        return checked(CaptionDataset(rows, self.report), path, self.languages)


def join_corpora(*corpora: CaptionDataset) -> CaptionDataset:
    """Several corpora as one: images of equal `image_id` become one row with the captions of all.

    COCO in English, Japanese and Chinese comes from three corpora, and their image ids agree. The image and the other
    columns are those of the first corpus that has them.
    """
    rows: dict[str, Row] = {}
    report = SkipReport()
    for corpus in corpora:
        report.merge(corpus.skipped)
        for row in corpus.rows:
            known = rows.get(row["image_id"])
            if known is None:
                rows[row["image_id"]] = {**row, "captions": list(row["captions"])}
            else:
                known["captions"] += row["captions"]
                for key, value in row.items():
                    known.setdefault(key, value)
    return CaptionDataset(list(rows.values()), report)


# --- lines of JSON ------------------------------------------------------------------------------------------------


class JsonLine(NamedTuple):
    """A line of a file.

    Attributes:
        path: the file.
        number: number of the line, from 1.
        offset: where it begins, in bytes.
        length: how long it is, in bytes.
        record: the object that it holds.
    """

    path: Path
    number: int
    offset: int
    length: int
    record: dict[str, Any]

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, line {self.number}"


def read_lines(
    path: str | Path, to_row: Callable[[JsonLine], Row | None], report: SkipReport, strict: bool = True
) -> Iterator[Row]:
    """The rows of a file of JSON objects, one a line; blank lines are passed over.

    Args:
        path: the file, UTF-8.
        to_row: makes a row of a line, or gives `None` for a record that it has counted as left out; raises
            `ValueError` for one that is not of the format.
        report: takes the counts.
        strict: whether every line must hold a record. Otherwise only the first has to, and later lines that do not are
            counted: one cut-off line need not end a long training.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line that must hold a record does not; with file and line.
    """
    path, good, offset = Path(path), False, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            where, cause = f"{path}, line {number}", NOT_JSON
            try:
                record = _parse(line, where)
                cause = NOT_A_RECORD
                row = to_row(JsonLine(path, number, start, len(line), record))
            except ValueError:
                if strict or not good:
                    raise
                report.add(cause, where)
                continue
            good = True
            if row is not None:
                yield row


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not an object with an image and its captions")
    return record


def first_record(path: str | Path) -> dict[str, Any] | None:
    """The object on the first line of a file that is not blank; `None` if there is none."""
    with Path(path).open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    return _parse(line, str(path))
                except ValueError:
                    return None
    return None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, with the place.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
