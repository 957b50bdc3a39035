"""A name for what the features of a data set depend on: weights, processor, rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ccrk.data.identity import image_identity
from ccrk.data.images import CAUSES
from ccrk.fingerprints_ccrk import NAME_LENGTH, weights_name

TOWERS = {"images": "vision_model", "texts": "text_model"}
"""What is read -> the part of the model that reads it."""


def data_fingerprint(model, processor, dataset, towers: Sequence[str]) -> str:
    """Names what the output of towers depends on: their weights, the processor and the data set's rows.

    Args:
        model: a CCRk model.
        processor: its processor.
        dataset: map-style rows.
        towers: `vision_model`, `text_model`, and further parts whose weights count; images count with the first.
    """
    digest = hashlib.sha256()
    digest.update(weights_name(model.retriever, towers).encode())
    digest.update(json.dumps([processor.to_dict(), CAUSES], sort_keys=True, default=str).encode())
    for row in dataset:
        texts = [str(text) for text in texts_of(row)]
        languages = [str(caption.get("language")) for caption in row["captions"] or [] if isinstance(caption, Mapping)]
        digest.update(json.dumps([str(row.get("image_id")), texts, languages]).encode())
        if TOWERS["images"] in towers:
            digest.update(image_identity(row["image"]))
    return digest.hexdigest()[:NAME_LENGTH]


def texts_of(row: Mapping[str, Any]) -> list[Any]:
    """What stands in the place of each caption's text; None where nothing does."""
    return [caption.get("text") if isinstance(caption, Mapping) else None for caption in row["captions"] or []]
