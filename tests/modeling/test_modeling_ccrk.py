from __future__ import annotations

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForPreTraining

from ccrk import CCRkForPreTraining, CCRkModel
from ccrk.modeling_ccrk import CCRkForPreTrainingOutput, CCRkOutput, summarise
from ccrk.sampling_ccrk import MatchingPairs

BOTH = pytest.mark.parametrize("model_class", [CCRkModel, CCRkForPreTraining])
PAIR_ROWS = ("image", "positive_text", "negative_image", "negative_text")
PAIRS = MatchingPairs(*(torch.tensor(rows) for rows in ([0, 1, 2], [1, 2, 4], [2, 0, 1], [3, 0, 2])))


def close(ours, theirs, atol=2e-6, rtol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


def without_index(batch):
    return {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}


# --- attention ----------------------------------------------------------------------------------------------------


@BOTH
def test_fused_and_eager_attention_agree(model_class, tiny_model, masked_batch, tmp_path, monkeypatch):
    calls = {"fused": 0}
    fused = functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        # the image tower has an attention of its own; ours has 2 heads of 8
        calls["fused"] += query.shape[1] == 2 and query.shape[-1] == 8
        return fused(query, *args, **kwargs)

    tiny_model(model_class).save_pretrained(tmp_path)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    outputs = {}
    for name in ("sdpa", "eager"):
        model = model_class.from_pretrained(tmp_path, attn_implementation=name)
        outputs[name] = model(**masked_batch(), return_loss=True, matching_pairs=PAIRS)
        assert (calls["fused"] > 0) == (name == "sdpa")
        calls["fused"] = 0
    changed = model_class.from_pretrained(tmp_path)
    changed.set_attn_implementation("eager")
    outputs["changed"] = changed(**masked_batch(), return_loss=True, matching_pairs=PAIRS)
    assert calls["fused"] == 0
    changed.set_attn_implementation("sdpa")
    changed(**masked_batch(), return_loss=True, matching_pairs=PAIRS)
    assert calls["fused"] > 0
    for name in outputs["sdpa"]:
        close(outputs["eager"][name], outputs["sdpa"][name])
        assert torch.equal(outputs["changed"][name], outputs["eager"][name])


# --- features -----------------------------------------------------------------------------------------------------


@BOTH
def test_features(model_class, tiny_model, tiny_batch):
    model, batch = tiny_model(model_class), tiny_batch()
    image = model.get_image_features(pixel_values=batch["pixel_values"])
    text = model.get_text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert image.pooler_output.shape == (3, 12) and image.last_hidden_state.shape == (3, 17, 16)
    assert text.pooler_output.shape == (6, 12) and text.last_hidden_state.shape == (6, 9, 16)
    for embeds in (image.pooler_output, text.pooler_output):
        close(embeds.norm(dim=1), torch.ones(len(embeds)))
    output = model(**without_index(batch))
    assert torch.equal(output.image_embeds, image.pooler_output)
    assert torch.equal(output.text_embeds, text.pooler_output)
    close(output.logits_per_image, image.pooler_output @ text.pooler_output.t() / 0.07)
    assert torch.equal(output.logits_per_text, output.logits_per_image.t())
    assert output.loss is None and "loss" not in output


@pytest.mark.parametrize("hidden", [None, 20])
def test_dropout_in_the_projections_is_for_training_alone(tiny_model, hidden):
    plain = tiny_model(projection_hidden_size=hidden)
    model = tiny_model(projection_hidden_size=hidden, projection_dropout=0.5)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    summary = torch.randn(64, model.vision_model.hidden_size)
    expected = plain.visual_projection(summary)
    assert torch.equal(model.visual_projection(summary), expected)
    model.train()
    mean = torch.stack([model.visual_projection(summary) for _ in range(2)])
    assert not torch.allclose(mean[0], mean[1], atol=1e-3)
    if hidden is None:  # of a linear map, dropout keeps the expectation
        many = torch.stack([model.visual_projection(summary[:2]) for _ in range(4000)]).mean(0)
        close(many, expected[:2], atol=0.06)


def test_padding_changes_no_result(tiny_model, masked_batch):
    model, batch = tiny_model(CCRkForPreTraining), masked_batch()
    expected = model(**batch, matching_pairs=PAIRS)
    padded = dict(batch)
    for name, value in (("input_ids", 1), ("attention_mask", 0), ("masked_input_ids", 1), ("mlm_labels", -100)):
        padded[name] = functional.pad(batch[name], (0, 5), value=value)
    output = model(**padded, matching_pairs=PAIRS)
    for name in ("loss", "loss_contrastive", "loss_matching", "loss_mlm", "text_embeds", "logits_per_image"):
        close(output[name], expected[name])
    close(model.match(**without_index(padded)), model.match(**without_index(batch)))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_summaries(pooling):
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    by_hand = {"first": [[0, 1], [6, 7]], "mean": [[1, 2], [8, 9]]}[pooling]
    assert summarise(states, mask, pooling).tolist() == by_hand
    whole = {"first": [[0, 1], [6, 7]], "mean": [[2, 3], [8, 9]]}[pooling]
    assert summarise(states, None, pooling).tolist() == whole


def test_mean_pooling_reaches_both_encoders(tiny_model, tiny_batch):
    batch = tiny_batch()
    first, mean = tiny_model(), tiny_model(text_pooling="mean", fusion_pooling="mean")
    mean.load_state_dict(first.state_dict())
    mask = batch["attention_mask"][..., None].float()
    output = mean(**without_index(batch))
    summary = (output.text_hidden_states * mask).sum(1) / mask.sum(1)
    close(output.text_embeds, functional.normalize(mean.text_projection(summary), dim=-1))
    assert not torch.allclose(output.text_embeds, first(**without_index(batch)).text_embeds, atol=1e-3)
    mixed = tiny_model(fusion_pooling="mean")
    mixed.load_state_dict(first.state_dict())
    assert torch.equal(mixed(**without_index(batch)).text_embeds, first(**without_index(batch)).text_embeds)
    assert not torch.allclose(mixed.match(**without_index(batch)), first.match(**without_index(batch)), atol=1e-4)


def test_projections_with_a_hidden_layer(tiny_model, tiny_batch, tmp_path):
    model = tiny_model(projection_hidden_size=20)
    shapes = [tuple(p.shape) for p in model.visual_projection.parameters()]
    assert shapes == [(20, 16), (20,), (12, 20), (12,)]
    model.save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path)
    batch = without_index(tiny_batch())
    assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)


