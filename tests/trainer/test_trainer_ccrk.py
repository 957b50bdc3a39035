"""The trainer: losses fall, nothing is dropped, cached features are the features, runs resume."""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, default_data_collator

from ccrk import CCRkForPreTraining, CCRkModel, CCRkTrainer, CCRkTrainingArguments
from ccrk.trainer import feature_cache
from ccrk.trainer.feature_cache import FeatureCache


def arguments(tmp_path, **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1}
    return CCRkTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **(defaults | options))


def train(model, processor, rows, args, **options):
    trainer = CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, **options)
    trainer.train()
    return trainer


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_learns_logs_saves_and_evaluates(tmp_path, rows, processor, make_model):
    args = arguments(tmp_path, max_steps=40, per_device_train_batch_size=6, eval_rerank=4)
    trainer = train(make_model(), processor, rows, args, eval_dataset=rows)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"loss_contrastive", "loss_matching", "loss_mlm", "temperature"} <= history[0].keys()
    assert np.mean([e["loss"] for e in history[-5:]]) < np.mean([e["loss"] for e in history[:5]])
    parts = history[0]["loss_contrastive"] + history[0]["loss_matching"] + history[0]["loss_mlm"]
    assert parts == pytest.approx(history[0]["loss"], abs=2e-3)
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_ir@1_worst"] <= metrics["eval_ir@1_mean"] <= metrics["eval_ir@10_mean"] <= 1
    assert {"eval_mrv", "eval_tr@5_de", "eval_ir@1_fr"} <= metrics.keys()
    trainer.save_model()
    assert isinstance(AutoModel.from_pretrained(tmp_path), CCRkModel)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.mask_token_id == 4


def test_a_datasets_dataset_keeps_its_image_column(tmp_path, rows, processor, make_model):
    dataset = datasets.Dataset.from_list(rows)
    assert isinstance(dataset.features["image"], datasets.Image)
    trainer = train(make_model(), processor, dataset, arguments(tmp_path))
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("strategy", ["sequential", "random"])
def test_rows_come_in_the_order_that_was_asked_for(tmp_path, rows, processor, make_model, strategy):
    """The demo's scenes depend on it: each is followed by its twins, which have to meet in a batch."""
    rows = [{**row, "image_id": f"{place:03d}"} for place, row in enumerate((rows * 8)[:16])]
    args = arguments(tmp_path, train_sampling_strategy=strategy, seed=1)
    trainer = CCRkTrainer(model=make_model(), args=args, train_dataset=rows, processing_class=processor)
    read = []
    collate = trainer.data_collator
    trainer.data_collator = lambda batch: read.extend(row["image_id"] for row in batch) or collate(batch)
    trainer.train()
    in_order = [row["image_id"] for row in rows]
    assert sorted(read) == in_order
    assert (read == in_order) == (strategy == "sequential")


def test_accumulated_steps_are_means(tmp_path, rows, processor, make_model):
    """Two accumulated batches give the mean of their gradients, not the sum: losses are batch means."""
    model = make_model(CCRkModel, matching_weight=0.0)
    sizes = {"max_steps": 1, "per_device_train_batch_size": 6, "max_grad_norm": 0.0}
    args = arguments(tmp_path, gradient_accumulation_steps=2, contrastive_variant="official", **sizes)
    trainer = train(model, processor, rows, args)
    logged = next(e["loss"] for e in trainer.state.log_history if "loss" in e)
    assert logged < math.log(6 * 3) * 1.5  # a sum of two would be near twice the loss of one batch


@pytest.mark.parametrize(
    ("preset", "frozen"),
    [("image", ["vision_model"]), ("text", ["text_model"]), ("towers", ["vision_model", "text_model"])],
)
def test_freezing(tmp_path, rows, processor, make_model, preset, frozen):
    model = make_model()
    before = weights(model)
    train(model, processor, rows, arguments(tmp_path, freeze=preset, mlm_weight=0.0))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    for part in ("vision_model", "text_model", "fusion_model", "visual_projection", "itm_head"):
        assert any(part in name for name in changed) == (part not in frozen), part


