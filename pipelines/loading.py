"""The retrieval pipeline with a model, as the commands start it."""

from __future__ import annotations

from typing import Any


def load_pipeline(model: str, *, threads: int | None = None, **options: Any) -> Any:
    """Loads a model into a retrieval pipeline.

    Args:
        model: folder or Hub id.
        threads: of torch, in this process; its choice by default.
        **options: of `transformers.pipeline` and `CCRkRetrievalPipeline`, such as `gallery` and `device`.

    Raises:
        ImportError, OSError, ValueError: saying what cannot be loaded.
    """
    import torch
    from transformers import pipeline

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads is {threads}; it is at least 1")
        torch.set_num_threads(threads)
    return pipeline("ccr-retrieval", model=model, **options)


__all__ = ["load_pipeline"]
