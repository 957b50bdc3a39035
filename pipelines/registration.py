"""Registers `ccr-retrieval` with transformers."""

from __future__ import annotations

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .ccr_retrieval import DEFAULT_MODEL, TASK, CCRkRetrievalPipeline

PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=CCRkRetrievalPipeline,
    pt_model=AutoModel,
    default={"model": DEFAULT_MODEL},
    type="multimodal",
)
