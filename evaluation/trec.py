"""Result lists and right answers as TREC run and qrels files, and back.

A run has a line `QUERY Q0 ITEM RANK SCORE TAG` for each place of a list, qrels a line `QUERY 0 ITEM RELEVANCE` for
each right answer. TREC tools ignore the rank: they sort by score, held in single precision, and put equal scores in
descending order of the items' names. Scores that are written here are therefore distinct in single precision: one
that does not lie below the score before it becomes the next smaller number, so that the order is ours.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ccrk.metrics.ccr_recall.recall import Targets

Run = dict[str, dict[str, float]]
"""Query -> item -> score; items in the order of the list."""
Qrels = dict[str, dict[str, int]]
"""Query -> item -> relevance; more than 0 is a right answer."""


# --- ids ----------------------------------------------------------------------------------------------------------


def _check_ids(ids: Sequence[str], what: str) -> None:
    """Raises ValueError unless ids are distinct words."""
    for name in ids:
        _check_word(name, f"the {what} id")
    if len(set(ids)) < len(ids):
        twice = next(name for name, times in Counter(ids).items() if times > 1)
        raise ValueError(f"the {what} id {twice!r} occurs twice, but ids in a TREC file must be distinct")


def _check_word(name: str, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} is {name!r}; it must be a text that is not empty")
    if any(character.isspace() or character == "\0" for character in name):
        raise ValueError(f"{what} {name!r} holds whitespace, which ends a field of a TREC file; put _ or %20 for it")


def caption_query_ids(dataset: Sequence[Mapping], languages: Sequence[str] | None = None) -> list[str]:
    """Ids of captions as queries, `LANGUAGE:IMAGE ID:NUMBER`, where the number counts an image's captions from 0.

    Args:
        dataset: rows of `image_id` and `captions`.
        languages: those to take, in their order; all by default, sorted.

    Returns:
        Language after language, within each in the order of the rows: the order in which `ccrk.evaluation.features`
        has the texts, as long as no image is left out.
    """
    found: dict[str, list[str]] = {tag: [] for tag in languages or ()}
    counts: dict[tuple[str, str], int] = {}
    for row in dataset:
        for caption in row["captions"]:
            tag, image_id = caption["language"], row["image_id"]
            if languages is not None and tag not in found:
                continue
            number = counts.setdefault((tag, image_id), 0)
            counts[tag, image_id] += 1
            found.setdefault(tag, []).append(f"{tag}:{image_id}:{number}")
    return [name for tag in (languages or sorted(found)) for name in found[tag]]


# --- our lists ----------------------------------------------------------------------------------------------------


def ranked_lists(
    scores: np.ndarray, count: int, targets: Targets | Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each query, from the scores of all items.

    Args:
        scores: (Q, N), higher is better.
        count: how many, at most N.
        targets: right answers as `target_ranks` takes them. With them, right items stand behind others of equal
            score: the place of the first one is then its pessimistic rank, also where ties reach beyond the list.
            Without them the earlier item comes first.

    Returns:
        Items (Q, count), best first, and their scores (Q, count).

    Raises:
        ValueError: if a score is NaN, or right answers do not fit the scores.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, so nothing can be ranked by them")
    right = np.zeros(scores.shape, dtype=bool)
    if targets is not None:
        targets = Targets.of(targets)
        targets.check(*scores.shape)
        right[targets.queries, targets.items] = True
    places = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    lists = np.lexsort((places, right, -scores), axis=1)[:, :count]
    return lists, np.take_along_axis(scores, lists, axis=1)


def descending(scores: Sequence[float]) -> np.ndarray:
    """Scores of one list in single precision, each below the one before.

    Args:
        scores: as the list is ordered: none is greater than the one before.

    Returns:
        (n,) float32. A score that is not below the one before, which it is made to be, moves by single steps of single
        precision: by at most as many as there are scores equal to it, or rounded to it, before it.

    Raises:
        ValueError: if scores rise, or one is not finite in single precision.
    """
    values = np.asarray(scores, dtype=np.float64)
    rising = np.flatnonzero(np.diff(values) > 0)
    if len(rising):
        place = int(rising[0])
        raise ValueError(
            f"scores rise from place {place} to {place + 1} ({values[place]:g}, {values[place + 1]:g}), but a list is "
            "best first; without scores the places are written instead"
        )
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    for place in np.flatnonzero(result[1:] >= result[:-1]) + 1:
        while place < len(result) and result[place] >= result[place - 1]:
            result[place] = np.nextafter(result[place - 1], np.float32(-np.inf))
            place += 1
    if not np.isfinite(result).all():
        place = int(np.flatnonzero(~np.isfinite(result))[0])
        raise ValueError(f"the score at place {place} is {values[place]}, which single precision does not hold")
    return result


def _entries(
    lists: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]] | None,
    query_ids: Sequence[str],
    item_ids: Sequence[str],
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Query, its items and their scores; all is checked before it is given."""
    _check_ids(query_ids, "query")
    _check_ids(item_ids, "item")
    for what, given in (("lists", lists), ("lists of scores", scores)):
        if given is not None and len(given) != len(query_ids):
            raise ValueError(f"there are {len(query_ids)} query ids, but {len(given)} {what}")
    for number, (query, row) in enumerate(zip(query_ids, lists, strict=True)):
        row = [int(item) for item in row]
        if not row:
            raise ValueError(f"the list of query {query!r} is empty; TREC tools would leave it out of their mean")
        wrong = [item for item in row if not 0 <= item < len(item_ids)]
        if wrong:
            raise ValueError(f"the list of query {query!r} has item {wrong[0]}, but there are {len(item_ids)} items")
        if len(set(row)) < len(row):
            raise ValueError(f"the list of query {query!r} names an item twice")
        of_row = [-float(place) for place in range(1, len(row) + 1)] if scores is None else scores[number]
        if len(of_row) != len(row):
            raise ValueError(f"the list of query {query!r} has {len(row)} items, but {len(of_row)} scores")
        try:
            values = descending(of_row)
        except ValueError as error:
            raise ValueError(f"query {query!r}: {error}") from None
        yield query, [item_ids[item] for item in row], values


