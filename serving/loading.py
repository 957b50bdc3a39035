"""The model and the gallery that a service is started with."""

from __future__ import annotations

from typing import Any

from .options import ServingOptions


def load_pipeline(options: ServingOptions) -> Any:
    """Loads a retrieval pipeline with its gallery.

    Raises:
        ImportError, OSError, ValueError: saying what cannot be loaded.
    """
    import torch
    from transformers import pipeline

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype = {"dtype": torch.bfloat16} if options.bf16 else {}
    return pipeline("ccr-retrieval", model=options.model, gallery=options.gallery, **dtype)


__all__ = ["load_pipeline"]
