"""Faster passes: equal to plain ones, or as close as their numbers allow."""

from __future__ import annotations

import pytest
import torch

from ccrk import CCRkForPreTraining, CCRkModel
from ccrk.inference_ccrk import fast_passes
from ccrk.pipelines.fast_encoders import compile_encoders, length_batches, token_lengths


@pytest.fixture(scope="module")
def batch(processor, photos, captions):
    return dict(processor(images=photos[:3], text=captions, return_tensors="pt", padding=True))


def features(model, batch) -> list[torch.Tensor]:
    with torch.inference_mode():
        image = model.get_image_features(batch["pixel_values"]).pooler_output
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        return [image.float(), text.float(), model.retriever.match(**batch).float()]


@pytest.mark.parametrize("model_class", [CCRkModel, CCRkForPreTraining])
def test_fast_passes(build_model, batch, model_class):
    model = build_model(model_class)
    plain = features(model, batch)
    with fast_passes(model):
        fast = features(model, batch)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with fast_passes(model, bf16=True):
        half = features(model, batch)
    for ours, theirs in zip(half, plain, strict=True):
        assert 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features(model, batch), plain, strict=True))


@pytest.mark.slow
def test_compiled_encoders(build_model, batch):
    model = build_model()
    plain, names = features(model, batch), list(model.state_dict())
    assert compile_encoders(model) is model and list(model.state_dict()) == names
    for rows in (slice(0, 8), slice(0, 5), slice(3, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        part["pixel_values"] = batch["pixel_values"][:2]
        if rows.stop != 8:
            part["input_ids"], part["attention_mask"] = part["input_ids"][:, :7], part["attention_mask"][:, :7]
        with torch.inference_mode():
            ours = model.get_text_features(part["input_ids"], part["attention_mask"]).pooler_output
            images = model.get_image_features(part["pixel_values"]).pooler_output
        torch.testing.assert_close(images, plain[0][:2], atol=1e-5, rtol=1e-5)
        if rows.stop == 8:
            torch.testing.assert_close(ours, plain[1][rows], atol=1e-5, rtol=1e-5)
        assert torch.isfinite(ours).all()


def test_only_encoders_are_compiled(model):
    with pytest.raises(ValueError, match="no encoder 'mlm_head'"):
        compile_encoders(model, ["mlm_head"])


def test_batches_of_like_lengths():
    assert length_batches([5, 1, 5, 2, 1], 2) == [[1, 4], [3, 0], [2]]
    assert length_batches([], 2) == []


def test_token_lengths(processor, captions):
    lengths = token_lengths(processor, captions)
    assert lengths == [sum(processor(text=[one], return_tensors="pt")["attention_mask"][0]).item() for one in captions]
    assert token_lengths(processor, ["a dog " * 100]) == [38]