@pytest.mark.parametrize("frozen", ["towers", "image", "text"])
def test_cached_features_train_as_the_towers_would(tmp_path, rows, processor, make_model, frozen):
    """Frozen towers, once through the cache and once anew each step: the same weights come out."""
    results = []
    for name, cached in (("plain", False), ("cached", True)):
        model = make_model()
        args = arguments(tmp_path / name, freeze=frozen, cache_features=cached, max_steps=6, optim="sgd")
        train(model, processor, rows, args)
        results.append(weights(model))
    for name, value in results[0].items():
        # features are kept in half precision; plain SGD, since Adam turns rounding noise into whole steps
        assert torch.allclose(value, results[1][name], atol=1e-5, rtol=1e-3), name


def test_cache_holds_the_features_and_is_found_again(tmp_path, rows, processor, make_model, monkeypatch):
    model = make_model().eval()
    cache = FeatureCache.build(tmp_path, model, processor, rows, batch_size=5)
    folders = list(tmp_path.iterdir())
    with torch.no_grad():
        for row in (0, 7, 11):
            batch = processor(
                images=rows[row]["image"], text=[c["text"] for c in rows[row]["captions"]], return_tensors="pt"
            )
            image = model.retriever.vision_model(batch["pixel_values"])[0]
            text = model.retriever.text_model(batch["input_ids"], batch["attention_mask"])
            assert torch.allclose(cache.image_states(row), image, atol=2e-3, rtol=1e-3)
            for place, length in enumerate(batch["attention_mask"].sum(1)):
                assert torch.allclose(cache.text_states(row, place), text[place, :length], atol=4e-3, rtol=1e-3)
                assert cache.token_ids(row, place).tolist() == batch["input_ids"][place, :length].tolist()
    model.retriever.vision_model.forward = None  # computing again would fail
    monkeypatch.setattr(feature_cache, "_write_layout", None)  # and so would tokenizing again
    FeatureCache.build(tmp_path, model, processor, rows, batch_size=5)
    monkeypatch.undo()
    del model.retriever.vision_model.forward
    FeatureCache.build(tmp_path, model, processor, rows[:6], batch_size=5)
    assert len(list(tmp_path.iterdir())) == len(folders) + 1


def test_too_few_rows_are_seen_before_features_are_computed(tmp_path, rows, processor, make_model):
    options = {"freeze": "towers", "cache_features": True, "dataloader_drop_last": True}
    args = arguments(tmp_path, per_device_train_batch_size=len(rows) + 1, **options)
    with pytest.raises(ValueError, match="rows are not enough for one step"):
        train(make_model(), processor, rows, args)
    assert not (tmp_path / "feature_cache").exists()


def test_a_cache_needs_the_collator_that_reads_it(tmp_path, rows, processor, make_model):
    args = arguments(tmp_path, freeze="towers", cache_features=True, max_steps=1)
    trainer = CCRkTrainer(
        model=make_model(),
        args=args,
        train_dataset=rows,
        processing_class=processor,
        data_collator=default_data_collator,
    )
    with pytest.raises(ValueError, match="data_collator is a function"):
        trainer.train()


def test_a_cache_goes_on_where_it_was_cut_off(tmp_path, rows, processor, make_model):
    model = make_model().eval()
    whole = FeatureCache.build(tmp_path, model, processor, rows, batch_size=2)
    expected = np.array(whole.images), np.array(whole.texts)
    folder = whole.folder
    del whole
    (folder / "progress.json").write_text(json.dumps({"images": 4, "texts": 6}))
    images, texts = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("images", "texts"))
    images[4:] = 0
    order = np.argsort(np.diff(np.load(folder / "offsets.npy")), kind="stable")
    offsets = np.load(folder / "offsets.npy")
    for text in order[6:]:
        texts[offsets[text] : offsets[text + 1]] = 0
    images.flush(), texts.flush()
    again = FeatureCache.build(tmp_path, model, processor, rows, batch_size=2)
    assert np.array_equal(again.images, expected[0])
    assert np.allclose(again.texts, expected[1], atol=1e-3)