# --- matching -----------------------------------------------------------------------------------------------------


@BOTH
def test_every_way_to_match_gives_the_same(model_class, tiny_model, tiny_batch):
    model, batch = tiny_model(model_class), without_index(tiny_batch())
    everything = model.match(**batch)
    assert everything.shape == (3, 6, 2)
    assert everything.reshape(-1, 2).std(0).min() > 1e-3
    pairs = torch.tensor([[2, 5], [0, 0], [1, 3], [2, 5], [0, 4]])
    by_pairs = everything[pairs[:, 0], pairs[:, 1]]
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = model.retriever.get_image_states(batch["pixel_values"])
    hidden = model(**batch)
    cached = {
        "image_hidden_states": hidden.image_hidden_states,
        "text_hidden_states": hidden.text_hidden_states,
        "attention_mask": batch["attention_mask"],
    }
    close(model.match(**batch, pairs=pairs), by_pairs)
    close(model.match(**batch, pairs=pairs.tolist()), by_pairs)
    close(model.match(**text, image_states=states), everything)
    close(model.match(**cached), everything)
    for batch_size in (1, 4, 1000):
        close(model.match(**batch, batch_size=batch_size), everything)
        close(model.match(**batch, batch_size=batch_size, pairs=pairs), by_pairs)
    for image in range(3):
        for row in range(6):
            length = int(batch["attention_mask"][row].sum())
            one = model.match(batch["pixel_values"][image : image + 1], batch["input_ids"][row : row + 1, :length])
            close(one[0, 0], everything[image, row])


@pytest.mark.parametrize("pair", [[3, 0], [0, 6], [-1, 0], [0, -1]])
def test_pairs_out_of_range(pair, tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="beyond the 3 images and 6 texts"):
        tiny_model().match(**without_index(tiny_batch()), pairs=torch.tensor([[0, 0], pair]))


