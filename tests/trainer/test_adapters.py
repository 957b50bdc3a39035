"""Adapters: what is new learns in full, the temperature too; saving, merging, resuming, pieces change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ccrk import CCRkForPreTraining, CCRkModel, CCRkTrainer, CCRkTrainingArguments
from ccrk.trainer.adapters import CCRkPeftModel, adapted_layers, add_adapters, plain_model

# a tower with attention, so that both presets find something in it
SWIN = {
    "architecture": "swin_base_patch4_window7_224",
    "image_size": 32,
    "model_args": {"window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]},
}


@pytest.fixture
def make_swin(make_model):
    """Equal models with a Swin for an image tower and with dropout."""

    def make(model_class=CCRkForPreTraining, **fields):
        config = make_model(text={"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}).config.to_dict()
        torch.manual_seed(0)
        return model_class(type(make_model().config).from_dict({**config, "vision_config": SWIN, **fields}))

    return make


def arguments(folder, **options):
    defaults = {"per_device_train_batch_size": 6, "max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1}
    defaults |= {"report_to": "none", "use_cpu": True, "lora": "all-linear", "lora_rank": 2, "disable_tqdm": True}
    return CCRkTrainingArguments(str(folder), **(defaults | options))


def make_trainer(model, processor, rows, args, **options):
    return CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, **options)


def outputs(model, processor, rows):
    model.eval()
    batch = processor(
        images=[row["image"] for row in rows[:4]],
        text=[[c["text"] for c in row["captions"]] for row in rows[:4]],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        found = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
        inputs = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
        match = model.match(*inputs) if hasattr(model, "match") else model.get_base_model().match(*inputs)
    return torch.cat([found.logits_per_image.flatten(), match.flatten()])


@pytest.mark.parametrize("model_class", [CCRkModel, CCRkForPreTraining])
@pytest.mark.parametrize("kind", ["attention", "all-linear"])
def test_what_learns(tmp_path, rows, processor, make_swin, model_class, kind):
    model = make_swin(model_class)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, processor, rows, arguments(tmp_path, lora=kind))
    trainer.train()
    changed = set()
    for name, value in trainer.model.get_base_model().state_dict().items():
        original = name.replace(".base_layer", "")
        if original in before and not torch.equal(value, before[original]):
            changed.add(original)
    new = ("crossattention.", "_projection.", "itm_head.", "temperature", "mlm_head.")
    expected = {name for name in before if any(part in name for part in new)} - {"mlm_head.decoder.weight"}
    assert changed == expected
    moved = [name for name, p in trainer.model.named_parameters() if "lora_B" in name and p.abs().sum() > 0]
    for part in ("vision_model", "text_model", "fusion_model"):
        assert any(part in name for name in moved), part
    assert any("intermediate" in name or "mlp" in name for name in moved) == (kind == "all-linear")


# peft itself asks the model by a name that transformers is about to drop
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_saved_and_loaded_with_peft_and_merged(tmp_path, rows, processor, make_swin):
    base = make_swin()
    trainer = make_trainer(copy.deepcopy(base), processor, rows, arguments(tmp_path))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    wanted = outputs(trainer.model, processor, rows)
    assert not torch.allclose(wanted, outputs(copy.deepcopy(base), processor, rows), atol=1e-3)
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    temperature = saved["base_model.model.ccrk.temperature"]
    assert temperature == trainer.model.retriever.temperature.detach() != base.retriever.temperature
    for loader in (CCRkPeftModel, PeftModel):
        loaded = loader.from_pretrained(copy.deepcopy(base), tmp_path / "saved")
        assert torch.equal(outputs(loaded, processor, rows), wanted)
        assert not any(p.requires_grad for p in loaded.parameters()) or loader is PeftModel
    loaded = CCRkPeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "saved", is_trainable=True)
    learns = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == learns
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == saved.keys() and all(torch.equal(saved[name], again[name]) for name in saved)
    merged = plain_model(trainer.model)
    assert isinstance(merged, CCRkForPreTraining)
    assert torch.allclose(outputs(merged, processor, rows), wanted, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(outputs(CCRkModel.from_pretrained(tmp_path / "merged"), processor, rows), wanted, atol=1e-5)


def test_resumes_to_the_same_weights(tmp_path, rows, processor, make_swin):
    whole = make_trainer(make_swin(), processor, rows, arguments(tmp_path, max_steps=6, save_steps=3))
    whole.train()
    second = make_trainer(make_swin(), processor, rows, arguments(tmp_path, max_steps=6))
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_best_checkpoint_comes_back_whole(tmp_path, rows, processor, make_swin):
    """With everything that learned in full; the last weights are others."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    args = arguments(tmp_path, metric_for_best_model="mrv", greater_is_better=False, **options)
    trainer = make_trainer(make_swin(), processor, rows, args, eval_dataset=rows)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/adapter_model.safetensors")
    own = dict(trainer.model.named_parameters())
    for name in trainer.model.full_names:
        assert torch.equal(own[name], best[name]), name


