"""A step in pieces against the plain one, where the test of distributed steps does not reach."""

from __future__ import annotations

import pytest
import torch

from ccrk import CCRkForPreTraining, CCRkModel
from ccrk.masking_ccrk import MaskingRules
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.gradient_cache import CachedStep, _Rows

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@pytest.fixture
def model_with_dropout(make_model):
    def build(*args, **fields):
        return make_model(*args, model_args={"drop_path_rate": 0.3}, text=DROPOUT, **fields).train()

    return build


@pytest.fixture
def batch(processor, rows):
    """Eight rows with masks and keys; what is not for the model taken out."""
    masking = MaskingRules(processor.tokenizer.mask_token_id, len(processor.tokenizer))
    made = CCRkDataCollator(processor, masking=masking, seed=1)(rows[:8])
    return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(make_model, batch, pieces: int = 3, prepare=lambda model: None, **options) -> CachedStep:
    """The plain step and the one in pieces: equal losses and gradients, and none where there was none."""
    plain, cached = make_model(), make_model()
    prepare(plain), prepare(cached)
    output = plain(**batch, return_loss=True, lenient=True, **options)
    output.loss.backward()
    step = CachedStep(cached, batch, pieces, **options)
    losses = step.run()
    torch.testing.assert_close(losses["loss"], output.loss.detach(), atol=1e-5, rtol=1e-5)
    ours, expected = gradients(cached), gradients(plain)
    # a key's bias has a true gradient of zero, and rounding noise in its place
    reached = [{n for n, g in found.items() if g.any() and not n.endswith("key.bias")} for found in (ours, expected)]
    assert reached[0] == reached[1]
    squares = sum(float(((ours[name] - expected[name]) ** 2).sum()) for name in ours if name in expected)
    assert (squares / sum(float((g**2).sum()) for g in expected.values())) ** 0.5 < 1e-5
    rest = [name for name in ours if name in expected and not name.endswith("temperature")]
    squares = sum(float(((ours[name] - expected[name]) ** 2).sum()) for name in rest)
    assert (squares / sum(float((expected[name] ** 2).sum()) for name in rest)) ** 0.5 < 1e-5
    return step


@pytest.mark.parametrize("pieces", [1, 3, 8, 100])
def test_pieces_of_any_size(model_with_dropout, batch, pieces):
    compare(model_with_dropout, batch, pieces)


def test_images_without_texts(model_with_dropout, batch):
    kept = batch["image_index"] != 2
    for name in ("input_ids", "attention_mask", "image_index", "masked_input_ids", "mlm_labels", "text_weights"):
        if name in batch:
            batch[name] = batch[name][kept]
    assert 2 not in batch["image_index"]
    for pieces in (1, 2):  # in pieces of one there is one with no text at all
        compare(model_with_dropout, batch, pieces)


def test_the_first_piece_without_texts(model_with_dropout, batch):
    kept = batch["image_index"] != 0
    for name in ("input_ids", "attention_mask", "image_index", "masked_input_ids", "mlm_labels", "text_weights"):
        if name in batch:
            batch[name] = batch[name][kept]
    compare(model_with_dropout, batch, 1)


def test_texts_in_any_order(model_with_dropout, batch):
    order = torch.randperm(len(batch["image_index"]), generator=torch.Generator().manual_seed(0))
    for name in ("input_ids", "attention_mask", "image_index", "masked_input_ids", "mlm_labels", "text_weights"):
        if name in batch:
            batch[name] = batch[name][order]
    compare(model_with_dropout, batch)


def test_some_images_matched(model_with_dropout, batch):
    compare(model_with_dropout, batch, matching_images=3)


def test_no_attention_mask(model_with_dropout, batch):
    batch.pop("attention_mask")
    compare(model_with_dropout, batch)