def test_no_pairs_give_no_logits(tiny_model, tiny_batch):
    empty = torch.zeros(0, 2, dtype=torch.long)
    assert tiny_model().match(**without_index(tiny_batch()), pairs=empty).shape == (0, 2)


# --- losses -------------------------------------------------------------------------------------------------------


def plain_contrastive(logits, index, variant):
    """The loss written as loops over images and texts."""
    num_images, num_texts = logits.shape
    counts = [index.tolist().count(image) for image in range(num_images)]
    images = texts = 0.0
    for image in range(num_images):
        terms = [-(logits[image, t] - logits[image].logsumexp(0)) for t in range(num_texts) if index[t] == image]
        images = images + sum(terms) / counts[image] / num_images
    for t in range(num_texts):
        own = int(index[t])
        term = -(logits[own, t] - logits[:, t].logsumexp(0)) / counts[own]
        texts = texts + term / (num_texts if variant == "official" else num_images)
    return (images + texts) / 2


@BOTH
@pytest.mark.parametrize("variant", ["official", "balanced"])
def test_ragged_losses_equal_the_plain_version(model_class, variant, tiny_model, masked_batch):
    model, batch = tiny_model(model_class, contrastive_variant=variant), masked_batch((2, 1, 3))
    output = model(**batch, return_loss=True, matching_pairs=PAIRS)
    close(output.loss_contrastive, plain_contrastive(output.logits_per_image, batch["image_index"], variant))
    everything = model.match(**without_index(batch)).log_softmax(-1)
    terms = []
    for image, text, other_image, other_text in zip(*(getattr(PAIRS, name) for name in PAIR_ROWS), strict=True):
        terms += [everything[image, text, 1], everything[other_image, text, 0], everything[image, other_text, 0]]
    close(output.loss_matching, -sum(terms) / 9)
    total = output.loss_contrastive + output.loss_matching
    if model_class is CCRkForPreTraining:
        terms = []
        for image, text in zip(PAIRS.image, PAIRS.positive_text, strict=True):
            length = int(batch["attention_mask"][text].sum())
            ids = batch["masked_input_ids"][text : text + 1, :length]
            states = model.ccrk.get_image_states(batch["pixel_values"][image : image + 1])
            logits = model.mlm_head(model.mlm_hidden_states(ids, None, states))[0]
            terms += [-logits[1].log_softmax(0)[batch["mlm_labels"][text, 1]]]
        close(output.loss_mlm, sum(terms) / 3)
        total = total + output.loss_mlm
    close(output.loss, total)


def test_loss_weights(tiny_model, masked_batch):
    batch = masked_batch()
    base = tiny_model(CCRkForPreTraining)
    parts = base(**batch, matching_pairs=PAIRS)
    weighted = tiny_model(CCRkForPreTraining, contrastive_weight=2, matching_weight=0.5, mlm_weight=3)
    output = weighted(**batch, matching_pairs=PAIRS)
    close(output.loss, 2 * parts.loss_contrastive + 0.5 * parts.loss_matching + 3 * parts.loss_mlm)
    for name in ("contrastive", "matching", "mlm"):
        model = tiny_model(CCRkForPreTraining, **{f"{name}_weight": 0})
        output = model(**batch, matching_pairs=PAIRS)
        assert f"loss_{name}" not in output
        others = [parts[f"loss_{other}"] for other in ("contrastive", "matching", "mlm") if other != name]
        close(output.loss, sum(others))


def test_shared_image_ids_reach_the_losses(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch((1, 1, 1))
    plain = model(**batch, return_loss=True)
    ids = torch.tensor([4, 4, 9])
    for _ in range(5):
        shared = model(**batch, image_ids=ids, return_loss=True)
        assert shared.loss_contrastive != plain.loss_contrastive
    with pytest.raises(ValueError, match="at least two images with different ids"):
        model(**batch, image_ids=torch.tensor([4, 4, 4]), return_loss=True)


def test_one_to_one_takes_the_first_text_of_each_image(tiny_model, tiny_batch):
    model, batch = tiny_model(contrastive_variant="one-to-one"), tiny_batch((2, 1, 3))
    output = model(**batch, return_loss=True)
    logits = output.logits_per_image[:, [0, 2, 3]]
    target = torch.arange(3)
    close(
        output.loss_contrastive,
        (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)) / 2,
    )
    shuffled = torch.tensor([5, 2, 0, 4, 1, 3])  # text-major order: the first of each image is now 0, 2 and 5
    mixed = {name: value if name == "pixel_values" else value[shuffled] for name, value in batch.items()}
    logits = output.logits_per_image[:, [0, 2, 5]]
    expected = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)) / 2
    close(model(**mixed, return_loss=True).loss_contrastive, expected)
    with pytest.raises(ValueError, match="'one-to-one' needs a text for every image"):
        model(**{**batch, "image_index": torch.tensor([0, 0, 0, 2, 2, 2])}, return_loss=True)


