"""Registers `ccr-retrieval` with transformers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .ccr_retrieval import DEFAULT_MODEL, TASK, CCRkRetrievalPipeline, write_sentence_transformer

PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=CCRkRetrievalPipeline,
    pt_model=AutoModel,
    default={"model": DEFAULT_MODEL},
    type="multimodal",
)


def attach_pipeline(folder: str | Path) -> None:
    """Adds the pipeline to a saved model, for those who load it without this package, or by sentence-transformers.

    Args:
        folder: of a model saved by `save_pretrained`; the pipeline's file is copied there and named in `config.json`,
            and the files that `SentenceTransformer` reads are put beside it.
    """
    shutil.copy(Path(sys.modules[CCRkRetrievalPipeline.__module__].__file__), folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["custom_pipelines"] = CCRkRetrievalPipeline.custom_pipelines()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_sentence_transformer(folder)
