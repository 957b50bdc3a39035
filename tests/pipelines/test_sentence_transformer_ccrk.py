"""A saved model as `SentenceTransformer` loads it: its embeddings are ours."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ccrk import CCRkForPreTraining, CCRkRetrievalPipeline
from ccrk.pipelines.registration import attach_pipeline

ATOL = 1e-6
FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    CCRkRetrievalPipeline(model, processor, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved) -> SentenceTransformer:
    return SentenceTransformer(str(saved), device="cpu")


@pytest.fixture(scope="module")
def text_embeds(model, processor, captions) -> np.ndarray:
    with torch.no_grad():
        return model.get_text_features(**processor(text=captions, return_tensors="pt")).pooler_output.numpy()


@pytest.fixture(scope="module")
def image_embeds(model, processor, photos) -> np.ndarray:
    with torch.no_grad():
        return model.get_image_features(**processor(images=photos, return_tensors="pt")).pooler_output.numpy()


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"normalize_embeddings": True}, {"device": "cpu"}])
def test_texts_and_photos_are_embedded_as_by_the_model(
    loaded, captions, photos, text_embeds, image_embeds, folder, options
):
    np.testing.assert_allclose(loaded.encode(captions, **options), text_embeds, atol=ATOL)
    np.testing.assert_allclose(loaded.encode(photos, **options), image_embeds, atol=ATOL)
    files = sorted(folder.rglob("*.png"), key=lambda file: file.name)
    np.testing.assert_allclose(loaded.encode([str(file) for file in files], **options), image_embeds, atol=ATOL)


def test_single_inputs_and_tensors(loaded, captions, photos, text_embeds, image_embeds):
    assert loaded.encode(captions[1]).shape == (loaded.get_embedding_dimension(),) == (12,)
    one = loaded.encode(photos[2], convert_to_tensor=True)
    assert torch.is_tensor(one)
    np.testing.assert_allclose(one.numpy(), image_embeds[2], atol=ATOL)
    np.testing.assert_allclose(loaded.encode([{"text": captions[0]}])[0], text_embeds[0], atol=ATOL)
    np.testing.assert_allclose(loaded.encode([{"image": photos[0]}])[0], image_embeds[0], atol=ATOL)


@pytest.mark.parametrize("order", [("image", "text"), ("text", "image")])
def test_pairs_are_embedded_as_the_pipeline_embeds_queries_of_both(
    loaded, model, processor, captions, photos, image_embeds, text_embeds, order
):
    given = [
        {key: {"image": photo, "text": caption}[key] for key in order}
        for photo, caption in zip(photos, captions, strict=False)
    ]
    found = loaded.encode(given)
    between = image_embeds[: len(captions)] + text_embeds
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    np.testing.assert_allclose(found, between, atol=ATOL)
    search = CCRkRetrievalPipeline(model, processor, gallery=photos, device="cpu")
    results = search([{"image": photos[3], "text": captions[3]}], top_k=len(photos))[0]
    expected = image_embeds @ found[3]
    assert [r["score"] for r in results] == pytest.approx([expected[r["id"]] for r in results], abs=ATOL)


def test_text_weight(model, processor, captions, photos, image_embeds, text_embeds):
    batch = processor(images=photos[:4], text=captions[:4], return_tensors="pt")
    for weight, expected in ((0.0, image_embeds[:4]), (1.0, text_embeds[:4])):
        with torch.no_grad():
            found = model.get_joint_features(**batch, text_weight=weight).pooler_output
        np.testing.assert_allclose(found.numpy(), expected, atol=ATOL)


def test_photos_and_texts_in_one_list_are_refused(loaded, captions, photos):
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        loaded.encode([photos[0], captions[0]])


def test_similarity_is_the_cosine(loaded, captions, photos, text_embeds, image_embeds):
    assert loaded.similarity_fn_name == "cosine"
    found = loaded.similarity(loaded.encode(captions), loaded.encode(photos))
    np.testing.assert_allclose(found.numpy(), text_embeds @ image_embeds.T, atol=ATOL)


def test_names_of_the_library(loaded, captions):
    assert loaded.modalities == ["text", "image", ("image", "text"), ("text", "image")]
    assert loaded.get_embedding_dimension() == 12 and loaded.supports("image") and not loaded.supports("audio")
    features = loaded.preprocess(captions)
    assert features["input_ids"].shape == features["attention_mask"].shape
    assert type(loaded.transformers_model).__name__ == "CCRkModel"


def test_prompts_are_put_before_texts(saved, captions, model, processor):
    loaded = SentenceTransformer(str(saved), device="cpu", prompts={"query": "two red "})
    with torch.no_grad():
        batch = processor(text=["two red " + caption for caption in captions], return_tensors="pt")
        expected = model.get_text_features(**batch).pooler_output.numpy()
    np.testing.assert_allclose(loaded.encode(captions, prompt_name="query"), expected, atol=ATOL)
    np.testing.assert_allclose(loaded.encode_query(captions), expected, atol=ATOL)


def test_texts_are_cut_off_where_the_processor_cuts_them(model, processor, captions, tmp_path):
    longest = max(captions, key=len)
    assert SentenceTransformer(str(saved_with(model, processor, 7, tmp_path / "a")), device="cpu").max_seq_length == 7
    loaded = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    assert loaded.preprocess([longest])["input_ids"].shape == (1, 7)
    loaded.max_seq_length = 5
    assert loaded.preprocess([longest])["input_ids"].shape == (1, 5)
    # saved to the same folder with another limit: the new one holds
    saved_with(model, processor, 9, tmp_path / "a")
    assert SentenceTransformer(str(tmp_path / "a"), device="cpu").max_seq_length == 9
    assert SentenceTransformer(str(saved_with(model, processor, None, tmp_path / "b"))).max_seq_length == 38


def saved_with(model, processor, max_length: int | None, folder: Path) -> Path:
    before = processor.max_length
    try:
        processor.max_length = max_length
        CCRkRetrievalPipeline(model, processor, device="cpu").save_pretrained(folder)
    finally:
        processor.max_length = before
    return folder


def test_saving_again_keeps_everything(saved, loaded, captions, photos, text_embeds, image_embeds, tmp_path):
    loaded = SentenceTransformer(str(saved), device="cpu", prompts={"query": "find: "})
    loaded.max_seq_length = 20
    loaded.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert again.prompts["query"] == "find: " and again.max_seq_length == 20
    np.testing.assert_allclose(again.encode(photos), image_embeds, atol=ATOL)
    given = [{"image": photos[0], "text": captions[0]}]
    np.testing.assert_allclose(again.encode(given), loaded.encode(given), atol=ATOL)
    # what it does not know of is the pipeline, which is put back without touching the rest
    assert {file.name for file in saved.iterdir()} - {file.name for file in tmp_path.iterdir()} == {"ccr_retrieval.py"}
    attach_pipeline(tmp_path)
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert again.prompts["query"] == "find: " and again.max_seq_length == 20
    found = CCRkRetrievalPipeline(again.transformers_model, again.processor, gallery=photos, device="cpu")
    assert found(photos[1], top_k=1)[0]["id"] == 1


def test_a_pretraining_checkpoint_and_an_attached_folder(build_model, processor, photos, tmp_path):
    model = build_model(CCRkForPreTraining, 3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not any((tmp_path / name).exists() for name in FILES)
    attach_pipeline(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=photos, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(loaded.encode(photos), expected.numpy(), atol=ATOL)


def test_the_files_are_what_the_library_writes_itself(saved, loaded, tmp_path):
    loaded.save_pretrained(str(tmp_path), create_model_card=False)
    for name in FILES:
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (saved, tmp_path))
        if name == "sentence_bert_config.json":
            ours.pop("max_seq_length")  # it keeps that with the tokenizer
        if name == "config_sentence_transformers.json":
            assert theirs.pop("__version__") and theirs.pop("prompts") == {"query": "", "document": ""}
            assert ours.pop("prompts") == {}
        assert ours == theirs


def test_loading_is_quiet(saved, caplog):
    with caplog.at_level(logging.WARNING):
        SentenceTransformer(str(saved), device="cpu")
    assert not caplog.records, caplog.text


def test_broken_photo_is_named(loaded, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png"):
        loaded.encode([str(tmp_path / "broken.png")])


def test_the_model_folder_without_the_files_still_loads_elsewhere(saved, tmp_path):
    from transformers import AutoModel

    shutil.copytree(saved, tmp_path / "plain")
    for name in FILES:
        (tmp_path / "plain" / name).unlink()
    assert type(AutoModel.from_pretrained(tmp_path / "plain")).__name__ == "CCRkModel"