@BOTH
def test_cached_states_give_the_same_losses(model_class, tiny_model, masked_batch):
    model, batch = tiny_model(model_class), masked_batch()
    expected = model(**batch, return_loss=True, matching_pairs=PAIRS)
    cached = {name: value for name, value in batch.items() if name not in ("pixel_values", "input_ids")}
    cached["image_hidden_states"] = expected.image_hidden_states.detach()
    cached["text_hidden_states"] = expected.text_hidden_states.detach()
    output = model(**cached, return_loss=True, matching_pairs=PAIRS)
    for name in expected:
        assert torch.equal(output[name], expected[name]), name


@BOTH
def test_fewer_matching_images(model_class, tiny_model, masked_batch):
    model, batch = tiny_model(model_class), masked_batch()
    rows = []
    model.retriever.itm_head.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    model(**batch, return_loss=True)
    model(**batch, return_loss=True, matching_images=2)
    model(**batch, return_loss=True, matching_images=50)
    assert rows == [9, 6, 9]


def test_a_part_of_the_pairs_remembers_how_many_there_are():
    part = PAIRS.part(1, 3)
    assert len(part) == 2 and part.total == 3
    for name in PAIR_ROWS:
        assert torch.equal(getattr(part, name), getattr(PAIRS, name)[1:3])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "a loss needs image_index"),
        (torch.tensor([0, 0, 1]), r"shape \(3,\), but there are 6 texts"),
        (torch.tensor([0, 0, 1, 2, 2, 3]), "names image 3, but the batch has 3 images"),
        (torch.tensor([0, 0, 1, 2, 2, -1]), "names image -1, but the batch has 3 images"),
        (torch.tensor([0.0, 0, 1, 2, 2, 2]), "whole numbers, not torch.float32"),
    ],
)
@BOTH
def test_wrong_image_index(model_class, index, message, tiny_model, masked_batch):
    with pytest.raises(ValueError, match=message):
        tiny_model(model_class)(**{**masked_batch(), "image_index": index}, return_loss=True)


@BOTH
def test_missing_inputs(model_class, tiny_model, tiny_batch):
    model, batch = tiny_model(model_class), tiny_batch()
    with pytest.raises(ValueError, match="no images: pass pixel_values"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="no texts: pass input_ids"):
        model(pixel_values=batch["pixel_values"])


def test_masked_texts_are_needed_or_switched_off(tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="needs masked_input_ids and mlm_labels.*mlm_weight=0"):
        tiny_model(CCRkForPreTraining)(**tiny_batch())
    assert tiny_model(CCRkForPreTraining, mlm_weight=0)(**tiny_batch()).loss_mlm is None


def test_a_single_image_cannot_be_matched(tiny_model, tiny_batch):
    with pytest.raises(ValueError, match="at least two images"):
        tiny_model()(**tiny_batch((4,)), return_loss=True)
    model = tiny_model(matching_weight=0)
    assert model(**tiny_batch((4,)), return_loss=True).loss.isfinite()


