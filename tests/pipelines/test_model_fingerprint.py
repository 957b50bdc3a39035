"""Fingerprints: equal for what makes equal vectors however it was loaded, different for anything else."""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoProcessor

from ccrk import CCRkForPreTraining, CCRkImageProcessor, CCRkModel, CCRkProcessor
from ccrk.pipelines.model_fingerprint import embedding_fingerprint, states_name


def test_saved_and_loaded_is_the_same(model, processor, photos, captions, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    before = embedding_fingerprint(model, processor)
    processor(images=photos[:2], text=captions, return_tensors="pt", padding=True)  # leaves its mark on a tokenizer
    loaded = AutoProcessor.from_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        other = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        assert before.differences(embedding_fingerprint(other, loaded)) == []
        assert before.differences(embedding_fingerprint(other, processor)) == []
        assert states_name(other, loaded) == states_name(model, processor)
    assert before.dimension == 12 and before.normalised
    assert embedding_fingerprint(other, loaded).model == str(tmp_path)


def test_pretraining_model_counts_as_its_retriever(build_model, processor):
    model = build_model(CCRkForPreTraining)
    assert embedding_fingerprint(model, processor).differences(embedding_fingerprint(model.ccrk, processor)) == []


def test_weights_that_embeddings_depend_on_count(build_model, processor):
    model = build_model(CCRkModel)
    before, states = embedding_fingerprint(model, processor), states_name(model, processor)
    with torch.no_grad():
        model.fusion_model.layer[0].output.dense.weight += 1
        model.itm_head[0].weight += 1
    assert before.differences(embedding_fingerprint(model, processor)) == []
    with torch.no_grad():
        model.text_projection[0].bias[3] += 0.1
    assert "revision" in before.differences(embedding_fingerprint(model, processor))[0]
    assert states_name(model, processor) == states
    with torch.no_grad():
        next(model.vision_model.parameters()).view(-1)[0] += 0.1
    assert states_name(model, processor) != states


def test_preprocessing_counts(model, processor):
    before = embedding_fingerprint(model, processor)
    images = CCRkImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3)
    for other in (
        CCRkProcessor(images, processor.tokenizer),
        CCRkProcessor(processor.image_processor, processor.tokenizer, clean_text=True),
    ):
        assert "preprocessing" in before.differences(embedding_fingerprint(model, other))[0]
