"""The pipeline `ccr-retrieval`: photos found by captions, captions by photos.

One file that needs nothing else of its package, because the Hub gets a copy of it as remote code. It works through
the model and the processor that it is given.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import PIL.Image
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

TASK = "ccr-retrieval"
DEFAULT_MODEL = ("org/ccrk", "main")

PHOTO_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
RERANK_SCORES = ("itm+sim", "itm", "sim")
RESULT_KEYS = ("score", "similarity", "match")  # what a column of a data set may not be called

SCALARS = (str, bool, int, float, types.NoneType)

PROGRESS_FROM = 65  # items; a shorter wait needs no bar
AUTO_RERANK = 32  # candidates that rerank="auto" takes
STATE_CACHE_BYTES = 256 * 2**20  # image states kept for re-ranking; 2.4 MB an image at the paper's size
# exact search: what is taken at once, so that it stays in a processor's cache
QUERIES_AT_ONCE = 128
ROWS_AT_ONCE = 2**13
SIMILARITIES_AT_ONCE = 2**21  # 8 MB
FEW_QUERIES = 32
PIECE = 1024  # rows
GROUP = 64  # similarities

# The same folder for sentence-transformers, whose own module for transformers' models does the work: what it calls for
# texts, photos and pairs of both, in files that it reads. A key with a plus is a dict that has both.
_FEATURES = {"text": "get_text_features", "image": "get_image_features", "image+text": "get_joint_features"}
_FEATURES["text+image"] = _FEATURES["image+text"]
SENTENCE_TRANSFORMER: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            kind: {"method": method, "method_output_name": "pooler_output"} for kind, method in _FEATURES.items()
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": {},
        "default_prompt_name": None,
    },
}

QUERY_KINDS = (
    'a text (str or {"text": ...}), a photo (PIL.Image, Path or {"image": ...}) or both ({"image": ..., "text": ...})'
)
GALLERY_KINDS = (
    "a folder of photos (str or Path), a list of photos (PIL.Image or Path), a list of captions (str), "
    "a datasets.Dataset with an 'image' column, or an index with search(vectors, k)"
)


@runtime_checkable
class RetrievalIndex(Protocol):
    """What a gallery has to offer: `search`. Any object that has it can be a gallery.

    Three more members are used where an index has them: `modality` ("image" or "text"), what is in it;
    `entries(ids)`, a list of dicts that describe the rows in results (`id`, `path` or `text`, metadata); and
    `load(ids)`, the photos (PIL images or paths) or captions themselves. Re-ranking needs `modality` and `load`.
    `IndexGallery` of the package shows the others: `attach(model, processor)`, which may refuse a model; `columns`,
    with which `search` takes `where`; `state_keys(ids)`, `hidden_states(ids)`, `keep_states(ids, states)` and
    `has_states` for states of photos that are kept.
    """

    def search(self, vectors: torch.Tensor, k: int) -> list[tuple[list[Hashable], list[float]]]:
        """Finds the rows nearest to each query.

        Args:
            vectors: (N, D) float32 unit vectors on the CPU.
            k: rows wanted for each; all of them if there are fewer.

        Returns:
            For each query the ids of its rows and their cosine similarities, best first.
        """
        ...


@dataclass
class GallerySource:
    """Where the photos or captions of a gallery come from.

    Attributes:
        modality: "image" or "text".
        size: number of items, broken ones included.
        read: gives item i and the dict that describes it in results; raises if the item cannot be read.
        name: what to call item i in a message.
        skipped: (name, cause) of what could not be listed.
    """

    modality: str
    size: int
    read: Callable[[int], tuple[Any, dict[str, Any]]]
    name: Callable[[int], str]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class InMemoryGallery:
    """Exact search over vectors in memory; the reference implementation of [`RetrievalIndex`].

    Ids are rows of `vectors`. Equal similarities are ordered by row.

    Attributes:
        modality: "image" or "text".
        vectors: (N, D) float32 unit vectors.
        skipped: (name, cause) of every item that could not be read.
    """

    def __init__(self, source: GallerySource, rows: list[int], entries: list[dict], vectors: torch.Tensor):
        self.modality = source.modality
        self.vectors = vectors
        self.skipped = source.skipped
        self._source, self._rows, self._entries = source, rows, entries

    def __len__(self) -> int:
        return len(self.vectors)

    def entries(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Descriptions of rows: `id`, and `path`, `text` or metadata."""
        return [dict(self._entries[row]) for row in ids]

    def load(self, ids: Iterable[int]) -> list[Any]:
        """The photos (PIL images) or captions of rows, read anew."""
        return [self._source.read(self._rows[row])[0] for row in ids]

    def search(self, vectors: torch.Tensor, k: int) -> list[tuple[list[int], list[float]]]:
        """See [`RetrievalIndex.search`].

        Raises:
            ValueError: if the vectors do not have the length of the gallery's.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries of shape {tuple(vectors.shape)} for a gallery of {self.vectors.shape[1]}-dimensional vectors"
            )
        scores, rows = exact_search(self.vectors, vectors.to(self.vectors), k)
        return list(zip(rows.tolist(), scores.tolist(), strict=True))


@torch.no_grad()
def exact_search(
    vectors: torch.Tensor, queries: torch.Tensor, k: int, rows: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with the largest products with each query, equal ones by row.

    Args:
        vectors: (M, D).
        queries: (N, D) of the same type and device.
        k: rows wanted for each; all of them if there are fewer.
        rows: the rows to look at, in rising order; all of them by default.

    Returns:
        (N, min(k, M)) products, largest first, and the rows they are of.
    """
    if rows is not None:
        rows = torch.as_tensor(rows, dtype=torch.int64, device=vectors.device)
    size = len(vectors) if rows is None else len(rows)
    if not size or not len(queries):
        return queries.new_empty(len(queries), 0), torch.empty(
            len(queries), 0, dtype=torch.int64, device=queries.device
        )
    found = [_exact(vectors, some, k, rows) for some in queries.split(QUERIES_AT_ONCE)]
    scores, places = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return scores, places if rows is None else rows[places]


