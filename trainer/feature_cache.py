"""Features of frozen towers, computed once and kept on disk as memory-mapped arrays."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tqdm.auto import tqdm

from ccrk.data.images import CAUSES, BrokenImageError, load_image
from ccrk.data.report import SkipReport
from ccrk.evaluation.fingerprints import TOWERS, data_fingerprint, texts_of
from ccrk.trainer.checkpoints import free_space, is_disk_error

logger = logging.getLogger(__name__)


PARTS = ("images", "texts")
TOKENS_AT_ONCE = 4096  # of texts that pass through the tower together


class FeatureCache:
    """Output of frozen towers, both or one, for every image and every caption of a data set.

    Arrays in half precision: images (N, 1 + P, width), texts as one run of tokens with offsets. They are written in
    order, and `progress.json` says how far, so that a run that was killed goes on where it was. An image that cannot
    be read has zeros in its place and a cause, a caption that cannot be used no tokens; neither is trained on.

    Args:
        folder: where the arrays are.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.offsets = np.load(self.folder / "offsets.npy")  # (texts + 1,) first token of each text
        self.first_text = np.load(self.folder / "first_text.npy")  # (N,) first text of each image
        self.images, self.texts = (
            np.load(path, mmap_mode="r") if (path := self.folder / f"{part}.npy").exists() else None for part in PARTS
        )
        self.ids = np.load(self.folder / "token_ids.npy", mmap_mode="r")
        # (N,) 0, or 1 and the place in CAUSES
        self.causes = None if self.images is None else np.load(self.folder / "causes.npy")

    def broken(self, row: int) -> str | None:
        """Why the image in a row could not be read; None for one that could."""
        cause = int(self.causes[row])
        return CAUSES[cause - 1] if cause else None

    def image_states(self, row: int) -> torch.Tensor:
        """(1 + P, width) of the image in a row."""
        return torch.from_numpy(self.images[row].astype(np.float32))

    def _span(self, row: int, caption: int) -> slice:
        text = self.first_text[row] + caption
        return slice(self.offsets[text], self.offsets[text + 1])

    def text_states(self, row: int, caption: int) -> torch.Tensor:
        """(L, hidden) of one caption of a row, without padding."""
        return torch.from_numpy(self.texts[self._span(row, caption)].astype(np.float32))

    def token_ids(self, row: int, caption: int) -> torch.Tensor:
        """(L,) token ids of one caption of a row."""
        return torch.from_numpy(self.ids[self._span(row, caption)].astype(np.int64))

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model,
        processor,
        dataset,
        *,
        parts: tuple[str, ...] = PARTS,
        batch_size: int = 64,
        bf16: bool = False,
        on_broken: str = "skip",
    ) -> FeatureCache:
        """Computes what is not there yet and opens the cache.

        Args:
            folder: parent folder; each combination of towers and data has its own below it.
            model: with its towers as they will stay.
            processor: its processor.
            dataset: map-style rows; images as `load_image` takes them.
            parts: whose features: `images`, `texts` or both.
            batch_size: images in one pass, and texts at least.
            bf16: compute under bfloat16 autocast.
            on_broken: `"skip"` notes images that cannot be read and captions that cannot be used, and goes on;
                `"raise"` stops at the first.

        Raises:
            OSError: if the disk is full or the folder cannot be written; what was computed so far is kept.
            ValueError: if a feature is not finite, no image or no caption can be used at all, or with
                `on_broken="raise"` one of them cannot.
        """
        towers = [TOWERS[part] for part in parts]
        folder = Path(folder) / data_fingerprint(model, processor, dataset, towers)
        if _is_complete(folder, len(dataset), parts):
            return cls(folder)
        was_training = model.training
        model.eval()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            device = model.retriever.device.type
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                tokens = _write_layout(folder, processor, dataset, on_broken)
                if "images" in parts:
                    _write_images(folder, model.retriever, processor, dataset, batch_size, on_broken)
                if "texts" in parts:
                    _write_texts(folder, model.retriever, tokens, batch_size)
        except OSError as error:
            if not is_disk_error(error, folder):
                raise
            free = free_space(folder)
            raise OSError(
                error.errno or errno.ENOSPC,
                f"the feature cache '{folder}' cannot be written: {error.strerror or error}"
                + ("" if free is None else f", {free / 1e6:,.1f} MB are free")
                + ". What was computed is kept and not computed again: free some space and start again, or name a "
                "folder on another disk (feature_cache_dir)",
            ) from error
        finally:
            model.train(was_training)
        return cls(folder)