def run_of_lists(
    lists: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]] | None,
    query_ids: Sequence[str],
    item_ids: Sequence[str],
) -> Run:
    """Our lists as a run: what `write_run` writes, as a dict.

    Args:
        lists: for each query rows of the gallery, best first; lists may differ in length.
        scores: their scores, which do not rise; or None, where the order is not that of one score, as with re-ranking.
            The score of the n-th place is then -n.
        query_ids: of each query.
        item_ids: of each row of the gallery.

    Raises:
        ValueError: if an id is empty, holds whitespace or occurs twice; a list is empty, names an item twice or one
            that does not exist; or scores do not fit, rise or are not finite.
    """
    return {
        query: dict(zip(items, map(float, values), strict=True))
        for query, items, values in _entries(lists, scores, query_ids, item_ids)
    }


def lists_of_run(
    run: Mapping[str, Mapping[str, float]], query_ids: Sequence[str], item_ids: Sequence[str]
) -> tuple[list[list[int]], list[list[float]]]:
    """A run as our lists, in the order in which TREC tools rank it, whatever the order of its lines.

    Args:
        run: query -> item -> score.
        query_ids: the queries, in the order of the result; one that is not in the run has an empty list.
        item_ids: of each row of the gallery.

    Returns:
        For each query rows of the gallery, best first, and their scores.

    Raises:
        ValueError: if the run has a query or an item that is not among the ids, or ids occur twice.
    """
    _check_ids(query_ids, "query")
    _check_ids(item_ids, "item")
    rows = {name: row for row, name in enumerate(item_ids)}
    _check_known(run, query_ids, rows, "run")
    lists, scores = [], []
    for query in query_ids:
        # by score in single precision, then by name (UTF-8 has the order of its characters); both descending
        found = sorted(run.get(query, {}).items(), key=lambda pair: (np.float32(pair[1]), pair[0]), reverse=True)
        lists.append([rows[item] for item, _ in found])
        scores.append([score for _, score in found])
    return lists, scores


def _check_known(table: Mapping[str, Mapping], query_ids: Sequence[str], items: Mapping[str, int], what: str) -> None:
    queries = set(query_ids)
    for query, of_query in table.items():
        if query not in queries:
            raise ValueError(f"the {what} has a query {query!r} that is not among the query ids")
        unknown = next((item for item in of_query if item not in items), None)
        if unknown is not None:
            raise ValueError(f"query {query!r} of the {what} has an item {unknown!r} that is not among the item ids")


def qrels_of_targets(targets: Targets | Sequence, query_ids: Sequence[str], item_ids: Sequence[str]) -> Qrels:
    """Right answers as qrels, each of relevance 1.

    Args:
        targets: the right row of the gallery of each query, or a list of them.
        query_ids: of each query.
        item_ids: of each row of the gallery.

    Raises:
        ValueError: if ids are not as in `run_of_lists`, or a query has no right answer or one that does not exist.
    """
    _check_ids(query_ids, "query")
    _check_ids(item_ids, "item")
    targets = Targets.of(targets)
    targets.check(len(query_ids), len(item_ids))
    qrels: Qrels = {query: {} for query in query_ids}
    for query, item in zip(targets.queries.tolist(), targets.items.tolist(), strict=True):
        qrels[query_ids[query]][item_ids[item]] = 1
    return qrels


def targets_of_qrels(
    qrels: Mapping[str, Mapping[str, int]], query_ids: Sequence[str], item_ids: Sequence[str]
) -> list[list[int]]:
    """Qrels as right answers: rows of the gallery with a relevance above 0, for each query.

    Raises:
        ValueError: if the qrels have a query or an item that is not among the ids, a query has no right answer, or
            ids occur twice.
    """
    _check_ids(query_ids, "query")
    _check_ids(item_ids, "item")
    rows = {name: row for row, name in enumerate(item_ids)}
    _check_known(qrels, query_ids, rows, "qrels")
    targets = []
    for query in query_ids:
        right = sorted(rows[item] for item, relevance in qrels.get(query, {}).items() if relevance > 0)
        if not right:
            raise ValueError(f"the qrels have no right answer of query {query!r}")
        targets.append(right)
    return targets


