"""What the service does, without HTTP: the API and the web page both call it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image
import torch

from ccrk.inference_ccrk import fast_inference
from ccrk.metrics import mean_rank_variance
from ccrk.metrics.consistency import agreement
from ccrk.metrics.mrv.rank_variation import rank_variation

from .batching import Batcher, OverloadedError
from .gallery import ShownGallery
from .options import ServingOptions
from .photos import MAX_SIDE, PhotoReader

DECODING_THREADS = 2
"""Photos that are opened at a time: each may take several bytes for each of `max_pixels`."""

MAX_LANGUAGES = 20
DEPTH = 5
"""Times k: the places that a comparison looks an item up in."""


class RequestError(ValueError):
    """A request that cannot be answered as it is; the message is for whoever sent it."""


@dataclass(frozen=True)
class _Ask:
    """Queries of one request that are searched for in one way.

    Attributes:
        queries: as the pipeline takes them.
        k: results for each.
        rerank: as the pipeline takes it.
        where: filter, as JSON, so that equal ones can be found.
    """

    queries: tuple[Any, ...]
    k: int
    rerank: int | str | None
    where: str | None

    @property
    def way(self) -> tuple:
        return self.rerank, self.where


class SearchService:
    """Searches for many clients at once.

    Args:
        pipe: a retrieval pipeline with its gallery.
        options: limits and defaults.
        watch: is told the number of queries of every batch.
    """

    def __init__(self, pipe: Any, options: ServingOptions, watch: Callable[[int], None] = lambda size: None):
        self.pipe, self.options = pipe, options
        folder = Path(options.gallery) if options.gallery and Path(options.gallery).is_dir() else None
        # their names, and not where they lie: nobody's business either
        model = pipe.model.config.name_or_path or type(pipe.model).__name__
        self.model_name = Path(model).name if Path(model).exists() else model
        self.name = options.gallery.rstrip("/").rpartition("/")[2] or type(pipe.gallery).__name__
        self.gallery = ShownGallery(pipe.gallery, folder, tuple(options.photos))
        self.photos = PhotoReader(pipe.processor, options.max_pixels, options.max_upload_bytes)
        self.batcher = Batcher(self._run, options.max_batch, options.max_wait_ms / 1e3, options.max_waiting, watch)
        self._decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="ccrk-photos")
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="ccrk-lookups")
        self._fast = ExitStack()

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        # for as long as it serves: layers are taken over once, and what they keep is kept from request to request
        self._fast.enter_context(fast_inference(self.pipe.model))
        self.batcher.start()

    async def close(self) -> None:
        """Ends after what is being computed."""
        await self.batcher.close()
        self._decoding.shutdown(wait=True, cancel_futures=True)
        self._lookups.shutdown(wait=True, cancel_futures=True)
        self._fast.close()

    # --- what can be asked --------------------------------------------------------------------------------------

    async def search(
        self, queries: list[Any], k: int, where: Mapping | None = None, rerank: int | str | None = None
    ) -> list[list[dict[str, Any]]]:
        """Items found for each query, best first.

        Args:
            queries: texts, photos (PIL, from `open_photo`), or `{"image": ..., "text": ..., "weight": ...}`.
            k: results for each.
            where: filter.
            rerank: "auto", "off", a number of candidates, or None for the service's default.

        Raises:
            RequestError: if something of it is wrong or beyond the limits.
            OverloadedError: if there is too much to do, or it took too long.
        """
        self._check_count("queries", len(queries), self.options.max_queries)
        for number, query in enumerate(queries):
            self._check_text(query, "the query" if len(queries) == 1 else f"query {number}")
        self._check_count("k", k, self.options.max_k)
        kinds = {"text" if isinstance(q, str) else "both" if isinstance(q, dict) else "image" for q in queries}
        ask = _Ask(tuple(queries), k, self._checked_rerank(rerank, kinds), self._checked_where(where))
        return await self._in_time(self.batcher.submit(ask, len(queries)))

    async def similar(self, item: str, k: int, where: Mapping | None = None) -> list[dict[str, Any]]:
        """The items nearest to one of the gallery, which is itself left out. It takes no model, and waits for none.

        Raises:
            KeyError: if there is no such item.
            RequestError, OverloadedError: as `search`.
        """
        self._check_count("k", k, self.options.max_k)
        self._checked_where(where)
        return await self._in(self._lookups, self._similar, item, k, where or None)

    async def compare(
        self,
        queries: Mapping[str, str],
        k: int,
        depth: int | None = None,
        where: Mapping | None = None,
        rerank: int | str | None = None,
    ) -> dict[str, Any]:
        """One query in several languages: what each finds, and how far they agree.

        The items that any language has among its first k are looked up among the first `depth` of all.

        Args:
            queries: language -> text.
            k: results for each.
            depth: five times k by default.
            where: filter.
            rerank: see `search`.

        Returns:
            Fields of `CompareResponse`.

        Raises:
            RequestError, OverloadedError: as `search`.
        """
        if not 2 <= len(queries) <= MAX_LANGUAGES:
            raise RequestError(f"{len(queries)} languages are given; a comparison takes 2 to {MAX_LANGUAGES}")
        self._check_count("k", k, self.options.max_k)
        depth = min(DEPTH * k, self.options.max_k) if depth is None else depth
        self._check_count("depth", depth, self.options.max_k)
        if depth < k:
            raise RequestError(f"depth is {depth}, less than the {k} results that are compared")
        found = await self.search(list(queries.values()), depth, where, rerank)
        rows = dict(zip(queries, found, strict=True))
        languages = [
            {"language": language, "query": queries[language], "hits": row[:k]} for language, row in rows.items()
        ]
        return {"languages": languages, "k": k, **_agreement(rows, k, depth)}

    async def entry(self, item: str) -> dict[str, Any]:
        """What is known of an item.

        Raises:
            KeyError: if there is none of this id.
        """
        return self.gallery.shown(await self._in(self._lookups, self.gallery.entry, item))

    async def count(self) -> int:
        """Items in the gallery."""
        return await self._in(self._lookups, len, self.gallery)

    async def thumbnail(self, item: str, side: int) -> bytes:
        """The photo of an item as a JPEG file of at most `side` pixels.

        Raises:
            KeyError, LookupError: if there is none to show.
            PhotoError: if it cannot be read.
        """
        side = max(1, min(side, MAX_SIDE))
        path = await self._in(self._lookups, self.gallery.photo, item)
        return await self._in(self._decoding, self.photos.thumbnail, path, side, f"the photo of '{item}'")

    async def open_photo(self, file: BinaryIO) -> PIL.Image.Image:
        """A photo that is searched with, opened within the limits and brought to the model's size.

        Raises:
            PhotoError: if it cannot be taken.
        """
        return await self._in(self._decoding, self.photos.open_query, file)

    # --- checks -------------------------------------------------------------------------------------------------

    @staticmethod
    def _check_count(name: str, value: int, most: int) -> None:
        if not 1 <= value <= most:
            raise RequestError(f"{name}: {value} is out of range; it is 1 to {most}")

    def _check_text(self, query: Any, name: str) -> None:
        text = query.get("text") if isinstance(query, dict) else query
        if not isinstance(text, str):
            return
        if len(text) > self.options.max_text_chars:
            raise RequestError(f"{name} has {len(text)} characters; at most {self.options.max_text_chars} are taken")
        try:
            text.encode()
            self.pipe.processor.prepare_text(text, name)
        except UnicodeEncodeError:
            raise RequestError(f"{name} is no valid Unicode text") from None
        except ValueError as error:
            raise RequestError(str(error)) from error

    def _checked_where(self, where: Mapping | None) -> str | None:
        if not where:
            return None
        try:
            self.gallery.check_where(where)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return json.dumps(where, sort_keys=True)

    def _checked_rerank(self, rerank: int | str | None, kinds: set[str]) -> int | str | None:
        rerank = self.options.rerank if rerank is None else rerank
        if rerank in (None, "off"):
            return None
        if rerank == "auto":
            return rerank
        self._check_count("rerank", rerank, self.options.max_rerank)
        try:
            self.pipe._check_search(kinds, rerank, None)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return rerank

    # --- work ---------------------------------------------------------------------------------------------------

    async def _in(self, threads: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
        return await self._in_time(asyncio.get_running_loop().run_in_executor(threads, function, *args))

    async def _in_time(self, answer: Awaitable) -> Any:
        try:
            async with asyncio.timeout(self.options.request_timeout):
                return await answer
        except TimeoutError:
            raise OverloadedError(f"there was no answer within {self.options.request_timeout:g} s") from None

    def _similar(self, item: str, k: int, where: Mapping | None) -> list[dict[str, Any]]:
        return [self.gallery.shown(row) for row in self.gallery.similar(item, k, where)]

    def _run(self, asks: list[_Ask]) -> list[Any]:
        """In the model's thread: the answers to several requests, those that are searched alike in one go."""
        answers: list[Any] = [None] * len(asks)
        groups: dict[tuple, list[int]] = {}
        for number, ask in enumerate(asks):
            groups.setdefault(ask.way, []).append(number)
        for (rerank, where), numbers in groups.items():
            group = [asks[number] for number in numbers]
            queries = [query for ask in group for query in ask.queries]
            conditions = None if where is None else json.loads(where)
            # a shorter list of results is the beginning of a longer one
            found = self.pipe(queries, top_k=max(ask.k for ask in group), rerank=rerank, where=conditions)
            rows = iter(found)
            for number, ask in zip(numbers, group, strict=True):
                answers[number] = [[self.gallery.shown(row) for row in next(rows)[: ask.k]] for _ in ask.queries]
        return answers