def _write_layout(folder: Path, processor, dataset, on_broken: str) -> list[list[int]]:
    """Tokenizes all captions and lays out the arrays; returns the token ids, none for a caption without a text."""
    texts: list[list[int]] = []
    first, usable = [], []
    for row in dataset:
        first.append(len(texts))
        for text in texts_of(row):
            try:
                texts.append(processor.prepare_text(text, f"a caption of image '{row.get('image_id')}'"))
                usable.append(True)
            except (TypeError, ValueError):
                if on_broken == "raise":
                    raise
                texts.append("a")
                usable.append(False)
    if not any(usable):
        raise ValueError(f"none of the {len(texts)} captions of the data set can be used: they are empty, or no texts")
    encoded = processor.encode_texts(texts, truncation=True)["input_ids"]
    tokens = [ids if good else [] for ids, good in zip(encoded, usable, strict=True)]
    _save(folder / "first_text.npy", np.array(first, dtype=np.int64))
    _save(folder / "token_ids.npy", np.concatenate([np.array(ids, dtype=np.int32) for ids in tokens]))
    _save(folder / "offsets.npy", np.cumsum([0, *(len(ids) for ids in tokens)]))
    return tokens


def _save(path: Path, array: np.ndarray) -> None:
    """Writes a small array whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
    os.replace(temporary, path)


def _progress(folder: Path, key: str, value: int | None = None) -> int:
    """Reads, or with a value records, how many items of an array are done."""
    path = folder / "progress.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    if value is not None:
        state[key] = value
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, path)
    return state.get(key, 0)


def _is_complete(folder: Path, rows: int, parts: tuple[str, ...]) -> bool:
    """Whether every image and every text of the data set is there; then not even its captions are tokenized."""
    try:
        lengths = np.diff(np.load(folder / "offsets.npy"))
        found = {part: len(np.load(folder / f"{part}.npy", mmap_mode="r")) for part in parts}
        causes = len(np.load(folder / "causes.npy", mmap_mode="r")) if "images" in parts else rows
    except (OSError, ValueError, EOFError):  # missing, or cut off
        return False
    wanted = {"images": (rows, rows), "texts": (lengths.sum(), np.count_nonzero(lengths))}
    return causes == rows and all((found[part], _progress(folder, part)) == wanted[part] for part in parts)


class _HalfArray:
    """A half-precision array in a file of numpy's, whose rows are written with ordinary writes.

    Its space is reserved when it is made: a full disk is an error then, before anything is computed. Through a memory
    map it would be a signal that ends the process without a word.

    Args:
        path: the file. One of the same shape is taken up, of another one begun anew.
        shape: of the whole.

    Attributes:
        begun_anew: whether there was nothing to take up.

    Raises:
        OSError: if there is no room.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        try:
            found = np.load(path, mmap_mode="r")
            self.begun_anew = found.shape != shape or found.dtype != np.float16
            del found
        except (OSError, ValueError, EOFError):
            self.begun_anew = True
        self.row_bytes = 2 * math.prod(shape[1:])
        self._file = path.open("w+b" if self.begun_anew else "r+b")
        try:
            # the length that numpy's reader expects comes with the reservation, so a file cut off here is no array
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._file.flush()
            _reserve(self._file.fileno(), self._start + shape[0] * self.row_bytes)
        except OSError:
            self._file.close()
            if self.begun_anew:
                path.unlink()
            raise

    def write(self, row: int, values: torch.Tensor) -> None:
        """Stores rows from one on.

        Raises:
            ValueError: if a value is not finite.
        """
        values = values.float()
        if not values.isfinite().all():
            raise ValueError("a tower's features are not finite; its weights are broken")
        self._file.seek(self._start + row * self.row_bytes)
        self._file.write(values.clamp(-65504, 65504).numpy().astype("<f2").tobytes())

    def flush(self) -> None:
        """Waits until what was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; what cannot be written any more is lost, and counted by no record of progress."""
        try:
            self._file.close()
        except OSError as error:
            logger.warning(f"'{self._file.name}': {error}")