def gradients(trainer):
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, inputs)
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("option", [{"mini_batch_size": 2}, {"activation_checkpointing": True}])
def test_a_step_in_pieces_or_with_checkpointing_is_the_same(tmp_path, rows, processor, make_swin, option):
    found = []
    for options in ({}, option):
        trainer = make_trainer(make_swin(), processor, rows, arguments(tmp_path, **options))
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.05)  # at zero, no gradient would reach lora_A
        if trainer.args.activation_checkpointing:
            trainer.model.activation_checkpointing_enable()
        found.append(gradients(trainer))
    plain, other = found
    assert plain.keys() == other.keys()
    assert any("lora_A" in name and "vision" in name for name in plain)
    size = sum(float((value**2).sum()) for value in plain.values()) ** 0.5
    apart = sum(float(((plain[name] - other[name]) ** 2).sum()) for name in plain) ** 0.5
    assert apart / size < 1e-5


def test_evaluates_with_adapters(tmp_path, rows, processor, make_swin):
    trainer = make_trainer(make_swin(), processor, rows, arguments(tmp_path, eval_rerank=3), eval_dataset=rows)
    trainer.train()
    before = trainer.evaluate()
    merged = plain_model(trainer.model)
    again = make_trainer(merged, processor, rows, arguments(tmp_path, lora=None, eval_rerank=3), eval_dataset=rows)
    after = again.evaluate()
    del before["epoch"]
    assert {name: after[name] for name in before} == pytest.approx(before, abs=1e-6)


def test_frozen_parts_and_trained_cross_attention_are_left_alone_or_adapted(tmp_path, rows, processor, make_swin):
    trainer = make_trainer(make_swin(), processor, rows, arguments(tmp_path, freeze="image", matching_weight=0.0))
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert not any("vision_model" in name or "itm_head" in name for name in names)
    assert any("text_model" in name and "lora_" in name for name in names)
    layers = adapted_layers(make_swin(), "attention", "lora")
    assert "ccrk.fusion_model.layer.0.crossattention.self.key" in layers
    assert not any("crossattention" in name for name in adapted_layers(make_swin(), "all-linear"))
    model = add_adapters(make_swin(), crossattention="lora")
    assert not any("crossattention" in name for name in model.full_names)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_errors(tmp_path, rows, processor, make_swin):
    with pytest.raises(ValueError, match="lora is 'all'; it is one of"):
        arguments(tmp_path, lora="all")
    with pytest.raises(ValueError, match="lora_rank is 0"):
        arguments(tmp_path, lora_rank=0)
    with pytest.raises(ValueError, match="finds no layer to adapt"):
        make_trainer(make_swin(), processor, rows, arguments(tmp_path, freeze="projection-only"))
    trainer = make_trainer(make_swin(), processor, rows, arguments(tmp_path))
    trainer.save_model(tmp_path)
    with pytest.raises(Exception, match="adapters of another model|not found in the base model"):
        CCRkPeftModel.from_pretrained(make_swin(CCRkModel), tmp_path)


@pytest.mark.parametrize(
    ("preset", "learning"),
    [
        ("full", {"vision_model", "text_model", "fusion_model", "visual_projection", "itm_head", "temperature"}),
        ("locked-image", {"text_model", "fusion_model", "visual_projection", "itm_head", "temperature"}),
        ("projection-only", {"visual_projection", "text_projection", "temperature"}),
    ],
)
def test_presets_of_freezing(tmp_path, rows, processor, make_swin, preset, learning):
    model = make_swin(CCRkModel)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_trainer(model, processor, rows, arguments(tmp_path, lora=None, freeze=preset)).train()
    changed = {
        name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == learning | {"text_projection"}
