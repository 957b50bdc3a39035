"""What a model makes of the photos and captions of a folder; needs no `ccrk`, so that any process can compare."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def outputs_of(model, processor, work: Path) -> dict[str, torch.Tensor]:
    """Embeddings and matches of WORK/photos and WORK/captions.json by a model with or without a language head."""
    captions = json.loads((Path(work) / "captions.json").read_text())
    photos = sorted(str(photo) for photo in (Path(work) / "photos").iterdir())
    batch = processor(images=photos, text=captions, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
        matched = model.match(**batch) if hasattr(model, "match") else getattr(model, "ccrk", model).match(**batch)
    return {
        "image_embeds": output.image_embeds.contiguous(),
        "text_embeds": output.text_embeds.contiguous(),
        "match": matched.contiguous(),
    }
