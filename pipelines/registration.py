"""Registers `ccr-retrieval` with transformers, and finds its default model when none is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file

from .ccr_retrieval import DEFAULT_MODEL, TASK, CCRkRetrievalPipeline


class DefaultModel(tuple):
    """Name and revision of the default model; whoever takes them learns first whether the model can be reached.

    `pipeline(task)` without a model unpacks these two and then loads, through several libraries of which each reports
    its own failure. This is the one place before that of which we are told.
    """

    def __iter__(self) -> Iterator[str]:
        name, revision = super().__iter__()
        try:
            cached_file(name, "config.json", revision=revision)
        except OSError:
            raise OSError(
                f"no model was named, and the default one, '{name}', is neither on this machine nor can it be reached "
                "now. Name a model: pipeline('ccr-retrieval', model=...) takes a folder or a Hub id, and `ccrk train` "
                "and `ccrk demo` make such folders. Or go online, and check that HF_HUB_OFFLINE is not set"
            ) from None
        return iter((name, revision))


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=CCRkRetrievalPipeline,
    pt_model=AutoModel,
    default={"model": DefaultModel(DEFAULT_MODEL)},
    type="multimodal",
)


def attach_pipeline(folder: str | Path) -> None:
    """Adds the pipeline to a saved model, for those who load it without this package.

    Args:
        folder: of a model saved by `save_pretrained`; the pipeline's file is copied there and named in `config.json`.
    """
    for name, content in CCRkRetrievalPipeline.files_beside(folder).items():
        (Path(folder) / name).write_bytes(content)