def _reserve(descriptor: int, size: int) -> None:
    """Makes a file as long as it will be, and takes the space for it where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # not every system has it
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(error.errno, f"{error.strerror} ({size / 1e6:,.1f} MB are needed)") from error
        os.ftruncate(descriptor, size)


def _read_images(dataset, rows: Sequence[int], on_broken: str) -> tuple[list[Image.Image], list[int], list[int]]:
    """The images that can be read, the rows they stand in, and a cause (0 for none) for every row."""
    images, good, causes = [], [], []
    for place in rows:
        row = dataset[place]
        try:
            images.append(load_image(row["image"]))
            good.append(place)
            causes.append(0)
        except BrokenImageError as error:
            if on_broken == "raise":
                raise ValueError(f"image '{row.get('image_id', place)}': {error}") from error
            causes.append(1 + CAUSES.index(error.cause))
    return images, good, causes


def _write_images(folder: Path, retriever, processor, dataset, batch_size: int, on_broken: str) -> None:
    done, total = _progress(folder, "images"), len(dataset)
    try:
        causes = np.load(folder / "causes.npy")
        shape = np.load(folder / "images.npy", mmap_mode="r").shape
        done = done if len(causes) == shape[0] == total else 0
    except (OSError, ValueError, EOFError):
        done = 0
    if not done:
        causes = np.zeros(total, dtype=np.uint8)
    array: _HalfArray | None = None
    try:
        for start in tqdm(range(done, total, batch_size), desc="image features", disable=done >= total):
            stop = min(start + batch_size, total)
            images, good, causes[start:stop] = _read_images(dataset, range(start, stop), on_broken)
            if images:
                pixels = processor(images=images, return_tensors="pt")["pixel_values"]
                states = retriever.vision_model(pixels.to(retriever.device)).cpu()
                if array is None:
                    array = _HalfArray(folder / "images.npy", (total, *states.shape[1:]))
                for place, state in zip(good, states, strict=True):
                    array.write(place, state[None])
            if array is not None and ((start // batch_size) % 8 == 7 or stop == total):
                array.flush()
                _save(folder / "causes.npy", causes)
                _progress(folder, "images", stop)
    finally:
        if array is not None:
            array.close()
    if causes.all():
        report = SkipReport()
        for place, cause in enumerate(causes):
            report.add(CAUSES[cause - 1], dataset[place].get("image_id", place))
        raise ValueError(f"none of the {total} images of the data set can be read:\n{report.table()}")
    if done < total and stop == total and _progress(folder, "images") < total:
        # the last images are all broken, and none of this run's was not
        _save(folder / "causes.npy", causes)
        _progress(folder, "images", total)


def _write_texts(folder: Path, retriever, tokens: list[list[int]], batch_size: int) -> None:
    """Texts go through the tower sorted by length; the record counts the sorted ones, without those of no tokens."""
    offsets = np.load(folder / "offsets.npy")
    order = sorted((i for i in range(len(tokens)) if tokens[i]), key=lambda i: len(tokens[i]))
    total = len(order)
    array = _HalfArray(folder / "texts.npy", (int(offsets[-1]), retriever.config.text_config.hidden_size))
    done = 0 if array.begun_anew else _progress(folder, "texts")
    pad_id = retriever.config.text_config.pad_token_id
    try:
        bar = tqdm(initial=done, total=total, desc="text features", unit="texts", disable=done >= total)
        noted = done
        while done < total:
            # short texts in larger batches, so that each pass has about as many tokens
            stop = min(total, done + max(batch_size, TOKENS_AT_ONCE // len(tokens[order[done]])))
            part = order[done:stop]
            length = len(tokens[part[-1]])
            ids = torch.full((len(part), length), pad_id)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(part):
                ids[place, : len(tokens[i])] = torch.tensor(tokens[i])
                mask[place, : len(tokens[i])] = 1
            states = retriever.text_model(ids.to(retriever.device), mask.to(retriever.device)).cpu()
            for place, i in enumerate(part):
                array.write(int(offsets[i]), states[place, : len(tokens[i])])
            bar.update(stop - done)
            done = stop
            if done - noted > 2048 or done == total:
                array.flush()
                _progress(folder, "texts", done)
                noted = done
        bar.close()
    finally:
        array.close()


class CachedRows(torch.utils.data.Dataset):
    """A data set whose rows carry their place in the feature cache, and an image only where that is not cached."""

    def __init__(self, dataset, keep_images: bool = False):
        self.dataset = dataset
        self.keep_images = keep_images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        identity = row.get("image_id")
        kept = {"image": row["image"]} if self.keep_images else {}
        return {"row": index, "image_id": index if identity is None else identity, "captions": row["captions"], **kept}


def one_by_one(turns: Sequence[bool], action: Callable[[], object]) -> None:
    """Does something that takes long in some processes while the others wait, as long as it takes.

    Args:
        turns: for each turn, the same number everywhere, whether this process acts in it.
        action: what is done.

    Raises:
        Exception: in all processes, if it fails in one.
    """
    # of its own: the usual group gives up waiting after minutes
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    for mine in turns:
        error = None
        try:
            if mine:
                action()
        except Exception as caught:
            error = caught
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, None if error is None else f"{type(error).__name__}: {error}", group=group)
        if error is not None:
            raise error
        if failed := [entry for entry in found if entry is not None]:
            raise RuntimeError(f"another process failed: {failed[0]}")
    dist.destroy_process_group(group)
