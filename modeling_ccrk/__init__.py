"""CCRk: cross-lingual cross-modal retrieval. Photos found by captions and captions by photos, in any language.

Importing `ccrk` registers its classes with transformers (`AutoModel`, `AutoProcessor`, `pipeline("ccr-retrieval")`).
Everything else is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> module that holds it
_LAZY = {
    "CCRkConfig": "configuration_ccrk",
    "CCRkVisionConfig": "configuration_ccrk",
    "CCRkModel": "modeling_ccrk",
    "CCRkForPreTraining": "modeling_ccrk",
    "CCRkOutput": "modeling_ccrk",
    "CCRkForPreTrainingOutput": "modeling_ccrk",
    "CCRkImageStates": "text_layers_ccrk",
    "CCRkImageProcessor": "image_processing_ccrk",
    "CCRkProcessor": "processing_ccrk",
    "CCRkRetrievalPipeline": "pipelines.ccr_retrieval",
    "CCRkTrainer": "trainer.trainer_ccrk",
    "CCRkTrainingArguments": "trainer.arguments_ccrk",
    "CCRkDataCollator": "trainer.collator_ccrk",
}

if TYPE_CHECKING:
    from .configuration_ccrk import CCRkConfig, CCRkVisionConfig
    from .image_processing_ccrk import CCRkImageProcessor
    from .modeling_ccrk import CCRkForPreTraining, CCRkForPreTrainingOutput, CCRkModel, CCRkOutput
    from .processing_ccrk import CCRkProcessor
    from .text_layers_ccrk import CCRkImageStates


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def _register() -> None:
    """Registers with transformers. By name, because the core imports no other room."""
    importlib.import_module(".registration_ccrk", __name__)
    importlib.import_module(".pipelines.registration", __name__)


_register()

__all__ = ["__version__", *_LAZY]
