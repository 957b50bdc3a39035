"""Tiny models, batches and towers that the tests of the core share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import BertConfig, BertForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

from ccrk import CCRkConfig, CCRkModel

VOCAB = 50
TEXT = {
    "model_type": "xlm-roberta",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# a Swin of two stages on 32 px: a grid of 8 x 8 with windows of 4 (the second block is a shifted one), then 4 x 4
VISION = {
    "architecture": "swin_base_patch4_window7_224",
    "image_size": 32,
    "model_args": {"window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]},
}


@pytest.fixture
def tiny_config() -> Callable[..., CCRkConfig]:
    """Builds a tiny configuration; weights start large enough that outputs tell inputs apart."""

    def build(**fields) -> CCRkConfig:
        text = {**TEXT, "initializer_range": 0.2, **fields.pop("text_config", {})}
        vision = fields.pop("vision_config", VISION)
        sizes = {"num_text_layers": 2, "num_fusion_layers": 2, "projection_dim": 12, "initializer_range": 0.2}
        return CCRkConfig(vision_config=dict(vision), text_config=text, **{**sizes, **fields})

    return build


@pytest.fixture
def tiny_model(tiny_config) -> Callable[..., CCRkModel]:
    """Builds a tiny model in evaluation mode from a class and fields of its configuration."""

    def build(model_class=CCRkModel, seed: int = 0, **fields):
        torch.manual_seed(seed)
        return model_class(tiny_config(**fields)).eval()

    return build


@pytest.fixture
def tiny_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Builds a batch: `counts` are the texts of each image, and lengths differ from text to text."""

    def build(counts=(2, 1, 3), size: int = 32, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        num_texts = sum(counts)
        lengths = [length - 2 * (row % 3) for row in range(num_texts)]
        mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(3, VOCAB, (num_texts, length), generator=generator)
        ids[:, 0] = 0
        ids[torch.arange(num_texts), mask.sum(1) - 1] = 2
        return {
            "pixel_values": torch.randn(len(counts), 3, size, size, generator=generator),
            "input_ids": ids.masked_fill(mask == 0, 1),
            "attention_mask": mask,
            "image_index": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        }

    return build


@pytest.fixture
def masked_batch(tiny_batch) -> Callable[..., dict[str, torch.Tensor]]:
    """A batch with one masked token in every text, at position 1."""

    def build(*args, **kwargs) -> dict[str, torch.Tensor]:
        batch = tiny_batch(*args, **kwargs)
        masked, labels = batch["input_ids"].clone(), torch.full_like(batch["input_ids"], -100)
        labels[:, 1], masked[:, 1] = masked[:, 1], VOCAB - 1
        return {**batch, "masked_input_ids": masked, "mlm_labels": labels}

    return build


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory) -> Path:
    """A ViT of two blocks at 32 px as timm saves it."""
    folder = tmp_path_factory.mktemp("timm")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments)
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def xlmr_folder(tmp_path_factory) -> Path:
    """An XLM-R of four layers with its language head, as transformers saves it."""
    folder = tmp_path_factory.mktemp("xlmr")
    torch.manual_seed(2)
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**{**TEXT, "num_hidden_layers": 4, "initializer_range": 0.2}))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A BERT of three layers with its language head, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    fields = {**TEXT, "num_hidden_layers": 3, "initializer_range": 0.2, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    model = BertForMaskedLM(BertConfig(**{k: v for k, v in fields.items() if k != "model_type"}))
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    return folder