def test_resumes_to_the_same_weights(tmp_path, rows, processor, make_model):
    whole = train(make_model(), processor, rows, arguments(tmp_path / "a", max_steps=6, save_steps=3))
    model = make_model()
    trainer = CCRkTrainer(
        model=model, args=arguments(tmp_path / "a", max_steps=6), train_dataset=rows, processing_class=processor
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for name, value in weights(whole.model).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_negatives_ramp_up(tmp_path, rows, processor, make_model):
    args = arguments(tmp_path, negative_ramp=0.5, max_steps=8)
    trainer = CCRkTrainer(model=make_model(), args=args, train_dataset=rows, processing_class=processor)
    trainer.state.max_steps = 8
    values = []
    for step in range(8):
        trainer.state.global_step = step
        values.append(trainer.negative_hardness())
    assert values == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_new_layers_have_their_own_rate_and_no_decay_where_none_belongs(tmp_path, rows, processor, make_model):
    args = arguments(tmp_path, new_layer_multiplier=2.0, weight_decay=0.1)
    model = make_model()
    trainer = CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
    names = {id(p): n for n, p in model.named_parameters()}
    placed = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            placed[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert placed.keys() == dict(model.named_parameters()).keys()
    assert placed["ccrk.temperature"] == (2e-3, 0.0)
    assert placed["ccrk.itm_head.0.weight"] == (2e-3, 0.1)
    assert placed["ccrk.itm_head.1.weight"] == (2e-3, 0.0)
    assert placed["ccrk.fusion_model.layer.0.crossattention.self.key.weight"] == (2e-3, 0.1)
    assert placed["ccrk.fusion_model.layer.0.attention.self.key.bias"] == (1e-3, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": "everything"}, "freeze is 'everything'"),
        ({"cache_features": True}, "cache_features needs a frozen tower"),
        ({"remove_unused_columns": True}, "would drop the image column"),
        ({"texts_per_image": 0}, "texts_per_image is 0"),
        ({"matching_images": 1}, "matching_images is 1"),
        ({"negative_ramp": 2.0}, "negative_ramp is 2.0"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'"),
    ],
)
def test_arguments_that_do_not_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_broken_weights_stop_the_training(tmp_path, rows, processor, make_model):
    model = make_model()
    model.ccrk.visual_projection[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        train(model, processor, rows, arguments(tmp_path))


def test_a_processor_is_needed(tmp_path, rows, make_model):
    with pytest.raises(ValueError, match="processing_class=CCRkProcessor"):
        CCRkTrainer(model=make_model(), args=arguments(tmp_path), train_dataset=rows)


def test_matching_some_images_costs_less_and_stays_in_the_batch(rows, processor, make_model):
    from ccrk.trainer.collator_ccrk import CCRkDataCollator

    model = make_model(CCRkModel)
    batch = CCRkDataCollator(processor)(rows)
    seen = []
    model.fusion_model.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape[0]))
    for count in (None, 3):
        model(**batch, return_loss=True, matching_images=count).loss.backward()
    assert seen == [36, 9]
    assert isinstance(make_model(), CCRkForPreTraining)


def test_parameters_frozen_by_name(tmp_path, rows, processor, make_model):
    model = make_model()
    before = weights(model)
    train(model, processor, rows, arguments(tmp_path, freeze_parameters=[r"stages[.]0[.]", "text_model"]))
    for name, tensor in model.state_dict().items():
        if "stages.0." in name or "text_model" in name:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.state_dict()["ccrk.itm_head.0.weight"], before["ccrk.itm_head.0.weight"])
    for pattern, message in (("no such name", "found in no parameter's name"), ("(", "not a regular expression")):
        with pytest.raises(ValueError, match=message):
            train(make_model(), processor, rows, arguments(tmp_path, freeze_parameters=[pattern]))