# --- files --------------------------------------------------------------------------------------------------------


_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@contextmanager
def _writing(path: str | os.PathLike) -> Iterator[Callable[[str], int]]:
    """Gives a function that writes text; the file is there once all is written, and otherwise as it was."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if path.suffix == ".gz":
                # without name and time, so that equal content makes equal files
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    yield lambda text: packed.write(text.encode("utf-8"))
            else:
                yield lambda text: file.write(text.encode("utf-8"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_run(
    path: str | os.PathLike,
    lists: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]] | None,
    query_ids: Sequence[str],
    item_ids: Sequence[str],
    tag: str = "ccrk",
) -> None:
    """Writes result lists as a run that TREC tools rank in the same order.

    Scores are written with the nine digits that single precision takes; ranks count from 1, as TREC does.

    Args:
        path: the file; packed if it ends in `.gz`.
        lists: see `run_of_lists`.
        scores: see there.
        query_ids: see there.
        item_ids: see there.
        tag: name of the run.

    Raises:
        OSError: if the file cannot be written.
        ValueError: see there; also if the tag is empty or holds whitespace.
    """
    _check_word(tag, "the tag")
    with _writing(path) as write:
        for query, items, values in _entries(lists, scores, query_ids, item_ids):
            ranked = enumerate(zip(items, values, strict=True), 1)
            write("".join(f"{query} Q0 {item} {rank} {value:.9g} {tag}\n" for rank, (item, value) in ranked))


def write_qrels(
    path: str | os.PathLike, targets: Targets | Sequence, query_ids: Sequence[str], item_ids: Sequence[str]
) -> None:
    """Writes right answers as qrels.

    Args:
        path: the file; packed if it ends in `.gz`.
        targets: see `qrels_of_targets`.
        query_ids: see there.
        item_ids: see there.

    Raises:
        OSError: if the file cannot be written.
        ValueError: see there.
    """
    qrels = qrels_of_targets(targets, query_ids, item_ids)
    with _writing(path) as write:
        for query, items in qrels.items():
            write("".join(f"{query} 0 {item} {relevance}\n" for item, relevance in items.items()))


def _fields(path: str | os.PathLike, names: str) -> Iterator[tuple[str, list[str]]]:
    """Place and fields of every line that is not blank; fields end at spaces and tabs alone, as C reads them.

    Raises:
        ValueError: if a line has another number of fields or is not UTF-8, or the file is not gzip.
    """
    path, count = Path(path), len(names.split())
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                where, parts = f"{path}, line {number}", line.split()
                if parts and len(parts) != count:
                    raise ValueError(f"{where} has {len(parts)} fields, but there must be {count}: {names}")
                if parts:
                    yield where, [part.decode("utf-8") for part in parts]
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8: {error}") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"'{path}' is not gzip: {error}") from error


def read_run(path: str | os.PathLike) -> Run:
    """Reads a run; queries and items in the order of the lines. The order of rank is that of `lists_of_run`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: with file and line, if a line is not of the format, a rank is no whole number, a score no finite
            one, or an item occurs twice in a query; or if there is no line.
    """
    run: Run = {}
    for where, (query, _, item, rank, text, _) in _fields(path, "QUERY Q0 ITEM RANK SCORE TAG"):
        _whole(rank, "the rank", where)
        score = float(text) if _NUMBER.fullmatch(text) else math.inf
        if not math.isfinite(score):
            raise ValueError(f"{where}: the score is '{text}', which is no finite number")
        _put(run.setdefault(query, {}), query, item, score, where)
    return _not_empty(run, path)


def read_qrels(path: str | os.PathLike) -> Qrels:
    """Reads qrels; queries and items in the order of the lines.

    Raises:
        OSError: if the file cannot be read.
        ValueError: with file and line, if a line is not of the format, a relevance is no whole number, or an item
            occurs twice in a query; or if there is no line.
    """
    qrels: Qrels = {}
    for where, (query, _, item, text) in _fields(path, "QUERY 0 ITEM RELEVANCE"):
        _put(qrels.setdefault(query, {}), query, item, _whole(text, "the relevance", where), where)
    return _not_empty(qrels, path)


def _whole(text: str, what: str, where: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{where}: {what} is '{text}', which is no whole number")
    return int(text)


def _put(table: dict, query: str, item: str, value: float, where: str) -> None:
    if item in table:
        raise ValueError(f"{where} has the item '{item}' of query '{query}' a second time")
    table[item] = value


def _not_empty(table: dict, path: str | os.PathLike) -> dict:
    if not table:
        raise ValueError(f"'{path}' has no line")
    return table
