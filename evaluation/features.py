"""Embeddings of a whole data set, each process its share; broken photos can be left out and counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import ccrk
from ccrk.evaluation.fingerprints import data_fingerprint
from ccrk.evaluation.shards import Shards
from ccrk.evaluation.sharing import Share
from ccrk.evaluation.state_store import ShardStates, StateStore
from ccrk.fingerprints_ccrk import name_of
from ccrk.inference_ccrk import fast_passes

ON_BROKEN = ("raise", "skip")
# what opening a file, decoding it (datasets decodes when a row is read) or preparing its pixels raises
BROKEN = (OSError, ValueError, SyntaxError)
EXAMPLES = 10
PIXELS_AT_ONCE = 600_000
"""Pixels that pass through the image tower together on a CPU, few enough for its cache: 4 images of 384 px."""


@dataclass
class RetrievalFeatures:
    """What a data set is searched by. Texts lie language after language; images without the broken ones.

    Attributes:
        image_embeds: (N, D) float32, on the CPU.
        image_groups: (N,) a number for each image id: equal ids are right answers to each other's texts.
        image_rows: (N,) rows of the data set.
        text_embeds: (T, D) float32, on the CPU.
        text_images: (T,) the image that each text describes, as a place in `image_embeds`.
        languages: language -> its slice of the texts.
        skipped: `images`, `captions` (those of skipped images) and `examples` of what was wrong.
        own_batches: places of the images whose hidden states this process holds, batch by batch.
        image_states: those states, in that order; None without re-ranking.
        text_states: hidden states of all texts without padding, in the order of `text_places`; None as above.
        text_places: (T,) number of each text in `text_states`.
        text_lengths: (T,) tokens of each text; all zero without re-ranking.
        cache: where on disk they are kept; None if they are not.
    """

    image_embeds: torch.Tensor
    image_groups: np.ndarray
    image_rows: np.ndarray
    text_embeds: torch.Tensor
    text_images: np.ndarray
    languages: dict[str, slice]
    skipped: dict
    own_batches: list[np.ndarray] = field(default_factory=list)
    image_states: StateStore | ShardStates | None = None
    text_states: StateStore | ShardStates | None = None
    text_places: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    text_lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cache: Shards | None = None

    def close(self) -> None:
        """Frees the stores of hidden states."""
        for store in (self.image_states, self.text_states):
            if store is not None:
                store.close()


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """The model without dropout; afterwards every module is as it was, also a frozen one amid others that train."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def read_rows(dataset, languages: Sequence[str] | None) -> tuple[dict[str, list[tuple[int, str]]], np.ndarray]:
    """Language -> (row, text) of every caption, and a number for each row's image id.

    Raises:
        ValueError: if a language asked for has no captions.
    """
    if "image" in (getattr(dataset, "column_names", None) or ()):
        dataset = dataset.remove_columns("image")  # or every photo would be decoded for its captions
    found: dict[str, list[tuple[int, str]]] = {}
    numbers: dict = {}
    groups = np.empty(len(dataset), dtype=np.int64)
    for row in range(len(dataset)):
        record = dataset[row]
        identity = record.get("image_id")
        groups[row] = numbers.setdefault(("row", row) if identity is None else str(identity), len(numbers))
        for caption in record["captions"]:
            if languages is None or caption["language"] in languages:
                found.setdefault(caption["language"], []).append((row, caption["text"]))
    return _complete(found, languages, ""), groups


def _complete(found: dict, languages: Sequence[str] | None, when: str) -> dict:
    missing = sorted(set(languages or ()) - {tag for tag, pairs in found.items() if pairs})
    found = {tag: pairs for tag, pairs in found.items() if pairs}
    if missing or not found:
        raise ValueError(f"the data set has no captions in {', '.join(missing) or 'any language'}{when}")
    return {language: found[language] for language in (languages or sorted(found))}


