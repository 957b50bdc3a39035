"""A tiny random model with a real tokenizer, and photos that differ; shared by the tests that need a whole model."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ccrk import CCRkConfig, CCRkForPreTraining, CCRkImageProcessor, CCRkProcessor

CAPTIONS = [
    "a dog in the snow",
    "ein Hund im Schnee",
    "two red boats on a quiet lake",
    "un chat noir",
    "three people walk along a very long street in the rain",
    "a green tree",
    "zwei rote Boote",
    "the sun",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
IMAGE_SIZE = 32


def build_processor() -> CCRkProcessor:
    """A processor whose tokenizer is trained on `CAPTIONS`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=38,
    )
    assert wrapped.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    return CCRkProcessor(CCRkImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}), wrapped)


def build_model(vocab_size: int, model_class=CCRkForPreTraining, seed: int = 0):
    """A tiny model in evaluation mode; its weights start large enough that outputs tell inputs apart."""
    torch.manual_seed(seed)
    config = CCRkConfig(
        vision_config={
            "architecture": "swin_base_patch4_window7_224",
            "image_size": IMAGE_SIZE,
            "model_args": {"window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]},
        },
        text_config={
            "model_type": "xlm-roberta",
            "vocab_size": vocab_size,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 40,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "initializer_range": 0.5,
        },
        num_text_layers=2,
        num_fusion_layers=2,
        projection_dim=12,
        initializer_range=0.5,
    )
    return model_class(config).eval()


def build_photos(count: int = 12, seed: int = 0) -> list[Image.Image]:
    """Photos of coloured blocks, in different sizes."""
    random = np.random.default_rng(seed)
    blocks = [Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(count)]
    return [block.resize((40 + 3 * i, 60 - 2 * i), Image.Resampling.NEAREST) for i, block in enumerate(blocks)]
