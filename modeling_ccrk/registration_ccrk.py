"""Registers CCRk's classes with transformers, and marks those that a saved model carries as remote code."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, AutoProcessor

from .configuration_ccrk import CCRkConfig
from .image_processing_ccrk import CCRkImageProcessor
from .modeling_ccrk import CCRkForPreTraining, CCRkModel
from .processing_ccrk import CCRkProcessor

AutoConfig.register("ccrk", CCRkConfig, exist_ok=True)
AutoModel.register(CCRkConfig, CCRkModel, exist_ok=True)
AutoModelForPreTraining.register(CCRkConfig, CCRkForPreTraining, exist_ok=True)
AutoImageProcessor.register(CCRkConfig, image_processor_classes={"torchvision": CCRkImageProcessor}, exist_ok=True)
AutoProcessor.register(CCRkConfig, CCRkProcessor, exist_ok=True)

# Saving any of these writes the code beside the weights, so that a process without the package can load them.
CCRkConfig.register_for_auto_class()
CCRkModel.register_for_auto_class("AutoModel")
CCRkForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CCRkImageProcessor.register_for_auto_class()
CCRkProcessor.register_for_auto_class()