class _ImageReader:
    """Pixels of batches of rows; keeps an account of rows whose image cannot be read."""

    def __init__(self, dataset, processor, on_broken: str):
        if on_broken not in ON_BROKEN:
            raise ValueError(f"on_broken is '{on_broken}'; it is one of {', '.join(ON_BROKEN)}")
        self.dataset, self.processor, self.on_broken = dataset, processor, on_broken
        self.broken: list[tuple[int, str]] = []
        self.error: Exception | None = None

    def _pixels(self, rows: Sequence[int]) -> torch.Tensor:
        images = [self.dataset[row]["image"] for row in rows]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]

    def read(self, rows: Sequence[int]) -> tuple[list[int], torch.Tensor | None]:
        """The rows that can be read and their pixels; None if none can."""
        try:
            return list(rows), self._pixels(rows)
        except BROKEN:
            pass  # one of them is broken; which one shows when they are read one by one
        good, pixels = [], []
        for row in rows:
            try:
                pixels.append(self._pixels([row]))
                good.append(row)
            except BROKEN as error:
                self.broken.append((row, f"{type(error).__name__}: {error}"))
                if self.on_broken == "raise":
                    self.error = error
                    return good, None
        return good, torch.cat(pixels) if pixels else None

    def account(self, share: Share, total: int) -> list[tuple[int, str]]:
        """Broken rows of all processes. In every process the same error is raised, so that none waits for another.

        Raises:
            ValueError, OSError: the image's own error with `on_broken="raise"`, or if no image is left.
        """
        broken = sorted((row, text) for part in share.gather_json(self.broken) for row, text in part)
        if broken and self.on_broken == "raise":
            raise self.error or ValueError(f"the image of row {broken[0][0]} cannot be read: {broken[0][1]}")
        if len(broken) == total:
            raise ValueError(f"not one of {total} images can be read; of the first: {broken[0][1]}")
        return broken