@BOTH
def test_outputs_as_tuples(model_class, tiny_model, masked_batch):
    model, batch = tiny_model(model_class), masked_batch()
    named = model(**batch, return_loss=True, matching_pairs=PAIRS)
    assert type(named) is (CCRkOutput if model_class is CCRkModel else CCRkForPreTrainingOutput)
    plain = model(**batch, return_loss=True, matching_pairs=PAIRS, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
    for ours, theirs in zip(plain, named.to_tuple(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(plain[0], named.loss)


@pytest.mark.parametrize(("start", "clamped"), [(0.9, 0.5), (1e-5, 0.001), (0.2, 0.2)])
def test_temperature_is_clamped_in_pretraining_only(start, clamped, tiny_model, masked_batch):
    batch = masked_batch()
    for model_class in (CCRkModel, CCRkForPreTraining):
        model = tiny_model(model_class)
        model.retriever.temperature.data.fill_(start)
        model(**without_index(batch))
        assert model.retriever.temperature.item() == pytest.approx(start)
        model(**batch, return_loss=True, matching_pairs=PAIRS)
        expected = clamped if model_class is CCRkForPreTraining else start
        assert model.retriever.temperature.item() == pytest.approx(expected)
    free = tiny_model(CCRkForPreTraining, temperature_range=None)
    free.ccrk.temperature.data.fill_(start)
    free(**batch, matching_pairs=PAIRS)
    assert free.ccrk.temperature.item() == pytest.approx(start)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing, tiny_model, masked_batch):
    model = tiny_model(CCRkForPreTraining).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    model(**masked_batch(), return_loss=True).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # A key's bias moves all scores of a query alike: its true gradient is zero.
    silent = [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("key.bias")]
    assert silent == []


def test_checkpointing_changes_no_gradient(tiny_model, masked_batch):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(
            CCRkForPreTraining, text_config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        )
        model.train()
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**masked_batch(), matching_pairs=PAIRS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, atol=1e-6)


def test_initial_weights(tiny_model):
    model = tiny_model(
        CCRkForPreTraining, temperature_init=0.1, text_config={"hidden_size": 64}, initializer_range=0.02
    )
    retriever = model.ccrk
    assert retriever.temperature.item() == pytest.approx(0.1)
    layer = retriever.fusion_model.layer[0]
    assert layer.crossattention.self.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not layer.crossattention.self.query.bias.any()
    assert torch.equal(layer.crossattention.output.LayerNorm.weight, torch.ones(64))
    bound = 64**-0.5
    for weight in (retriever.text_projection[0].weight, retriever.itm_head[0].weight):
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


# --- saving and loading -------------------------------------------------------------------------------------------


@BOTH
def test_loading_twice_gives_what_was_saved(model_class, tiny_model, tmp_path):
    model = tiny_model(model_class)
    model.save_pretrained(tmp_path)
    for _ in range(2):
        torch.manual_seed(99)
        loaded = model_class.from_pretrained(tmp_path)
        assert not loaded.training
        for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name
        assert loaded.config.to_dict().keys() == model.config.to_dict().keys()


def test_shards(tiny_model, tmp_path):
    model = tiny_model(CCRkForPreTraining)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = CCRkForPreTraining.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_auto_classes_pick_the_models(tiny_model, tmp_path):
    tiny_model(CCRkForPreTraining).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is CCRkModel
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is CCRkForPreTraining
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_ccrk.CCRkModel"


def test_checkpoints_interchange(tiny_model, masked_batch, tmp_path):
    batch = without_index(masked_batch())
    pretraining = tiny_model(CCRkForPreTraining)
    pretraining.save_pretrained(tmp_path / "head")
    base, loading = CCRkModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert torch.equal(base(**batch).logits_per_image, pretraining(**batch).logits_per_image)
    base.save_pretrained(tmp_path / "base")
    again, loading = CCRkForPreTraining.from_pretrained(tmp_path / "base", output_loading_info=True)
    missing = {
        "mlm_head.dense.weight",
        "mlm_head.dense.bias",
        "mlm_head.layer_norm.weight",
        "mlm_head.layer_norm.bias",
    }
    assert missing <= set(loading["missing_keys"]) <= missing | {"mlm_head.bias", "mlm_head.decoder.bias"}
    assert not again.mlm_head.bias.any() and again.mlm_head.decoder.bias is again.mlm_head.bias
    assert again.mlm_head.dense.weight.std() > 0.1
    assert again(**masked_batch()).loss_mlm.isfinite()
    assert torch.equal(again(**batch).logits_per_image, pretraining(**batch).logits_per_image)
    assert again.mlm_head.decoder.weight is again.ccrk.text_model.embeddings.word_embeddings.weight


def test_a_missing_language_head_is_warned_of(tiny_model, tmp_path, capfd):
    import logging

    from transformers.utils import logging as hf_logging

    tiny_model().save_pretrained(tmp_path)
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler, level = Keep(), hf_logging.get_verbosity()
    hf_logging.set_verbosity_warning()
    hf_logging.add_handler(handler)
    try:
        CCRkForPreTraining.from_pretrained(tmp_path)
    finally:
        hf_logging.remove_handler(handler)
        hf_logging.set_verbosity(level)
    assert "mlm_head.dense.weight" in "\n".join(records) + capfd.readouterr().err


@BOTH
@pytest.mark.parametrize(
    "lost",
    [
        "temperature",
        "itm_head.3.bias",
        "text_model.embeddings.word_embeddings.weight",
        "fusion_model.layer.1.crossattention.self.key.weight",
        "vision_model.timm_model.norm.weight",
    ],
)
def test_any_other_missing_weight_is_an_error(model_class, lost, tiny_model, tmp_path):
    tiny_model(model_class).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state[lost if model_class is CCRkModel else f"ccrk.{lost}"]
    save_file(state, file, metadata={"format": "pt"})
    for loader in (model_class, CCRkForPreTraining):
        with pytest.raises(ValueError, match=f"lacks 1 weight.*{lost}"):
            loader.from_pretrained(tmp_path)


def test_a_weight_of_another_shape_is_an_error(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        CCRkModel.from_pretrained(tmp_path, projection_dim=7)


def test_fields_can_be_overridden(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path, contrastive_variant="official", positive_choice="uniform")
    assert (loaded.config.contrastive_variant, loaded.config.positive_choice) == ("official", "uniform")


@BOTH
def test_bfloat16(model_class, tiny_model, masked_batch, tmp_path):
    model, batch = tiny_model(model_class), masked_batch()
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    half = {**batch, "pixel_values": batch["pixel_values"].bfloat16()}
    output = loaded(**half, return_loss=True, matching_pairs=PAIRS)
    expected = model(**batch, return_loss=True, matching_pairs=PAIRS)
    torch.testing.assert_close(output.image_embeds.float(), expected.image_embeds, atol=0.05, rtol=0)
    torch.testing.assert_close(output.loss.float(), expected.loss, atol=0.3, rtol=0)


def test_device_map(tiny_model, tiny_batch, tmp_path):
    model, batch = tiny_model(), without_index(tiny_batch())
    model.save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path, device_map="cpu")
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)