def _exact(
    vectors: torch.Tensor, queries: torch.Tensor, k: int, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products and places for as many queries as can be compared with a block at once."""
    scores, places = [], []
    for start, similarities in _similarities(vectors, queries, rows):
        # one more than is wanted, to see whether the last of all ties with one that is left out
        best, columns = _largest(similarities, k + 1)
        scores.append(best)
        places.append(columns + start)
    scores, places = torch.cat(scores, 1), torch.cat(places, 1)
    places, order = places.sort(dim=1)  # `topk` leaves the order of equal ones open
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    scores, places = scores[:, : k + 1], places.gather(1, order[:, : k + 1])
    if scores.shape[1] > k:
        tied = (scores[:, k - 1] == scores[:, k]).nonzero()[:, 0]
        scores, places = scores[:, :k], places[:, :k]
        for query in tied.tolist():  # rare, unless many photos are there twice
            scores[query], places[query] = _exact_tied(vectors, queries[query : query + 1], k, rows)
    return scores, places


def _similarities(
    vectors: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of the (N, M) products of queries and vectors, each with the place of its first column.

    A block lies in a buffer that the next one takes over.
    """
    few, count = len(queries), len(vectors) if rows is None else len(rows)
    # vectors that are picked out are copied, so these blocks stay small
    step = min(count, ROWS_AT_ONCE if rows is not None else max(ROWS_AT_ONCE, SIMILARITIES_AT_ONCE // few))
    buffer = queries.new_empty(few * step)
    for start in range(0, count, step):
        end = min(start + step, count)
        block = vectors[start:end] if rows is None else vectors[rows[start:end]]
        products = buffer[: few * len(block)]
        if few == 1:
            # a product with one vector reads memory at a third of its speed, and a batch of small ones at all of it
            whole = len(block) // PIECE * PIECE
            pieces, column = block[:whole].view(-1, PIECE, block.shape[1]), queries.t()
            torch.bmm(pieces, column.expand(len(pieces), -1, 1), out=products[:whole].view(-1, PIECE, 1))
            torch.mm(block[whole:], column, out=products[whole:].view(-1, 1))
        elif few <= FEW_QUERIES:  # the longer side in front is faster, for two queries five times
            torch.mm(block, queries.t(), out=products.view(-1, few))
            yield start, products.view(-1, few).t().contiguous()
            continue
        else:
            torch.mm(queries, block.t(), out=products.view(few, -1))
        yield start, products.view(few, -1)


def _largest(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of (N, M) and their columns, in any order; all of them if there are fewer."""
    size = similarities.shape[1]
    groups = size // GROUP
    if groups <= 4 * k:
        return similarities.topk(min(k, size), 1)
    # they lie in the k groups with the largest maxima: column c is of group c % groups, so maxima are of whole lines
    whole = groups * GROUP
    best = similarities[:, :whole].unflatten(1, (GROUP, groups)).amax(1).topk(k, 1).indices
    lines = torch.arange(0, whole, groups, device=best.device)
    rest = torch.arange(whole, size, device=best.device).expand(len(best), -1)
    columns = torch.cat([(best[:, :, None] + lines).flatten(1), rest], 1)
    scores, order = similarities.gather(1, columns).topk(k, 1)
    return scores, columns.gather(1, order)


def _exact_tied(
    vectors: torch.Tensor, query: torch.Tensor, k: int, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products and places for a query where the last place is to be given to one of several equal rows."""
    similarities = torch.cat([block[0].clone() for _, block in _similarities(vectors, query, rows)])
    places = (similarities >= similarities.topk(k).values[-1]).nonzero()[:, 0]
    scores, order = similarities[places].sort(dim=0, descending=True, stable=True)
    return scores[:k], places[order[:k]]


def resolve_index(gallery: Any) -> RetrievalIndex:
    """Makes a gallery of an index, or of the URI of one, by the installed package.

    Raises:
        ImportError: if the package is not installed.
        OSError, ValueError: if there is no such index.
    """
    try:
        from ccrk.pipelines.galleries import open_gallery
    except ImportError as error:
        raise ImportError(f"opening the gallery '{gallery}', an index, takes the package: pip install ccrk") from error
    return open_gallery(gallery)


def folder_source(folder: Path, open_image: Callable) -> GallerySource:
    """All photos in a folder and below it, sorted by path; hidden files are left out.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is no such folder.
        ValueError: if there is no photo in it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no gallery folder '{folder}'")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"the gallery '{folder}' is a file; give the folder that holds the photos, or a list of paths or captions"
        )
    skipped: list[tuple[str, str]] = []
    files = [
        Path(parent) / name
        for parent, _, names in os.walk(folder, onerror=lambda e: skipped.append((str(e.filename), str(e.strerror))))
        for name in names
    ]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    photos = sorted(file for file in files if file.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        causes = "".join(f"; {name}: {cause}" for name, cause in skipped)
        raise ValueError(
            f"the gallery folder '{folder}' holds no photos: none of its {len(files)} files ends in "
            f"{', '.join(PHOTO_SUFFIXES)}{causes}"
        )

    def read(row: int) -> tuple[Any, dict]:
        photo = photos[row]
        return open_image(photo), {"id": photo.relative_to(folder).as_posix(), "path": str(photo)}

    return GallerySource("image", len(photos), read, lambda row: str(photos[row]), skipped)


def photos_source(photos: list, open_image: Callable) -> GallerySource:
    """A list of PIL images, known by their position, and paths, known by themselves."""

    def read(row: int) -> tuple[Any, dict]:
        photo = photos[row]
        image = open_image(photo)
        return image, ({"id": row} if isinstance(photo, PIL.Image.Image) else {"id": str(photo), "path": str(photo)})

    def name(row: int) -> str:
        return f"photo {row}" if isinstance(photos[row], PIL.Image.Image) else str(photos[row])

    return GallerySource("image", len(photos), read, name)


def captions_source(captions: list[str], prepare_text: Callable) -> GallerySource:
    """A list of captions, known by their position."""

    def read(row: int) -> tuple[Any, dict]:
        prepare_text(captions[row])  # refuses an empty one
        return captions[row], {"id": row, "text": captions[row]}

    return GallerySource("text", len(captions), read, lambda row: f"caption {row}")


def dataset_source(dataset: Any, open_image: Callable) -> GallerySource:
    """The `image` column of a data set; ids from `image_id` or else `id`, other scalar columns are metadata.

    Raises:
        TypeError: if it is a stream.
        ValueError: if it has no `image` column, or one whose name results need themselves.
    """
    columns = list(dataset.column_names or ())
    if not hasattr(dataset, "__len__"):
        raise TypeError("the gallery is a streaming data set, and a gallery has to be read again: load it in full")
    if "image" not in columns:
        raise ValueError(f"the gallery's data set has no column 'image' (its columns: {', '.join(columns) or 'none'})")
    taken = [name for name in columns if name in RESULT_KEYS]
    if taken:
        raise ValueError(f"the gallery's data set has a column '{taken[0]}', as results have: rename or remove it")
    dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    id_column = next((name for name in ("image_id", "id") if name in columns), None)

    def read(row: int) -> tuple[Any, dict]:
        item = dataset[row]
        entry = {"id": row if id_column is None else _plain(item[id_column])}
        for name, value in item.items():
            if name not in ("image", "id", id_column) and isinstance(value, SCALARS):
                entry[name] = _plain(value)
        return open_image(_photo_of(item["image"])), entry

    return GallerySource("image", len(dataset), read, lambda row: f"row {row}")


def _photo_of(value: Any) -> Any:
    """A photo in any of the forms in which a data set hands it out, as `open_image` takes it."""
    if isinstance(value, dict):
        value = BytesIO(value["bytes"]) if value.get("bytes") else value.get("path")
    if value is None:
        raise ValueError("there is no image")
    return PIL.Image.open(value) if isinstance(value, BytesIO) else value


def _plain(value: Any) -> Any:
    """A value that JSON has a word for: NaN becomes None, and what is no scalar a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, SCALARS) else str(value)


@dataclass
class Query:
    """One query: its place in the list; "text", "image" or "both"; text, photo, or (photo, text, weight)."""

    number: int
    modality: str
    content: Any


@dataclass
class Found:
    """One row found: its id in the index and its scores, of which `match` is the probability of a match."""

    id: Hashable
    score: float
    similarity: float
    match: float | None = None


class CCRkRetrievalPipeline(Pipeline):
    """Searches a gallery of photos by text, a gallery of captions by photo, or either by its own kind.

    ```python
    search = pipeline("ccr-retrieval", model="org/ccrk", gallery="photos/")
    search("ein Hund im Schnee", top_k=5)
    search(["a dog in snow", Path("dog.jpg")], top_k=5)
    ```

    Args:
        model: a `CCRkModel` or a `CCRkForPreTraining`.
        processor: a `CCRkProcessor`.
        gallery: a folder of photos (str or Path), a list of photos (PIL images or Paths), a list of captions (str),
            a `datasets.Dataset` with an `image` column, the URI of an index, or a [`RetrievalIndex`]. Photos and
            captions are embedded at once; what cannot be read is skipped, with a warning, and listed in
            `pipe.gallery.skipped`.
        batch_size: photos or texts in one pass; 32 by default.
        **kwargs: `top_k`, `rerank`, `rerank_score`, `where`, which become the defaults of calls (see `__call__`), and
            the arguments of `transformers.Pipeline`.

    Raises:
        OSError, TypeError, ValueError: if the gallery is missing, empty or none at all, or the model gives no numbers.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False  # left open, `pipeline()` would look for one and ask for trust

    def __init__(self, model, processor=None, *args, gallery: Any = None, batch_size: int = 32, **kwargs):
        self.gallery: RetrievalIndex | None = None
        self._states: OrderedDict[Hashable, Any] = OrderedDict()
        if processor is None:
            raise ValueError(
                "the pipeline has no processor: pass processor=CCRkProcessor(...), or name the model by its folder "
                "or Hub id"
            )
        kwargs["processor"] = processor
        super().__init__(model, *args, batch_size=_whole("batch_size", batch_size), **kwargs)
        self.model.eval()
        if gallery is not None:
            self.set_gallery(gallery)

    @property
    def retriever(self):
        """The `CCRkModel`, also where the model is a `CCRkForPreTraining` around it."""
        return getattr(self.model, "retriever", self.model)

    def get_inference_context(self):
        """Inference mode, for every pass through the model."""
        return torch.inference_mode

    def set_gallery(self, gallery: Any, batch_size: int | None = None) -> None:
        """Replaces the gallery and embeds it.

        Args:
            gallery: see the class.
            batch_size: photos or captions in one pass.

        Raises:
            OSError, TypeError, ValueError: as the class says; the gallery of before then stays.
        """
        opened = self._open_gallery(gallery)
        if isinstance(opened, GallerySource):
            opened = self._embed_source(
                opened, _whole("batch_size", self._batch_size if batch_size is None else batch_size)
            )
        if hasattr(opened, "attach"):
            opened.attach(self.model, self.processor)
        self.gallery = opened
        self._states.clear()

    def _open_gallery(self, gallery: Any) -> GallerySource | RetrievalIndex:
        open_image = self.processor.image_processor.open_image
        if isinstance(gallery, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|memory:", gallery):
            return resolve_index(gallery)
        if isinstance(gallery, (str, os.PathLike)):
            return folder_source(Path(gallery), open_image)
        if hasattr(gallery, "column_names"):  # before the index, since a data set has a `search` of its own
            return dataset_source(gallery, open_image)
        if isinstance(gallery, RetrievalIndex):
            return resolve_index(gallery) if hasattr(gallery, "fingerprint") else gallery
        if not isinstance(gallery, (list, tuple)):
            raise TypeError(f"the gallery is of type {type(gallery).__name__}; it can be {GALLERY_KINDS}")
        if not gallery:
            raise ValueError("the gallery is an empty list; give at least one photo or caption")
        text = isinstance(gallery[0], str)
        kinds = str if text else (PIL.Image.Image, os.PathLike)
        for number, item in enumerate(gallery):
            if not isinstance(item, kinds):
                raise TypeError(
                    f"item {number} of the gallery is of type {type(item).__name__}, in a list of "
                    f"{'captions' if text else 'photos'}: give either captions (str) or photos (PIL.Image or Path; "
                    "a path as a str is a caption)"
                )
        return (
            captions_source(list(gallery), self.processor.prepare_text)
            if text
            else photos_source(list(gallery), open_image)
        )

    def _embed_source(self, source: GallerySource, batch_size: int) -> InMemoryGallery:
        rows, entries, vectors, batch = [], [], [], []

        for row, content, entry in self._read_source(source):
            rows.append(row)
            entries.append(entry)
            batch.append(self.prepare(source.modality, content))
            if len(batch) == batch_size:
                vectors.append(self.encode(source.modality, batch)[0])
                batch = []
        if batch:
            vectors.append(self.encode(source.modality, batch)[0])
        if source.skipped:
            causes = "; ".join(f"{name}: {cause}" for name, cause in source.skipped[:10])
            more = f"; and {len(source.skipped) - 10} more" if len(source.skipped) > 10 else ""
            summary = f"{len(source.skipped)} of the gallery could not be read: {causes}{more}"
            if not rows:
                raise ValueError(f"nothing in the gallery can be read. {summary}")
            warnings.warn(f"{summary}. They are left out (see pipe.gallery.skipped)", stacklevel=4)
        if not rows:
            raise ValueError("the gallery is empty; give at least one photo or caption")
        return InMemoryGallery(source, rows, entries, torch.cat(vectors))

    @staticmethod
    def _read_source(source: GallerySource) -> Iterator[tuple[int, Any, dict]]:
        show = source.size >= PROGRESS_FROM and sys.stderr.isatty()
        for row in tqdm(range(source.size), desc="gallery", unit=source.modality, disable=not show):
            try:
                content, entry = source.read(row)
            except (OSError, ValueError, SyntaxError, KeyError) as error:  # Pillow's decoders raise each of these
                source.skipped.append((source.name(row), str(error) or type(error).__name__))
            else:
                yield row, content, entry

    def _inputs(self, modality: str, contents: list) -> dict[str, torch.Tensor]:
        name = "images" if modality == "image" else "text"
        return dict(self.processor(**{name: contents}, return_tensors="pt"))

    def prepare(self, modality: str, content: Any) -> Any:
        """A photo as pixels (3, H, W), which take less memory than the photo; a text as it is."""
        return self._inputs(modality, [content])["pixel_values"][0] if modality == "image" else content

    def encode(self, modality: str, contents: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeds photos or texts as a gallery holds them.

        Args:
            modality: "image" or "text".
            contents: from `prepare`; one pass through the model.

        Returns:
            Unit vectors (N, D), float32 on the CPU, and the tokens of the tower (N, ., width), where they are.
        """
        inputs = {"pixel_values": torch.stack(contents)} if modality == "image" else self._inputs("text", contents)
        with torch.inference_mode(), self.device_placement():
            vectors, hidden_states, _ = self._embed(inputs, modality, "the gallery")
            return vectors.cpu(), hidden_states

    def _embed(self, inputs: dict[str, torch.Tensor], modality: str, whose: str) -> tuple[torch.Tensor, ...]:
        """Unit vectors (N, D) in float32, tokens of the tower (N, ., width), attention mask of texts."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if modality == "image":
            output = self.model.get_image_features(inputs["pixel_values"].to(self.model.dtype))
        else:
            output = self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        vectors = normalize(output.pooler_output.float(), dim=-1)
        self._refuse_nan(vectors, f"embeddings of {whose}")
        return vectors, output.last_hidden_state, inputs.get("attention_mask")

    def _refuse_nan(self, values: torch.Tensor, what: str) -> None:
        if torch.isfinite(values).all():
            return
        broken = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        cause = (
            f"{len(broken)} of its weights hold NaN or infinity, '{broken[0]}' among them"
            if broken
            else f"its weights are finite, so the computation in {self.model.dtype} overflows; load it in float32"
        )
        name = self.model.config.name_or_path or type(self.model).__name__
        raise ValueError(f"the model '{name}' gives NaN or infinity as {what}: {cause}")

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        rerank: int | str | None = None,
        rerank_score: str | None = None,
        where: dict | None = None,
        **unknown,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(
                f"'{next(iter(unknown))}' is no option of the pipeline; it has gallery, top_k, rerank, rerank_score, "
                "where and batch_size"
            )
        options: dict[str, Any] = {}
        if top_k is not None:
            options["top_k"] = _whole("top_k", top_k)
        if rerank is not None:
            options["rerank"] = rerank if rerank == "auto" else _whole("rerank", rerank)
        if where is not None:
            options["where"] = where
        if rerank_score is not None:
            if rerank_score not in RERANK_SCORES:
                raise ValueError(f"rerank_score is {rerank_score!r}; it is one of {', '.join(RERANK_SCORES)}")
            options["rerank_score"] = rerank_score
        return {}, options, {"top_k": options["top_k"]} if "top_k" in options else {}

    def __call__(
        self,
        inputs: Any,
        *,
        gallery: Any = None,
        top_k: int | None = None,
        rerank: int | str | None = None,
        rerank_score: str | None = None,
        where: dict | None = None,
        batch_size: int | None = None,
    ) -> list:
        """Searches the gallery.

        Args:
            inputs: a query or a list of queries. A `str` or `{"text": ...}` is a text; a `PIL.Image`, a `Path` or
                `{"image": ...}` is a photo. `{"image": ..., "text": ..., "weight": 0.5}` is both: the sum of the two
                vectors, the text's times the weight (from 0 to 1; 0.5 by default), the photo's times the rest.
            gallery: replaces the gallery, for later calls too; see the class.
            top_k: results for each query; 10 by default, the whole gallery if that has fewer.
            rerank: lets the fusion encoder score the best so many anew. It reads a text together with a photo, so
                texts must meet photos. Rows beyond them follow in the order of their similarity. "auto" takes 32
                where they are affordable, see `_auto_rerank`, and none elsewhere.
            rerank_score: what orders the re-ranked: "itm", the logit of a match; "sim", the cosine similarity; or
                "itm+sim" (default), the log-odds of a match plus the cosine divided by the model's temperature.
            where: filter on the metadata of an index: column -> a value, a list of values, or
                `{"min": ..., "max": ...}`; all have to hold. See `ccrk.pipelines.index.parse_where`.
            batch_size: queries, or pairs when re-ranking, in one pass.

        Returns:
            A list of dicts, best first (equal scores by position in the gallery); for a list of queries a list of
            these. Each has `id`, `score` (the cosine similarity, or the score by which it was re-ranked) and what is
            known of the item (`path`, `text` or metadata). With `rerank` also `similarity`, the cosine, and `match`,
            the probability of a match: None for rows that were not re-ranked, whose `score` is their similarity.

        Raises:
            OSError, TypeError, ValueError: saying which query, option or gallery is at fault, and why.
        """
        _, searching, describing = self._sanitize_parameters(top_k, rerank, rerank_score, where)
        size = _whole("batch_size", self._batch_size if batch_size is None else batch_size)
        searching = {**self._forward_params, **searching, "batch_size": size}
        describing = {**self._postprocess_params, **describing}
        many = isinstance(inputs, (list, tuple, types.GeneratorType, torch.utils.data.Dataset))
        raw = list(inputs) if many else [inputs]
        kinds = [self._parse(query, f"query {n}" if many else "the query") for n, query in enumerate(raw)]
        if gallery is not None:
            self.set_gallery(gallery, batch_size)
        if self.gallery is None:
            raise ValueError(f"there is no gallery to search: pass gallery=..., {GALLERY_KINDS}")
        self._check_search({modality for modality, _ in kinds}, searching.get("rerank"), searching.get("where"))

        results: list[Any] = [None] * len(raw)
        for modality in ("text", "image", "both"):
            options = dict(searching)
            if options.get("rerank") == "auto":
                options["rerank"] = self._auto_rerank(modality)
            numbers = [n for n, kind in enumerate(kinds) if kind[0] == modality]
            if modality == "text":  # texts of like length are padded least
                numbers.sort(key=lambda n: len(kinds[n][1]))
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                queries = [Query(n, *kinds[n]) for n in part]
                answers = self.run_single(queries, {"many": many}, options, describing)
                for number, answer in zip(part, answers, strict=True):
                    results[number] = answer
        return results if many else results[0]

    def _parse(self, query: Any, name: str) -> tuple[str, Any]:
        """Modality and content of a query; a photo is not opened yet."""
        if isinstance(query, dict):
            modality, content = self._parse_dict(query, name)
        elif isinstance(query, str):
            modality, content = "text", query
            if content.lower().endswith(PHOTO_SUFFIXES) and os.path.isfile(content):
                warnings.warn(f"{name} is taken as the text {content!r}; for that photo pass a Path", stacklevel=3)
        elif _is_photo(query):
            modality, content = "image", query
        else:
            raise TypeError(f"{name} is of type {type(query).__name__}; a query is {QUERY_KINDS}")
        if modality != "image":  # refuses an empty one, by its name
            self.processor.prepare_text(content if modality == "text" else content[1], name)
        return modality, content

    @staticmethod
    def _parse_dict(query: dict, name: str) -> tuple[str, Any]:
        parts = query.keys() & {"text", "image"}
        if not parts or query.keys() - {"text", "image"} - ({"weight"} if len(parts) == 2 else set()):
            keys = ", ".join(map(repr, query)) or "none"
            raise ValueError(
                f'{name} is a dict with the keys {keys}; give {{"text": ...}}, {{"image": ...}}, or both, then with a '
                '"weight" if you like'
            )
        for modality in sorted(parts):
            content = query[modality]
            if not (isinstance(content, str) or (modality == "image" and _is_photo(content))):
                raise TypeError(f"{name} has a {type(content).__name__} as {modality}; a query is {QUERY_KINDS}")
        if len(parts) == 1:
            return modality, content
        weight = query.get("weight", 0.5)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise ValueError(f"{name} has the weight {weight!r}; it is a number from 0 (the photo) to 1 (the text)")
        return "both", (query["image"], query["text"], float(weight))

    def _auto_rerank(self, modality: str) -> int | None:
        """What `rerank="auto"` stands for: 32 if all of this holds, and no re-ranking if not.

        Texts meet photos, in either direction, and the gallery can hand them out. The model was trained to match them
        (`matching_weight` of its configuration is above 0). And they are affordable: the gallery holds texts, or
        keeps states for nine tenths of its photos, or the model is not on a CPU.
        """
        held, config = getattr(self.gallery, "modality", None), self.retriever.config
        meets = {modality, held} == {"text", "image"} and hasattr(self.gallery, "load")
        trained = hasattr(self.model, "match") and getattr(config, "matching_weight", 1) > 0
        cheap = held == "text" or getattr(self.gallery, "has_states", False) or self.model.device.type != "cpu"
        return AUTO_RERANK if meets and trained and cheap else None

    def _check_search(self, modalities: set[str], rerank: int | str | None, where: dict | None) -> None:
        if where is not None and not hasattr(self.gallery, "columns"):
            raise ValueError(
                f"a filter (where={where!r}) needs an index with columns, which this gallery "
                f"({type(self.gallery).__name__}) is not: `ccrk index` makes one"
            )
        if rerank in (None, "auto"):
            return
        held = getattr(self.gallery, "modality", None)
        if held not in ("image", "text") or not hasattr(self.gallery, "load"):
            raise ValueError(
                f"rerank={rerank} needs the photos or captions themselves, and the index "
                f"{type(self.gallery).__name__} cannot give them: it lacks `modality` or `load(ids)`"
            )
        if "both" in modalities:
            raise ValueError(
                f"rerank={rerank} with a query of a photo and a text: the fusion encoder scores a photo against a "
                "text, and not against both. Leave rerank out to compare by embeddings"
            )
        if held in modalities:
            raise ValueError(
                f"rerank={rerank} with a query of the gallery's own kind ({held}): the fusion encoder scores a photo "
                "against a text. Leave rerank out to compare by embeddings"
            )
        if not hasattr(self.model, "match"):
            raise ValueError(f"rerank={rerank} needs a fusion encoder, and {type(self.model).__name__} has no `match`")

    def preprocess(self, input_: list[Query], many: bool = True) -> dict[str, Any]:
        """Opens and prepares a batch of queries of one modality."""
        modality = input_[0].modality
        if modality == "text":
            return {"modality": modality, **self._inputs("text", [query.content for query in input_])}
        names = [f"query {query.number}" if many else "the query" for query in input_]
        photos = [query.content if modality == "image" else query.content[0] for query in input_]
        inputs = self._inputs("image", [self._open_query(*pair) for pair in zip(photos, names, strict=True)])
        if modality == "both":
            inputs |= self._inputs("text", [query.content[1] for query in input_])
            inputs["weights"] = torch.tensor([[query.content[2]] for query in input_])
        return {"modality": modality, **inputs}

    def _open_query(self, photo: Any, name: str) -> PIL.Image.Image:
        try:
            return self.processor.image_processor.open_image(photo)
        except (OSError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{name}: {error}") from error

    def _forward(
        self,
        input_tensors: dict[str, Any],
        top_k: int = 10,
        rerank: int | None = None,
        rerank_score: str = "itm+sim",
        where: dict | None = None,
        batch_size: int = 32,
    ) -> list[list[Found]]:
        modality = input_tensors.pop("modality")
        if modality == "both":
            weights = input_tensors.pop("weights").to(self.model.device)
            photos, *_ = self._embed({"pixel_values": input_tensors.pop("pixel_values")}, "image", "the query")
            texts, *_ = self._embed(input_tensors, "text", "the query")
            vectors = normalize((1 - weights) * photos + weights * texts, dim=-1)
        else:
            vectors, hidden_states, mask = self._embed(input_tensors, modality, "the query")
        filtered = {} if where is None else {"where": where}
        hits = self.gallery.search(vectors.cpu(), max(top_k, rerank or 0), **filtered)
        found = [[Found(i, s, s) for i, s in zip(ids, map(float, scores), strict=True)] for ids, scores in hits]
        if len(found) != len(vectors):
            raise ValueError(f"the index answered {len(found)} queries of {len(vectors)}")
        if rerank is not None:
            self._rescore([row[:rerank] for row in found], modality, hidden_states, mask, rerank_score, batch_size)
            for row in found:
                # sorting is stable: of equal scores the more similar stays in front, and of these the earlier
                row[:rerank] = sorted(row[:rerank], key=lambda item: (item.match is None, -item.score))
        return found

    def _rescore(
        self, found: list[list[Found]], modality: str, hidden_states, mask, rerank_score: str, batch_size: int
    ) -> None:
        """Sets score and match of the rows found for each query, a batch of distinct gallery items at a time."""
        askers: dict[Hashable, list[tuple[int, Found]]] = {}
        for query, row in enumerate(found):
            for item in row:
                askers.setdefault(item.id, []).append((query, item))
        ids = list(askers)
        states = self.retriever.get_image_states(image_hidden_states=hidden_states) if modality == "image" else None
        temperature = float(self.retriever.temperature)
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            if modality == "text":
                part, states = self._gallery_states(part)
            asked = [(query, row, item) for row, i in enumerate(part) for query, item in askers[i]]
            if not asked:
                continue
            if modality == "text":
                pairs = [(row, query) for query, row, _ in asked]
            else:
                pairs = [(query, row) for query, row, _ in asked]
                texts = self._inputs("text", self.gallery.load(part))
                _, hidden_states, mask = self._embed(texts, "text", "the gallery")
            logits = self.model.match(
                image_states=states,
                text_hidden_states=hidden_states,
                attention_mask=mask,
                pairs=torch.tensor(pairs),
                batch_size=batch_size,
            ).float()
            self._refuse_nan(logits, "matching logits")
            for (_, _, item), (no, yes), match in zip(
                asked, logits.tolist(), logits.softmax(-1)[:, 1].tolist(), strict=True
            ):
                item.match = match
                item.score = {
                    "itm": yes,
                    "sim": item.similarity,
                    "itm+sim": yes - no + item.similarity / temperature,
                }[rerank_score]

    def _gallery_states(self, ids: list[Hashable]) -> tuple[list[Hashable], Any]:
        """Image states of gallery items, computed where they are not kept from an earlier search.

        Returns:
            The items, without those whose photos cannot be read any more, and their states.
        """
        names = self.gallery.state_keys(ids) if hasattr(self.gallery, "state_keys") else ids
        keys = dict(zip(ids, names, strict=True))
        known = {key: self._states[key] for key in keys.values() if key in self._states}
        hidden_states = self._hidden_states([i for i in ids if keys[i] not in known])
        if hidden_states:
            device, dtype = self.model.device, self.model.dtype
            stacked = torch.stack([state.to(device, dtype) for state in hidden_states.values()])
            states = self.retriever.get_image_states(image_hidden_states=stacked)
            for number, i in enumerate(hidden_states):
                known[keys[i]] = states.select(torch.tensor([number], device=device))
        ids = [i for i in ids if keys[i] in known]
        if not ids:
            return ids, None
        for i in ids:
            self._states[keys[i]] = known[keys[i]]
            self._states.move_to_end(keys[i])
        one = known[keys[ids[0]]]
        each = sum(tensor.nbytes for tensor in (*one.keys, *one.values))
        while len(self._states) * each > STATE_CACHE_BYTES:
            self._states.popitem(last=False)
        return ids, type(one).cat([known[keys[i]] for i in ids])

    def _hidden_states(self, ids: list[Hashable]) -> dict[Hashable, torch.Tensor]:
        """Tokens (1 + P, width) of the photos that can be read: those that the gallery keeps, or computed."""
        if not ids:
            return {}
        kept = self.gallery.hidden_states(ids) if hasattr(self.gallery, "hidden_states") else [None] * len(ids)
        found = {i: state for i, state in zip(ids, kept, strict=True) if state is not None}
        missing, pixels, causes = [i for i in ids if i not in found], {}, []
        for i in missing:
            try:
                (photo,) = self.gallery.load([i])
                if photo is None:
                    raise ValueError(f"the gallery cannot hand out '{i}'")
                pixels[i] = self.prepare("image", self.processor.image_processor.open_image(photo))
            except (OSError, ValueError) as error:
                causes.append(str(error))
        if causes:
            more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
            warnings.warn(f"not re-ranked, and put behind what is: {causes[0]}{more}", stacklevel=2)
        if pixels:
            batch = torch.stack(list(pixels.values())).to(self.model.device, self.model.dtype)
            states = self.retriever.vision_model(batch)
            if hasattr(self.gallery, "keep_states"):
                self.gallery.keep_states(list(pixels), states)
            found |= dict(zip(pixels, states, strict=True))
        return found

    def postprocess(self, model_outputs: list[list[Found]], top_k: int = 10) -> list[list[dict[str, Any]]]:
        """Results as plain dicts."""
        return [self._describe(found[:top_k]) for found in model_outputs]

    def _describe(self, found: list[Found]) -> list[dict[str, Any]]:
        ids = [item.id for item in found]
        entries = self.gallery.entries(ids) if hasattr(self.gallery, "entries") else [{"id": i} for i in ids]
        reranked = any(item.match is not None for item in found)
        results = []
        for item, entry in zip(found, entries, strict=True):
            scores = {"similarity": item.similarity, "match": item.match} if reranked else {}
            results.append({"id": item.id, **entry, "score": item.score, **scores})
        return results

    @classmethod
    def custom_pipelines(cls) -> dict[str, dict]:
        """What a model's configuration says of this pipeline, so that it can be found beside the weights."""
        module = Path(sys.modules[cls.__module__].__file__).stem
        return {
            TASK: {
                "impl": f"{module}.{cls.__name__}",
                "pt": ["AutoModel"],
                "default": {"model": list(DEFAULT_MODEL)},
                "type": "multimodal",
            }
        }

    @classmethod
    def files_beside(cls, folder: str | os.PathLike) -> dict[str, bytes]:
        """What a saved model needs beside it to be loaded with this pipeline by those who have no package.

        Args:
            folder: of a model saved by `save_pretrained`; it is only read.

        Returns:
            Name -> content: this file, `config.json` with the pipeline named in it, and what sentence-transformers
            reads.
        """
        file = Path(sys.modules[cls.__module__].__file__)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        config["custom_pipelines"] = cls.custom_pipelines()
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        return {file.name: file.read_bytes(), "config.json": text.encode(), **sentence_transformer_files(folder)}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves model, processor and this file, so that `pipeline(..., trust_remote_code=True)` needs no package.

        Args:
            save_directory: a folder; made if missing.
            **kwargs: of the model's `save_pretrained`.

        Raises:
            NotADirectoryError: if it is a file.
            ValueError: if it is to upload as well, which `push_to_hub` does.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained(push_to_hub=True) would leave out files: use pipe.push_to_hub(repo_id)")
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"'{save_directory}' is a file; a model is saved to a folder")
        os.makedirs(save_directory, exist_ok=True)
        self.model.config.custom_pipelines = self.custom_pipelines()
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        for name, content in sentence_transformer_files(save_directory).items():
            (Path(save_directory) / name).write_bytes(content)


def sentence_transformer_files(folder: str | os.PathLike) -> dict[str, bytes]:
    """What `SentenceTransformer(folder)` reads beside a model and its processor.

    Files that are there stay as they are, since they may hold prompts or further modules; only the limit of tokens is
    brought to that of the processor.

    Args:
        folder: as `save_pretrained` of model and processor left it; it is only read.

    Returns:
        Name -> content.
    """

    def saved(name: str) -> dict[str, Any]:
        path = Path(folder) / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    limits = saved("processor_config.json").get("max_length"), saved("tokenizer_config.json").get("model_max_length")
    limits = [limit for limit in limits if limit is not None]
    files = {}
    for name, content in SENTENCE_TRANSFORMER.items():
        content = saved(name) or content
        if name == "sentence_bert_config.json" and limits:
            content = {**content, "max_seq_length": min(limits)}
        files[name] = (json.dumps(content, indent=2) + "\n").encode()
    return files


def _is_photo(value: Any) -> bool:
    return isinstance(value, (PIL.Image.Image, os.PathLike))


def _whole(name: str, value: Any) -> int:
    """A whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; it is a whole number from 1 on")
    if value < 1:
        raise ValueError(f"{name} is {value}; it is at least 1")
    return value


__all__ = ["CCRkRetrievalPipeline", "InMemoryGallery", "RetrievalIndex"]