def _pieces(model, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
    """A batch of images in pieces that stay in a processor's cache; whole on other devices."""
    if model.device.type != "cpu":
        return [pixels]
    return pixels.split(max(1, PIXELS_AT_ONCE // (pixels.shape[-1] * pixels.shape[-2])))


def _image_batch(model, reader: _ImageReader, batch: Sequence[int], options: dict) -> tuple[dict, dict] | None:
    """A batch of images as tensors, `rows`, `embeds` and, for re-ranking, `states`, and notes of what is broken.

    None where reading has met an error that stops the evaluation.
    """
    retriever, before = model.retriever, len(reader.broken)
    good, pixels = reader.read(batch)
    if reader.error is not None:
        return None
    notes = {"broken": reader.broken[before:], "lengths": []}
    tensors = {
        "rows": torch.tensor(good, dtype=torch.long),
        "embeds": torch.empty(0, retriever.config.projection_dim),
    }
    if pixels is not None:
        outputs = [retriever.get_image_features(part.to(model.device, model.dtype)) for part in _pieces(model, pixels)]
        tensors["embeds"] = torch.cat([output.pooler_output for output in outputs]).float().cpu()
        if options["states"]:
            hidden = torch.cat([output.last_hidden_state for output in outputs])
            notes["lengths"] = [hidden.shape[1]] * len(hidden)
            tensors["states"] = hidden.flatten(0, 1)
    return tensors, notes


def _cached(cache: Shards | None, piece: str, compute: Callable[[], tuple[dict, dict] | None]):
    """A piece of the cache, or what is computed, which is then kept there. States of a kept piece stay on disk."""
    if cache is None:
        return compute()
    found = cache.load(piece, skip=("states",))
    if found is None:
        found = compute()
        if found is not None:
            cache.save(piece, *found)
    return found


def _store(options: dict) -> StateStore | ShardStates | None:
    if not options["states"]:
        return None
    return StateStore(options["scratch"]) if options["cache"] is None else ShardStates()


def _keep(store: StateStore | ShardStates | None, tensors: dict, notes: dict, options: dict, piece: str) -> None:
    """Puts the states of a batch into the store, or notes where in the cache they are."""
    if isinstance(store, ShardStates):
        store.add(options["cache"].path(piece), notes["lengths"])
    elif store is not None and notes["lengths"]:
        for states in tensors["states"].split(notes["lengths"]):
            store.append(states)


def _encode_images(model, processor, dataset, share: Share, options: dict) -> tuple[RetrievalFeatures, list]:
    """Embeds the images of this process and gathers those of all; text fields are left empty."""
    retriever, size = model.retriever, options["batch_size"]
    reader = _ImageReader(dataset, processor, options["on_broken"])
    batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    store = _store(options)
    embeds, rows = [torch.empty(0, retriever.config.projection_dim)], []
    numbers = share.mine(range(len(batches)))
    for number in tqdm(numbers, desc="images", disable=not options["progress"]):
        piece, computed = f"images-{number:06d}", len(reader.broken)
        found = _cached(options["cache"], piece, partial(_image_batch, model, reader, batches[number], options))
        if found is None:
            break
        tensors, notes = found
        if len(reader.broken) == computed:
            reader.broken += [(row, text) for row, text in notes["broken"]]  # of a piece that was there before
        if len(tensors["rows"]):
            embeds.append(tensors["embeds"])
            rows.append(tensors["rows"].tolist())
            _keep(store, tensors, notes, options, piece)
    broken = reader.account(share, len(dataset))
    all_rows = torch.cat(share.gather(torch.tensor([row for part in rows for row in part], dtype=torch.long)))
    order = all_rows.argsort()
    image_rows = all_rows[order].numpy()
    features = RetrievalFeatures(
        image_embeds=torch.cat(share.gather(torch.cat(embeds)))[order],
        image_groups=np.zeros(0, dtype=np.int64),
        image_rows=image_rows,
        text_embeds=torch.empty(0),
        text_images=np.zeros(0, dtype=np.int64),
        languages={},
        skipped={"images": len(broken), "captions": 0, "examples": [text for _, text in broken[:EXAMPLES]]},
        own_batches=[np.searchsorted(image_rows, part) for part in rows],
        image_states=store,
    )
    return features, [row for row, _ in broken]


def _text_batch(model, processor, texts: list[str], options: dict) -> tuple[dict, dict]:
    """A batch of texts as tensors, `embeds` and, for re-ranking, `states` without padding, with their lengths."""
    batch = processor(text=texts, return_tensors="pt", padding=True).to(model.device)
    output = model.retriever.get_text_features(batch["input_ids"], batch["attention_mask"])
    notes: dict[str, list] = {"lengths": []}
    tensors = {"embeds": output.pooler_output.float()}
    if options["states"]:
        mask = batch["attention_mask"].bool()
        notes["lengths"] = mask.sum(1).tolist()
        tensors["states"] = output.last_hidden_state[mask]
    return tensors, notes


def _encode_texts(model, processor, texts: list[str], features: RetrievalFeatures, share: Share, options: dict):
    """Embeds the texts of this process and gathers those of all; with re-ranking their hidden states too."""
    retriever, size, cache = model.retriever, options["batch_size"], options["cache"]
    # sorted by length, so that little padding is computed
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].encode()))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    features.text_embeds = torch.empty(len(texts), retriever.config.projection_dim)
    features.text_lengths = np.zeros(len(texts), dtype=np.int64)
    features.text_places = np.zeros(len(texts), dtype=np.int64)
    features.text_states, placed = _store(options), 0
    for step in tqdm(range(0, len(batches), share.world_size), desc="texts", disable=not options["progress"]):
        # in the last step there may be no batch for every process; all take part in the exchange all the same
        number = min(step + share.rank, len(batches) - 1)
        part, mine = batches[number], step + share.rank < len(batches)
        compute = partial(_text_batch, model, processor, [texts[i] for i in part], options)
        tensors, notes = _cached(cache if mine else None, f"texts-{number:06d}", compute)
        count = len(part) if mine else 0
        numbers = [part.tolist() for part in share.gather(torch.tensor(part[:count], dtype=torch.long))]
        vectors = share.gather(tensors["embeds"][:count])
        features.text_embeds[[i for of_process in numbers for i in of_process]] = torch.cat(vectors)
        if not options["states"]:
            continue
        lengths = [part.tolist() for part in share.gather(torch.tensor(notes["lengths"][:count], dtype=torch.long))]
        # with a cache the states are in its pieces, which all processes can read; without, they are exchanged
        states = [None] * share.world_size
        if cache is None:
            states = share.gather(tensors["states"][: sum(notes["lengths"][:count])])
        for process, (rows, of_rows) in enumerate(zip(numbers, lengths, strict=True)):
            for i, length in zip(rows, of_rows, strict=True):
                features.text_places[i] = placed
                placed += 1
                features.text_lengths[i] = length
            found = {"states": states[process]}
            _keep(features.text_states, found, {"lengths": of_rows}, options, f"texts-{step + process:06d}")