def test_resized_embeddings_stay_tied(tiny_model, masked_batch, tmp_path):
    model = tiny_model(CCRkForPreTraining)
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(57)
    words = model.ccrk.text_model.embeddings.word_embeddings
    assert model.mlm_head.decoder.weight is words.weight and words.weight.shape == (57, 16)
    assert torch.equal(words.weight[:50], old)
    assert model.mlm_head.bias.shape == (57,) and model.mlm_head.decoder.bias is model.mlm_head.bias
    assert model.config.text_config.vocab_size == 57
    model(**masked_batch(), matching_pairs=PAIRS).loss.backward()
    model.save_pretrained(tmp_path)
    loaded = CCRkForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.mlm_head.decoder.weight, words.weight)
    base = tiny_model()
    base.resize_token_embeddings(57)
    assert base.text_model.embeddings.word_embeddings.weight.shape == (57, 16)


def test_signatures_name_the_vocabulary_of_a_batch():
    names = {"pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "return_loss"}
    assert names <= set(inspect.signature(CCRkModel.forward).parameters)
    names |= {"masked_input_ids", "mlm_labels"}
    assert names <= set(inspect.signature(CCRkForPreTraining.forward).parameters)


def test_padding_shared_by_all_masked_texts_costs_nothing_and_changes_nothing(tiny_model, masked_batch):
    model, batch = tiny_model(CCRkForPreTraining), masked_batch()
    expected = model(**batch, return_loss=True, matching_pairs=PAIRS).loss_mlm
    for name, filler in (("input_ids", 1), ("masked_input_ids", 1), ("attention_mask", 0), ("mlm_labels", -100)):
        batch[name] = functional.pad(batch[name], (0, 3), value=filler)
    lengths = []
    model.ccrk.fusion_model.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    close(model(**batch, return_loss=True, matching_pairs=PAIRS).loss_mlm, expected)
    assert max(lengths) <= batch["input_ids"].shape[1] - 3
