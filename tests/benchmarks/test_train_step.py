from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from ccrk import CCRkConfig, CCRkForPreTraining
from ccrk.sampling_ccrk import MatchingPairs

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"
TEXT = {
    "model_type": "xlm-roberta",
    "vocab_size": 90,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 42,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
VISION = {
    "architecture": "swin_base_patch4_window7_224",
    "image_size": 32,
    "model_args": {"window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "drop_path_rate": 0.0},
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"num_text_layers": 2, "num_fusion_layers": 2, "projection_dim": 12, "initializer_range": 0.2}
    config = CCRkConfig(vision_config=VISION, text_config=dict(TEXT), contrastive_variant="official", **sizes)
    return CCRkForPreTraining(config).train()


def test_batches_differ_in_padding_only(script, model):
    short, padded = (script.make_batch(model.config, 3, length, 3, 4) for length in (None, 40))
    length = short["input_ids"].shape[1]
    assert length == short["attention_mask"].sum(1).max() <= 40 == padded["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "masked_input_ids", "mlm_labels"):
        assert torch.equal(padded[name][:, :length], short[name])
    assert not padded["attention_mask"][:, length:].any() and (padded["mlm_labels"][:, length:] == -100).all()
    assert (padded["mlm_labels"] != -100).sum(1).max() <= script.MASK_SLOTS


def test_lengths_are_those_of_captions(script):
    mean = sum(length * count for length, count in script.LENGTHS.items()) / sum(script.LENGTHS.values())
    assert 17 < mean < 20 and max(script.LENGTHS) == script.PADDED_LENGTH


def test_the_twin_computes_what_the_model_computes(script, model):
    pairs = ([1, 5, 11], [2, 0, 1], [9, 0, 6])
    rows = MatchingPairs(torch.arange(3), *(torch.tensor(part) for part in pairs))
    batch = script.make_batch(model.config, 3, None, 3, 4)
    ours = model(**batch, matching_pairs=rows)
    ours.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.config.text_config._attn_implementation = "eager"
    twin = script.twin_losses(model, script.make_batch(model.config, 3, 40, 3, 4), pairs)
    for name, loss in twin.items():
        torch.testing.assert_close(ours[f"loss_{name}"], loss, atol=1e-5, rtol=1e-5)
    sum(twin.values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_the_twin_draws_no_own_text_or_image(script):
    logits = torch.randn(3, 12) * 5
    for _ in range(20):
        positives, images, texts = script.twin_sampling(logits, 4)
        for image in range(3):
            assert positives[image] // 4 == image and images[image] != image and texts[image] // 4 != image


def test_twin_adamw_by_hand(script):
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = script.TwinAdamW([{"params": [parameter], "weight_decay": 0.5}], 0.1, (0.9, 0.98), 1e-8)
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    # the first step moves by the learning rate; then the result decays by 0.1 * 0.5
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.9 * 0.95]))


@pytest.mark.parametrize("variant", ["twin", "ours", "ours-bf16"])
def test_every_variant_learns(script, model, variant):
    batch = script.make_batch(model.config, 0, 40 if variant == "twin" else None, 3, 4)
    groups = [{"params": list(model.parameters())}]
    optimizer = script.TwinAdamW(groups, 3e-3, (0.9, 0.98), 1e-8) if variant == "twin" else None
    optimizer = optimizer or torch.optim.AdamW(groups, 3e-3, fused=True)
    marks = {}
    losses = [script.train_step(variant, model, optimizer, batch, marks) for _ in range(8)]
    assert min(losses[-3:]) < losses[0] and list(marks) == ["forward", "backward", "clip", "optimizer"]