def _open_cache(model, processor, dataset, cache, options: dict) -> Shards | None:
    """The pieces of these weights, this processor, these rows, these options and this version of the package."""
    if cache is None:
        return None
    parts = ["vision_model", "text_model", "visual_projection", "text_projection"]
    data = data_fingerprint(model, processor, dataset, parts)
    chosen = {name: options[name] for name in ("languages", "states", "batch_size", "on_broken", "bf16")}
    return Shards(cache, name_of([data, str(model.dtype), chosen, ccrk.__version__]))


@torch.inference_mode()
def encode(
    model,
    processor,
    dataset,
    *,
    languages: Sequence[str] | None = None,
    states: bool = False,
    batch_size: int = 64,
    on_broken: str = "raise",
    bf16: bool = False,
    scratch: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    share: Share | None = None,
    progress: bool = False,
) -> RetrievalFeatures:
    """Embeds all images and captions of a data set.

    With several processes each embeds every so-manieth batch, and all get the features of all. Batches do not depend
    on the number of processes, so neither do the features. Hidden states of images stay with the process that made
    them, those of texts are given to all.

    Args:
        model: a CCRk model.
        processor: its processor.
        dataset: map-style rows of `image`, `captions` and, optional, `image_id`.
        languages: those to encode; all by default.
        states: keep what re-ranking needs, see `StateStore`.
        batch_size: images or texts in one pass.
        on_broken: `raise`, or `skip` images that cannot be read, with their captions, and count them.
        bf16: under autocast to bfloat16.
        scratch: folder for hidden states that are too many for memory.
        cache: folder in which features are kept, batch by batch, under a name for all they depend on; what is there
            is not computed again.
        share: of this process.
        progress: show bars.

    Raises:
        ValueError: if a language has no captions, no image can be read, or the model's output is not finite.
        OSError: if an image file is not there, or the disk is full.
    """
    share = share or Share(device=model.device)
    options: dict[str, Any] = {
        "languages": None if languages is None else list(languages),
        "states": states,
        "batch_size": batch_size,
        "on_broken": on_broken,
        "bf16": bf16,
        "scratch": scratch,
        "progress": progress and share.rank == 0,
    }
    options["cache"] = _open_cache(model, processor, dataset, cache, options)
    captions, groups = read_rows(dataset, languages)
    with fast_passes(model, ["vision_model"], bf16=bf16):
        features, broken = _encode_images(model, processor, dataset, share, options)
    features.cache = options["cache"]
    gone = set(broken)
    kept = {tag: [pair for pair in pairs if pair[0] not in gone] for tag, pairs in captions.items()}
    features.skipped["captions"] = sum(map(len, captions.values())) - sum(map(len, kept.values()))
    captions = _complete(kept, languages, f" once {len(gone)} images that cannot be read are left out")
    features.image_groups = groups[features.image_rows]
    pairs: list[tuple[int, str]] = []
    start = 0
    for language, of_language in captions.items():
        features.languages[language] = slice(start, start + len(of_language))
        start += len(of_language)
        pairs += of_language
    features.text_images = np.searchsorted(features.image_rows, [row for row, _ in pairs])
    with fast_passes(model, ["text_model"], bf16=bf16):
        _encode_texts(model, processor, [text for _, text in pairs], features, share, options)
    if not (features.image_embeds.isfinite().all() and features.text_embeds.isfinite().all()):
        raise ValueError(
            "the model's embeddings are not finite (NaN or infinite); its weights or the input are broken"
        )
    return features