def _agreement(rows: Mapping[str, list[dict[str, Any]]], k: int, depth: int) -> dict[str, Any]:
    """Figures on how far result lists agree; see `CompareResponse`."""
    places = {tag: {row["id"]: place for place, row in enumerate(found)} for tag, found in rows.items()}
    items = list(dict.fromkeys(row["id"] for found in rows.values() for row in found[:k]))
    if not items:
        nothing = {"mrv": 0.0, "variance": 0.0, "mad": 0.0, "missed": 0, "agreement": 1.0}
        return {"depth": depth, **nothing, "overlap": {}, "items": []}
    # a list that ends before `depth` names all there is, so only a filter or few items make it short
    depth = min(depth, max(map(len, rows.values())))
    ranks = [{tag: places[tag].get(item) for tag in rows} for item in items]
    figures = mean_rank_variance(ranks, misses="rank_k", top_k=depth)
    table = torch.tensor([[depth if r is None else r for r in row.values()] for row in ranks]).numpy().astype(float)
    spreads = rank_variation(table)["std"]
    shortest = max(1, min(k, *map(len, rows.values())))
    lists = {tag: [[row["id"] for row in found] or [None]] for tag, found in rows.items()}
    tags, matrix = agreement(lists, shortest)
    pairs = [matrix[i][j] for i in range(len(tags)) for j in range(i)]
    shown = [
        {
            "id": item,
            "ranks": row,
            "best": min(rank for rank in row.values() if rank is not None),
            "worst": None if None in row.values() else max(rank for rank in row.values() if rank is not None),
            "std": float(std),
        }
        for item, row, std in zip(items, ranks, spreads, strict=True)
    ]
    return {
        "depth": depth,
        "mrv": figures["mrv"],
        "variance": figures["variance"],
        "mad": figures["mad"],
        "missed": figures["missed"],
        "agreement": math.fsum(pairs) / len(pairs),
        "overlap": {tag: dict(zip(tags, map(float, row), strict=True)) for tag, row in zip(tags, matrix, strict=True)},
        "items": sorted(shown, key=lambda one: -one["std"]),
    }


def milliseconds_since(start: float) -> float:
    """Time gone by since `time.perf_counter()` gave `start`."""
    return round(1e3 * (time.perf_counter() - start), 3)


__all__ = ["RequestError", "SearchService"]
