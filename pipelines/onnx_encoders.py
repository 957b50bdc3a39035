"""Runs encoders that were exported to ONNX, by onnxruntime, in the place of the model's own methods."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .index import IndexFingerprint

MANIFEST = "ccrk_onnx.json"
VERSION = 1


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OnnxEncoders:
    """The encoders in a folder that `export_encoders` wrote.

    Methods are named as those of the model and take the same; numpy arrays in, numpy arrays out, and tensors for
    tensors. Nothing here needs the model or its weights.

    Args:
        folder: of the export.
        threads: of one pass; those of torch by default.
        check: compare every file with its checksum before it is opened.
        providers: of onnxruntime; the processor by default.

    Attributes:
        folder: as given.
        int8: whether linear layers compute in 8 bits.
        fingerprint: whose vectors they make, see `IndexFingerprint`; None if they were exported without processor.
        image_size: side of the photos that they take.

    Raises:
        FileNotFoundError: if the folder holds no export.
        ImportError: if onnxruntime is not installed.
        ValueError: if a file is missing, broken or was changed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        threads: int | None = None,
        check: bool = True,
        providers: list | None = None,
    ):
        try:
            import onnxruntime  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError("exported encoders need 'onnxruntime': pip install 'ccrk[onnx]'") from error
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        if check:
            _check_files(self.folder, manifest["files"])
        self.int8, self.image_size = bool(manifest["int8"]), int(manifest["image_size"])
        self.fingerprint = IndexFingerprint(**manifest["fingerprint"]) if manifest["fingerprint"] else None
        self.threads = threads or torch.get_num_threads()
        self.providers = providers or ["CPUExecutionProvider"]
        self._sessions: dict[str, Any] = {}

    def get_image_features(self, pixel_values: torch.Tensor | np.ndarray) -> BaseModelOutputWithPooling:
        """Embeds photos (B, 3, H, W), as the model's method of this name."""
        return self._features("image", {"pixel_values": pixel_values})

    def get_text_features(
        self, input_ids: torch.Tensor | np.ndarray, attention_mask: torch.Tensor | np.ndarray | None = None
    ) -> BaseModelOutputWithPooling:
        """Embeds texts (T, L), as the model's method of this name."""
        mask = np.ones(tuple(input_ids.shape), np.int64) if attention_mask is None else attention_mask
        return self._features("text", {"input_ids": input_ids, "attention_mask": mask})

    def match(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        image_hidden_states: Any = None,
        text_hidden_states: Any = None,
        pairs: Any = None,
        batch_size: int = 64,
    ) -> Any:
        """Scores photos against texts, as the model's method of this name.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (T, L).
            attention_mask: (T, L).
            image_hidden_states: (B, 1 + P, image width) in place of `pixel_values`.
            text_hidden_states: (T, L, hidden) in place of `input_ids`.
            pairs: (N, 2) rows of photos and texts. Without it every photo is scored with every text.
            batch_size: pairs in one pass.

        Returns:
            Logits, class 1 = match: (N, 2) for pairs, (B, T, 2) without.

        Raises:
            ValueError: if a pair names a photo or a text that is not there.
        """
        given = pixel_values if image_hidden_states is None else image_hidden_states
        if image_hidden_states is None:
            image_hidden_states = self.get_image_features(pixel_values).last_hidden_state
        if text_hidden_states is None:
            text_hidden_states = self.get_text_features(input_ids, attention_mask).last_hidden_state
        images, texts = _array(image_hidden_states), _array(text_hidden_states)
        mask = np.ones(texts.shape[:2], np.int64) if attention_mask is None else _array(attention_mask)
        if pairs is None:
            rows = np.stack(np.meshgrid(range(len(images)), range(len(texts)), indexing="ij"), -1).reshape(-1, 2)
        else:
            rows = _array(pairs).reshape(-1, 2)
            if len(rows) and ((rows < 0) | (rows >= [len(images), len(texts)])).any():
                raise ValueError(
                    f"pairs name an image or a text beyond the {len(images)} images and {len(texts)} texts given"
                )
        parts = [
            self._match(images, texts, mask, rows[start : start + batch_size])
            for start in range(0, len(rows), batch_size)
        ]
        logits = np.concatenate(parts) if parts else np.zeros((0, 2), np.float32)
        if pairs is None:
            logits = logits.reshape(len(images), len(texts), 2)
        return torch.from_numpy(logits) if isinstance(given, torch.Tensor) else logits

    def _match(self, images: np.ndarray, texts: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits of one batch of pairs; only photos and texts that it names are read, and no padding beyond them."""
        own_images, image_rows = np.unique(rows[:, 0], return_inverse=True)
        own_texts, text_rows = np.unique(rows[:, 1], return_inverse=True)
        mask = mask[own_texts]
        used = mask.any(0).nonzero()[0]
        length = int(used[-1]) + 1 if len(used) else mask.shape[1]
        inputs = {
            "image_hidden_states": images[own_images],
            "text_hidden_states": texts[own_texts, :length],
            "attention_mask": mask[:, :length],
            "image_rows": image_rows,
            "text_rows": text_rows,
        }
        return self._run("fusion", inputs)["itm_logits"]

    def _features(self, part: str, inputs: dict[str, Any]) -> BaseModelOutputWithPooling:
        output = self._run(part, inputs)
        if isinstance(next(iter(inputs.values())), torch.Tensor):
            output = {name: torch.from_numpy(value) for name, value in output.items()}
        return BaseModelOutputWithPooling(
            last_hidden_state=output[f"{part}_hidden_states"], pooler_output=output[f"{part}_embeds"]
        )

    def _run(self, part: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        session = self._session(part)
        kinds = {spec.name: np.float32 if spec.type == "tensor(float)" else np.int64 for spec in session.get_inputs()}
        feed = {name: np.ascontiguousarray(_array(inputs[name]), kind) for name, kind in kinds.items()}
        names = [spec.name for spec in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    def _session(self, part: str) -> Any:
        """The part's session, opened when it is first needed."""
        if part not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
            # threads that wait give the processor to others: a service runs beside other work
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            path = str(self.folder / f"{part}.onnx")
            self._sessions[part] = onnxruntime.InferenceSession(path, options, providers=self.providers)
        return self._sessions[part]


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The description of an export.

    Raises:
        FileNotFoundError, ValueError: if there is none, or it is not one of ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"'{folder}' holds no exported encoders ({MANIFEST}): ccrk export makes them")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
        names = [*manifest["files"], manifest["int8"], manifest["image_size"], manifest["fingerprint"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is no description of exported encoders: {error!r}") from error
    if version != VERSION or not names:
        raise ValueError(f"'{path}' has version {version}, and this package reads {VERSION}: export the model again")
    return manifest


def _check_files(folder: Path, files: dict[str, str]) -> None:
    """Refuses files that are not those that were written.

    Raises:
        ValueError: naming the file.
    """
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"the export '{folder}' lacks its file '{name}': export the model again")
        if file_digest(path) != digest:
            raise ValueError(f"the file '{path}' is broken or was changed (its checksum differs): export it again")


__all__ = ["MANIFEST", "OnnxEncoders", "file_digest"]