@pytest.mark.parametrize("model_class", [CCRkModel, CCRkForPreTraining])
@pytest.mark.parametrize("frozen", [("vision_model",), ("text_model",), ("vision_model", "text_model")])
def test_frozen_towers_run_once(model_with_dropout, batch, frozen, model_class):
    passes = []

    def prepare(model):
        passes.append(0)
        model.retriever.vision_model.register_forward_hook(lambda *_: passes.append(passes.pop() + 1))
        for part in frozen:
            getattr(model.retriever, part).requires_grad_(False).eval()

    if model_class is CCRkModel:
        batch = {name: value for name, value in batch.items() if name not in ("masked_input_ids", "mlm_labels")}
    compare(lambda: model_with_dropout(model_class), batch, 3, prepare)
    # both models count into the last place: one pass of the plain step, and one or two of each of three pieces
    assert passes[-1] == 1 + 3 * (1 if "vision_model" in frozen else 2)


def test_features_computed_before(model_with_dropout, batch):
    model = model_with_dropout().eval()
    with torch.no_grad():
        batch["image_hidden_states"] = model.ccrk.vision_model(batch["pixel_values"])
        batch["text_hidden_states"] = model.ccrk.text_model(batch["input_ids"], batch["attention_mask"])
    batch.pop("pixel_values")

    def freeze(model):
        for part in (model.ccrk.vision_model, model.ccrk.text_model):
            part.requires_grad_(False).eval()

    compare(model_with_dropout, batch, prepare=freeze)


@pytest.mark.parametrize(
    "weights",
    [
        {"matching_weight": 0.0, "mlm_weight": 0.0},
        {"contrastive_weight": 0.0},
        {"contrastive_weight": 0.5, "matching_weight": 2.0, "mlm_weight": 0.3},
    ],
)
def test_weights_of_losses(model_with_dropout, batch, weights):
    compare(lambda: model_with_dropout(**weights), batch)


def test_without_keys_both_passes_draw_the_same(model_with_dropout, batch):
    """Native dropout of the global generator: the second pass repeats the outputs of the first, piece by piece."""
    model, seen = model_with_dropout(), {"images": [], "texts": []}
    batch.pop("draw_keys")
    for kind, name in (("images", "get_image_features"), ("texts", "get_text_features")):
        original = getattr(model.ccrk, name)

        def noting(*args, _original=original, _kind=kind):
            output = _original(*args)
            seen[_kind].append(output.pooler_output.detach().clone())
            return output

        setattr(model.ccrk, name, noting)
    torch.manual_seed(7)
    CachedStep(model, batch, 3).run()
    for found in seen.values():
        assert len(found) == 6
        for first, second in zip(found[:3], found[3:], strict=True):
            assert torch.equal(first, second)
    torch.manual_seed(8)
    seen_before = [part.clone() for part in seen["texts"][:3]]
    seen["texts"].clear()
    CachedStep(model, batch, 3).run()
    assert not torch.equal(seen["texts"][0], seen_before[0])


def test_the_scale_is_of_gradients_alone(model_with_dropout, batch):
    one, half = model_with_dropout(), model_with_dropout()
    losses = CachedStep(one, batch, 3).run(), CachedStep(half, batch, 3).run(0.5)
    torch.testing.assert_close(losses[0]["loss"], losses[1]["loss"])
    expected = gradients(one)
    for name, gradient in gradients(half).items():
        torch.testing.assert_close(2 * gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_states_of_texts_that_no_pair_needs_are_let_go(model_with_dropout, batch):
    model, sizes = model_with_dropout(), []
    step = CachedStep(model, batch, 3)
    original = step._encode_again

    def noting(*args):
        sizes.append((len(step.text_states), len(step.text_states.grad)))
        original(*args)

    step._encode_again = noting
    step.run()
    needed = len(step.text_rows)
    assert sizes == [(needed, needed)] and needed < len(batch["image_index"])


def test_rows_collect_gradients():
    table = torch.arange(10.0).reshape(5, 2).requires_grad_()
    rows = _Rows(table, torch.tensor([4, 1, 1, 2]))
    for wanted, factor in (([1, 1, 4], 1.0), ([4], 10.0)):
        leaf, taken = rows.take(torch.tensor(wanted))
        assert torch.equal(leaf, table.detach()[taken])
        (factor * leaf).sum().backward()
        rows.collect(taken, leaf)
    assert rows.whole().tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [11, 11]]


def test_what_is_missing_is_named(model_with_dropout, batch):
    batch.pop("pixel_values")
    with pytest.raises(ValueError, match="needs images and texts, but this one has"):
        CachedStep(model_with_dropout(), batch, 3)
