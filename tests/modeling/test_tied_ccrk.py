from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ccrk import CCRkForPreTraining
from ccrk.sampling_ccrk import MatchingPairs
from ccrk.tied_ccrk import CCRkTiedWords

PAIRS = MatchingPairs(*(torch.tensor(rows) for rows in ([0, 1, 2], [1, 2, 4], [1, 2, 0], [3, 0, 1])))
LOSSES = ["loss", "loss_contrastive", "loss_matching", "loss_mlm"]


@pytest.fixture
def model(tiny_model):
    return tiny_model(CCRkForPreTraining)


def gradients(model, batch, loss: str = "loss", times: int = 1) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for _ in range(times):
        model(**batch, matching_pairs=PAIRS)[loss].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain(monkeypatch) -> None:
    monkeypatch.setattr(CCRkTiedWords, "of", classmethod(lambda cls, words, decoder: None))


def assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert ours[name].layout == torch.strided
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("times", [1, 3])
def test_gradients_are_those_of_plain_autograd(model, masked_batch, monkeypatch, loss, times):
    batch = masked_batch()
    batch["masked_input_ids"][:, 2] = 1  # a padding id within a text: look-ups leave its row alone, the decoder not
    fast = gradients(model, batch, loss, times)
    assert model.ccrk.text_model.embeddings.tied is None
    plain(monkeypatch)
    assert_same(fast, gradients(model, batch, loss, times))


def test_losses_one_after_the_other(model, masked_batch, monkeypatch):
    batch = masked_batch()

    def run():
        model.zero_grad()
        output = model(**batch, matching_pairs=PAIRS)
        for name in LOSSES[:0:-1]:
            output[name].backward(retain_graph=True)
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    fast = run()
    plain(monkeypatch)
    assert_same(fast, run())


def test_one_table_is_made_for_both_uses(model, masked_batch, monkeypatch):
    """Counts the tables that plain autograd and ours fill, by the operations that make them."""
    words = model.get_input_embeddings().weight
    tables = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made = function._schema.name in ("aten::mm", "aten::embedding_dense_backward", "aten::add")
            if made and isinstance(result, torch.Tensor) and not result.is_sparse and result.shape == words.shape:
                tables.append(function._schema.name)
            return result

    def run():
        tables.clear()
        loss = model(**masked_batch(), matching_pairs=PAIRS).loss
        with Watch():
            loss.backward()
        return sorted(tables)

    assert run() == ["aten::mm"]
    plain(monkeypatch)
    assert run().count("aten::embedding_dense_backward") == 2


def test_autocast(model, masked_batch, monkeypatch):
    batch = masked_batch()

    def run():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, matching_pairs=PAIRS).loss_mlm
        loss.backward()
        return model.get_input_embeddings().weight.grad.clone()

    fast = run()
    plain(monkeypatch)
    theirs = run()
    assert fast.dtype == torch.float32
    assert (fast - theirs).norm() < 0.02 * theirs.norm()


def test_other_arrangements_stay_plain(model):
    words, decoder = model.get_input_embeddings(), model.mlm_head.decoder
    assert CCRkTiedWords.of(words, decoder) is not None
    assert CCRkTiedWords.of(words, copy.deepcopy(decoder)) is None
    assert CCRkTiedWords.of(words, nn.Sequential(decoder)) is None
    with torch.no_grad():
        assert CCRkTiedWords.of(words, decoder) is None
    words.weight.requires_grad_(False)
    assert CCRkTiedWords.of(words, decoder) is None


def test_a_step_of_fused_adamw(model, masked_batch):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    before = model.get_input_embeddings().weight.detach().clone()
    model(**masked_batch(), matching_pairs=PAIRS).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert not torch.equal(before, model.get_input_embeddings().weight)


def test_masked_texts_by_themselves(model, masked_batch, monkeypatch):
    """As a gradient cache runs them: the masked-language loss with no pass of both towers around it."""
    batch, images = masked_batch(), torch.tensor([0, 0, 1, 2, 2, 2])
    tables = []
    real = CCRkTiedWords.of
    monkeypatch.setattr(
        CCRkTiedWords, "of", classmethod(lambda cls, *modules: tables.append(real(*modules)) or tables[-1])
    )

    def run():
        model.zero_grad()
        states = model.ccrk.get_image_states(batch["pixel_values"])
        masked = batch["masked_input_ids"], batch["attention_mask"], batch["mlm_labels"]
        model.masked_language_loss(*masked, states, images).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    fast = run()
    assert tables[0] is not None and model.ccrk.text_model.embeddings.tied is None
    plain(monkeypatch)
    assert_same(fast, run())
