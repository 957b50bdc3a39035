"""Features of frozen towers, computed once and kept on disk as memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

PARTS = ("images", "texts")
TOKENS_AT_ONCE = 4096  # of texts that pass through the tower together


def fingerprint(model, processor, dataset, parts: tuple[str, ...] = PARTS) -> str:
    """Names what the features depend on: the towers' weights, the processor and the data set's rows."""
    digest = hashlib.sha256()
    retriever = model.retriever
    digest.update(b"" if parts == PARTS else ",".join(parts).encode())
    for tower in [getattr(retriever, {"images": "vision_model", "texts": "text_model"}[part]) for part in parts]:
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
    digest.update(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
    for row in dataset:
        texts = [(caption["language"], caption["text"]) for caption in row["captions"]]
        digest.update(json.dumps([str(row.get("image_id")), texts]).encode())
        if "images" in parts:
            digest.update(_image_identity(row["image"]))
    return digest.hexdigest()[:16]


def _image_identity(image) -> bytes:
    """Bytes that change when an image does: its pixels, or the path, size and time of its file."""
    if isinstance(image, (str, os.PathLike)):
        status = os.stat(image)
        return f"{os.fspath(image)} {status.st_size} {status.st_mtime_ns}".encode()
    return np.ascontiguousarray(image).tobytes()


class FeatureCache:
    """Output of frozen towers, both or one, for every image and every caption of a data set.

    Arrays in half precision: images (N, 1 + P, width), texts as one run of tokens with offsets. They are written in
    order, and `progress.json` says how far, so that a run that was killed goes on where it was.

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
    ):
        """Computes what is not there yet and opens the cache.

        Args:
            folder: parent folder; each combination of towers and data has its own below it.
            model: with its towers as they will stay.
            processor: its processor.
            dataset: map-style rows.
            parts: whose features: `images`, `texts` or both.
            batch_size: images or texts in one pass.
            bf16: compute under bfloat16 autocast.

        Raises:
            OSError: if the disk is full or the folder cannot be written; what was computed so far is kept.
            ValueError: if an image cannot be read or a feature is not finite.
        """
        folder = Path(folder) / fingerprint(model, processor, dataset, parts)
        if _is_complete(folder, len(dataset), parts):
            return cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        was_training = model.training
        model.eval()
        try:
            device = model.retriever.device.type
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                tokens = _write_layout(folder, processor, dataset)
                if "images" in parts:
                    _write_images(folder, model.retriever, processor, dataset, batch_size)
                if "texts" in parts:
                    _write_texts(folder, model.retriever, tokens, batch_size)
        finally:
            model.train(was_training)
        return cls(folder)


def _write_layout(folder: Path, processor, dataset) -> list[list[int]]:
    """Tokenizes all captions and lays out the arrays; returns the token ids."""
    texts, first = [], []
    for row in dataset:
        first.append(len(texts))
        texts += [
            processor.prepare_text(caption["text"], f"a caption of image '{row.get('image_id')}'")
            for caption in row["captions"]
        ]
    tokens = processor.encode_texts(texts, truncation=True)["input_ids"]
    np.save(folder / "first_text.npy", np.array(first, dtype=np.int64))
    np.save(folder / "offsets.npy", np.cumsum([0, *(len(ids) for ids in tokens)]))
    np.save(folder / "token_ids.npy", np.concatenate([np.array(ids, dtype=np.int32) for ids in tokens]))
    return tokens


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
    offsets = folder / "offsets.npy"
    if not offsets.exists() or ("images" in parts and _progress(folder, "images") < rows):
        return False
    return "texts" not in parts or _progress(folder, "texts") == len(np.load(offsets, mmap_mode="r")) - 1


def _open_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    if path.exists():
        array = np.load(path, mmap_mode="r+")
        if array.shape == shape:
            return array
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _store(array: np.ndarray, where, values: torch.Tensor) -> None:
    values = values.float()
    if not values.isfinite().all():
        raise ValueError("a tower's features are not finite; its weights are broken")
    array[where] = values.clamp(-65504, 65504).numpy().astype(np.float16)


def _write_images(folder: Path, retriever, processor, dataset, batch_size: int) -> None:
    done, total = _progress(folder, "images"), len(dataset)
    array = None
    for start in tqdm(range(done, total, batch_size), desc="image features", disable=done >= total):
        stop = min(start + batch_size, total)
        pixels = processor(images=[dataset[row]["image"] for row in range(start, stop)], return_tensors="pt")
        states = retriever.vision_model(pixels["pixel_values"].to(retriever.device)).cpu()
        if array is None:
            array = _open_array(folder / "images.npy", (total, *states.shape[1:]))
        _store(array, slice(start, stop), states)
        if (start // batch_size) % 8 == 7 or stop == total:
            array.flush()
            _progress(folder, "images", stop)


def _write_texts(folder: Path, retriever, tokens: list[list[int]], batch_size: int) -> None:
    """Texts go through the tower sorted by length; the record counts the sorted ones."""
    offsets = np.load(folder / "offsets.npy")
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    done, total = _progress(folder, "texts"), len(tokens)
    array = _open_array(folder / "texts.npy", (int(offsets[-1]), retriever.config.text_config.hidden_size))
    pad_id = retriever.config.text_config.pad_token_id
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
            _store(array, slice(offsets[i], offsets[i + 1]), states[place, : len(tokens[i])])
        bar.update(stop - done)
        done = stop
        if done - noted > 2048 or done == total:
            array.flush()
            _progress(folder, "texts", done)
            noted = done
    bar.close()


class CachedRows(torch.utils.data.Dataset):
    """A data set whose rows carry their place in the feature cache, and an image only where that is not cached."""

    def __init__(self, dataset, keep_images: bool = False):
        self.dataset = dataset
        self.keep_images = keep_images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        kept = {"image": row["image"]} if self.keep_images else {}
        return {"row": index, "image_id": row.get("image_id", index), "captions": row["captions"], **kept}
