"""A tiny model, processor and rows for tests of training, in this process or in one that a test starts."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from ccrk import CCRkConfig, CCRkForPreTraining, CCRkImageProcessor, CCRkProcessor

WORDS = [
    "red",
    "blue",
    "green",
    "dog",
    "cat",
    "boat",
    "rot",
    "blau",
    "Hund",
    "Katze",
    "Boot",
    "rouge",
    "bleu",
    "chien",
    "chat",
    "bateau",
]


def make_rows(count: int = 12) -> list[dict]:
    """Rows of which every third has no French and every fourth two English captions."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        captions = [{"language": "en", "text": f"{WORDS[i % 6]} {WORDS[(i * 5 + 1) % 6]} {i}"}]
        captions.append({"language": "de", "text": f"{WORDS[6 + i % 5]} {i}"})
        if i % 3:
            captions.append({"language": "fr", "text": f"{WORDS[11 + i % 5]} {i}"})
        if i % 4 == 0:
            captions.append({"language": "en", "text": f"another {WORDS[i % 6]} {i}"})
        image = Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))
        made.append({"image": image, "image_id": f"photo{i}", "captions": captions})
    return made


def make_processor() -> CCRkProcessor:
    """A processor with a tokenizer of a few words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=80, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=30, **names)
    return CCRkProcessor(CCRkImageProcessor(size={"height": 32, "width": 32}), fast)


def make_model(processor, model_class=CCRkForPreTraining, model_args=None, text=None, **fields):
    """Builds equal models: same seed, same weights."""
    torch.manual_seed(0)
    text_config = {
        "model_type": "bert",
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        **(text or {}),
    }
    vision = {
        "architecture": "convnext_atto",
        "image_size": 32,
        "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 2, **(model_args or {})},
    }
    sizes = {"num_text_layers": 1, "num_fusion_layers": 1, "projection_dim": 8}
    return model_class(CCRkConfig(vision_config=vision, text_config=text_config, **sizes, **fields))


class At(TrainerCallback):
    """Does something before a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        """Called by the trainer."""
        if state.global_step == self.step:
            self.action()


def note_used(trainer) -> list[str]:
    """A list that fills with the ids of the rows that a trainer takes steps with."""
    step, used = trainer.training_step, []

    def noting(model, inputs, *given):
        used.extend(inputs["row_ids"])
        return step(model, inputs, *given)

    trainer.training_step = noting
    return used
