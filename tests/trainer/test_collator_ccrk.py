"""Batches from rows."""

from __future__ import annotations

import random

import pytest
import torch

from ccrk.masking_ccrk import MaskingRules
from ccrk.trainer.collator_ccrk import CCRkDataCollator, choose_captions

CAPTIONS = [{"language": tag, "text": tag} for tag in ("en", "de", "en", "fr", "zh")]


def test_one_caption_in_each_language():
    for _ in range(20):
        places = choose_captions(CAPTIONS, None, None)
        assert [CAPTIONS[p]["language"] for p in places] == ["de", "en", "fr", "zh"]
    assert {choose_captions(CAPTIONS, ["en"], None)[0] for _ in range(50)} == {0, 2}


def test_sampled_languages_are_distinct_and_all_occur():
    seen = set()
    for seed in range(40):
        random.seed(seed)
        places = choose_captions(CAPTIONS, ["zh", "en", "de"], 2)
        tags = [CAPTIONS[p]["language"] for p in places]
        assert len(set(tags)) == 2
        assert tags == sorted(tags, key=["zh", "en", "de"].index)
        seen |= set(tags)
    assert seen == {"zh", "en", "de"}


def test_ragged_batch(rows, processor):
    collator = CCRkDataCollator(processor, masking=MaskingRules(4, 80))
    batch = collator(rows[:4])
    assert batch["image_index"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    masked = batch["mlm_labels"] != -100
    assert masked.any(1).all()
    assert torch.equal(batch["mlm_labels"][masked], batch["input_ids"][masked])
    assert torch.equal(batch["masked_input_ids"][~masked], batch["input_ids"][~masked])
    assert "labels" not in batch


def test_equal_ids_are_shared(rows, processor):
    twice = [rows[0], rows[1], {**rows[2], "image_id": "photo0"}]
    first, second, third = CCRkDataCollator(processor)(twice)["image_ids"].tolist()
    assert first == third != second


def test_weights_of_captions_and_of_their_sources(rows, processor):
    captions = [
        {"language": "en", "text": "a dog"},
        {"language": "de", "text": "ein Hund", "source": "machine"},
        {"language": "fr", "text": "un chien", "source": "machine", "weight": 0.5},
        {"language": "ja", "text": "inu", "source": "human", "weight": 2},
    ]
    rows = [{**rows[0], "captions": captions}]
    # the order of captions is drawn, so they are told apart by their weights, and the English one by its mark
    plain = CCRkDataCollator(processor)(rows)["text_weights"]
    assert sorted(plain.tolist()) == [0.5, 1.0, 1.0, 2.0]
    batch = CCRkDataCollator(processor, source_weights={"machine": 0.25, "human": 3}, guide=True)(rows)
    assert sorted(batch["text_weights"].tolist()) == [0.125, 0.25, 1.0, 6.0]
    assert batch["text_weights"][batch["is_guide"]].tolist() == [1.0]


def test_errors_name_the_row(rows, processor):
    with pytest.raises(ValueError, match="'photo5' has no 'image'"):
        CCRkDataCollator(processor)([{k: v for k, v in rows[5].items() if k != "image"}])
    with pytest.raises(ValueError, match="'photo3' has no caption in fr"):
        CCRkDataCollator(processor, ["fr"], on_broken="raise")([rows[3]])
