"""mteb's figures are ours: its tasks run with its own code on local captions, against `evaluate_retrieval`."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import datasets
import mteb
import numpy as np
import pytest
import torch
from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol
from transformers import AutoTokenizer

from ccrk import CCRkImageProcessor, CCRkModel, CCRkProcessor
from ccrk.data.corpora import read_corpus
from ccrk.data.rows import CaptionDataset, first_captions
from ccrk.evaluation.features import encode
from ccrk.evaluation.mteb_model import CCRkEncoder, CCRkReranker
from ccrk.evaluation.mteb_task import caption_task, language_code
from ccrk.evaluation.retrieval import evaluate_retrieval, plain_ranks
from ccrk.heads_ccrk import summarise

KS = (1, 5, 10)
LANGUAGES = ["de", "en", "fr"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of `datasets` of its own for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def captions(rows) -> CaptionDataset:
    """Rows of which no two captions are alike, as ties are counted otherwise by mteb: numbers are no tokens here."""
    words = ["red", "blue", "green", "dog", "cat", "boat", "rot", "blau", "Hund", "Katze", "Boot", "rouge", "bleu"]
    words += ["chien", "chat", "bateau"]
    made, seen = [], 0
    for row in rows:
        found = []
        for caption in row["captions"]:
            text = " ".join(words[seen // 16**place % 16] for place in range(2)) + f" {caption['text']}"
            found.append({**caption, "text": text})
            seen += 5
        made.append({**row, "captions": found})
    return CaptionDataset(made)


@pytest.fixture
def encoder(lively_model, processor) -> CCRkEncoder:
    return CCRkEncoder.of(lively_model, processor, "org/lively")


def run(model, task, **options) -> dict[str, dict[str, float]]:
    """Scores of mteb by subset."""
    options = {"cache": None, "show_progress_bar": False, **options}
    (result,) = mteb.evaluate(model, task, **options).task_results
    return {scores["hf_subset"]: scores for scores in result.scores[task.eval_splits[0]]}


def check_recall(found: dict, report: dict, way: str, languages=LANGUAGES) -> None:
    assert sorted(found) == sorted(languages)
    for tag in languages:
        for k in KS:
            assert found[tag][f"hit_rate_at_{k}"] == pytest.approx(report["languages"][tag][f"{way}@{k}"], abs=1e-5)


# --- the same figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "way"), [("t2i", "ir"), ("i2t", "tr")])
def test_figures_of_a_caption_task_are_ours(encoder, captions, direction, way):
    task = caption_task(captions, "Ragged", direction)
    assert task.metadata.eval_langs == {"de": ["deu-Latn"], "en": ["eng-Latn"], "fr": ["fra-Latn"]}
    found = run(encoder, task)
    report = evaluate_retrieval(encoder.model, encoder.processor, captions, ks=KS)
    check_recall(found, report, way)
    figures = {found[tag][f"hit_rate_at_{k}"] for tag in LANGUAGES for k in KS}
    assert len(figures) > 3, "not all alike"


def test_ndcg_follows_from_our_ranks(encoder, captions):
    found = run(encoder, caption_task(captions, "Ragged"))
    features = encode(encoder.model, encoder.processor, captions)
    ranks = plain_ranks(features)["text-to-image"]
    for tag, chosen in features.languages.items():
        gains = [1 / np.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks[chosen]]
        assert found[tag]["ndcg_at_10"] == found[tag]["main_score"] == pytest.approx(np.mean(gains), abs=1e-5)


@pytest.mark.parametrize(("direction", "way"), [("t2i", "ir"), ("i2t", "tr")])
def test_images_of_equal_id_and_distractors(encoder, captions, direction, way):
    for number in (1, 4, 7):
        captions.rows[number]["image_id"] = "same"
    captions.rows[5]["captions"] = []
    found = run(encoder, caption_task(captions, "Shared", direction))
    check_recall(found, evaluate_retrieval(encoder.model, encoder.processor, captions, ks=KS), way)


def test_ties_are_counted_by_their_worst_place_here_and_by_none_there(encoder, captions):
    for row in captions.rows:
        row["captions"] = [{"language": "en", "text": "red dog"}]
    report = evaluate_retrieval(encoder.model, encoder.processor, captions, ks=KS)
    assert report["languages"]["en"]["tr@10"] == 0
    assert run(encoder, caption_task(captions, "Ties", "i2t"))["en"]["hit_rate_at_10"] == pytest.approx(
        10 / 12, abs=1e-5
    )


def test_some_languages_and_a_photo_that_lies_in_a_file(encoder, captions, tmp_path):
    for number, row in enumerate(captions.rows):
        row["image"].save(tmp_path / f"{number}.png")
        row["image"] = str(tmp_path / f"{number}.png")
    found = run(encoder, caption_task(captions, "Files", languages=["fr", "de"], split="val"))
    report = evaluate_retrieval(encoder.model, encoder.processor, captions, languages=["fr", "de"], ks=KS)
    check_recall(found, report, "ir", ["fr", "de"])


slow = pytest.mark.slow


@pytest.mark.parametrize("score", ["itm+sim", pytest.param("itm", marks=slow), pytest.param("sim", marks=slow)])
@pytest.mark.parametrize(("direction", "way"), [("t2i", "ir"), pytest.param("i2t", "tr", marks=slow)])
def test_second_stage(encoder, captions, direction, way, score, tmp_path):
    task = caption_task(captions, "Ragged", direction)
    reranker = CCRkReranker.of(encoder.model, encoder.processor, "org/lively-matcher")
    run(encoder, task, prediction_folder=tmp_path)
    reranker.score = score
    again = caption_task(captions, "Ragged", direction).convert_to_reranking(tmp_path, top_k=6)
    found = run(reranker, again)
    report = evaluate_retrieval(encoder.model, encoder.processor, captions, ks=(1, 5), rerank=6, rerank_score=score)
    for tag in LANGUAGES:
        for k in (1, 5):
            expected = report["reranked"]["languages"][tag][f"{way}@{k}"]
            assert found[tag][f"hit_rate_at_{k}"] == pytest.approx(expected, abs=1e-5), (tag, k)


@pytest.mark.parametrize(("name", "way"), [("XFlickr30kCoT2IRetrieval", "ir"), ("XFlickr30kCoI2TRetrieval", "tr")])
def test_the_task_of_mteb_itself_on_local_data_of_its_format(encoder, captions, name, way, monkeypatch):
    """Its class reads rows of `id`, `sentences` and an image as bytes, a split for each language."""
    first = first_captions(captions)
    for row in first.rows:
        row["captions"] = [caption for caption in row["captions"] if caption["language"] != "fr"]

    def png(image) -> dict:
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    def of(tag: str) -> datasets.Dataset:
        texts = [next(c["text"] for c in row["captions"] if c["language"] == tag) for row in first.rows]
        ids, images = [row["image_id"] for row in first.rows], [png(row["image"]) for row in first.rows]
        return datasets.Dataset.from_dict({"id": ids, "sentences": texts, "image": images})

    def load(path: str, split: str | None = None, revision: str | None = None):
        return published if split is None else published[split]

    published = datasets.DatasetDict({tag: of(tag) for tag in ("de", "en")})
    module = importlib.import_module("mteb.tasks.retrieval.multilingual.x_flickr30k_co_t2i_retrieval")
    monkeypatch.setattr(module, "load_dataset", load)
    (task,) = mteb.get_tasks([name], languages=["deu", "eng"])
    found = run(encoder, task)
    report = evaluate_retrieval(encoder.model, encoder.processor, first, ks=KS)
    check_recall(found, report, way, ["de", "en"])


@pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension`", "ignore:The fill_missing")  # mteb's own
def test_sentence_transformers_give_mteb_the_same_figures(lively_model, processor, captions, tmp_path):
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    from ccrk.pipelines.registration import attach_pipeline

    lively_model.save_pretrained(tmp_path / "lively")
    processor.save_pretrained(tmp_path / "lively")
    attach_pipeline(tmp_path / "lively")
    task = caption_task(captions, "Ragged")
    ours = run(CCRkEncoder(tmp_path / "lively", device="cpu"), task)
    wrapped = SentenceTransformerEncoderWrapper(SentenceTransformer(str(tmp_path / "lively"), device="cpu"))
    # mteb takes a model that it does not know for one of texts
    facts = {"modalities": ["image", "text"]}
    wrapped.mteb_model_meta = wrapped.mteb_model_meta.model_copy(update=facts)
    theirs = run(wrapped, task)
    for tag in LANGUAGES:
        for k in KS:
            assert theirs[tag][f"ndcg_at_{k}"] == pytest.approx(ours[tag][f"ndcg_at_{k}"], abs=1e-5)


# --- the encoder --------------------------------------------------------------------------------------------------


def loader(columns: dict, batch_size: int = 5):
    dataset = datasets.Dataset.from_dict(columns)
    if "image" in columns:
        dataset = dataset.cast_column("image", datasets.Image())

    def collate(rows):
        return {name: [row[name] for row in rows] for name in rows[0]}

    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=collate)


def test_texts_photos_and_pairs(encoder, captions):
    photos, texts = [row["image"] for row in captions.rows], [row["captions"][0]["text"] for row in captions.rows]
    model, processor = encoder.model, encoder.processor
    with torch.no_grad():
        images = model.get_image_features(**processor(images=photos, return_tensors="pt")).pooler_output
        words = model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output
    quiet = {"show_progress_bar": False}
    found = encoder.encode(loader({"image": photos}), **quiet)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images, atol=1e-5)
    for size in (1, 5, 64):
        np.testing.assert_allclose(encoder.encode(loader({"text": texts}), batch_size=size, **quiet), words, atol=1e-5)
    both = encoder.encode(loader({"image": photos, "text": texts}), **quiet)
    np.testing.assert_allclose(both, torch.nn.functional.normalize(images + words, dim=-1), atol=1e-5)
    with pytest.raises(ValueError, match="neither 'text' nor 'image' among the columns audio"):
        encoder.encode(loader({"audio": [1]}))


def test_a_gallery_is_embedded_once_for_all_languages(encoder, captions):
    passed = []
    encoder.model.retriever.vision_model.register_forward_pre_hook(lambda _, given: passed.append(len(given[0])))
    run(encoder, caption_task(captions, "Once"))
    assert sum(passed) == len(captions)
    captions.rows[0]["image"] = captions.rows[1]["image"]
    run(encoder, caption_task(captions, "Once"))
    assert sum(passed) == 2 * len(captions), "another gallery is embedded anew"
    encoder.model.retriever.visual_projection[0].weight.data.mul_(-1)
    found = run(encoder, caption_task(captions, "Once"))
    assert sum(passed) == 3 * len(captions), "and so is one by a model that has learnt meanwhile"
    check_recall(found, evaluate_retrieval(encoder.model, encoder.processor, captions, ks=KS), "ir")


def test_texts_of_which_nothing_is_left_are_embedded(encoder, processor):
    found = encoder.encode(loader({"text": ["", " ", "red dog"]}), show_progress_bar=False)
    assert np.isfinite(found).all() and np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_modes_and_weights_stay_as_they_were(encoder, captions):
    encoder.model.train()
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    encoder.encode(loader({"text": ["red dog"]}), show_progress_bar=False)
    assert encoder.model.training
    assert all(torch.equal(before[name], weight) for name, weight in encoder.model.state_dict().items())


# --- what mteb writes beside results ------------------------------------------------------------------------------


def test_protocols_and_metadata(lively_model, processor, tmp_path):
    folder = tmp_path / "my-model"
    lively_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [de, en, tlh]\n---\n# A model\n")
    encoder, reranker = CCRkEncoder(folder, device="cpu"), CCRkReranker(str(folder), device="cpu")
    assert isinstance(encoder, EncoderProtocol) and not isinstance(encoder, CrossEncoderProtocol)
    assert isinstance(reranker, CrossEncoderProtocol) and not isinstance(reranker, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.license, meta.embed_dim, meta.max_tokens) == ("local/my-model", "apache-2.0", 8, 30)
    assert {"deu-Latn", "eng-Latn"} <= set(meta.languages) and meta.modalities == ["image", "text"]
    assert meta.n_parameters == sum(p.numel() for p in encoder.model.parameters())
    assert meta.similarity_fn_name == "cosine" and meta.revision != reranker.mteb_model_meta.revision
    assert reranker.mteb_model_meta.model_type == ["cross-encoder"]
    assert CCRkEncoder(folder, device="cpu").mteb_model_meta.revision == meta.revision
    lively_model.retriever.text_projection.load_state_dict(
        {name: 2 * weight for name, weight in lively_model.retriever.text_projection.state_dict().items()}
    )
    assert CCRkEncoder.of(lively_model, processor, "org/x").mteb_model_meta.revision != meta.revision


def test_kept_results_are_of_the_same_weights_and_captions(encoder, captions, tmp_path, make_model, monkeypatch):
    cache = mteb.ResultCache(tmp_path / "results")

    def figures(model) -> list[float]:
        found = run(model, caption_task(captions, "Kept"), cache=cache)
        return [found[tag][f"ndcg_at_{k}"] for tag in LANGUAGES for k in KS]

    first = figures(encoder)
    with monkeypatch.context() as patch:
        patch.setattr(CCRkEncoder, "encode", lambda *args, **kwargs: pytest.fail("called again"))
        assert figures(encoder) == first
    other = CCRkEncoder.of(make_model().eval(), encoder.processor, "org/lively")
    assert figures(other) != first
    captions.rows[0]["captions"][0]["text"], captions.rows[1]["captions"][0]["text"] = "blue dog 1", "red cat 2"
    changed = caption_task(captions, "Kept")
    assert changed.metadata.revision != caption_task(CaptionDataset(captions.rows[1:]), "Kept").metadata.revision
    report = evaluate_retrieval(encoder.model, encoder.processor, captions, ks=KS)
    check_recall(run(encoder, changed, cache=cache), report, "ir")


def test_settings_that_change_figures_are_told_apart(lively_model, processor):
    plain, coarse = (CCRkEncoder.of(lively_model, processor, "org/x", bf16=bf16) for bf16 in (False, True))
    assert plain.mteb_model_meta.experiment_kwargs is None
    assert coarse.mteb_model_meta.experiment_kwargs == {"bf16": True}
    reranker = CCRkReranker.of(lively_model, processor, "org/x")
    reranker.score = "itm"
    assert reranker.mteb_model_meta.experiment_kwargs == {"score": "itm"}


def test_codes_of_languages():
    assert [language_code(tag) for tag in ("de", "pt-BR", "zh", "xx")] == ["deu-Latn", "por-Latn", "zho-Hans", "und"]


def test_wrong_tasks_are_told(captions, encoder):
    with pytest.raises(ValueError, match="direction is 't2t'"):
        caption_task(captions, "x", "t2t")
    with pytest.raises(ValueError, match="no captions in ja; there are"):
        caption_task(captions, "x", languages=["ja"])
    reranker = CCRkReranker.of(encoder.model, encoder.processor)
    texts = loader({"text": ["a"], "id": ["0"]})
    with pytest.raises(ValueError, match="pairs of a photo and a text; these are of text and text"):
        reranker.predict(texts, texts)
    with pytest.raises(ValueError, match="score is 'best'"):
        reranker.score = "best"


# --- real photos --------------------------------------------------------------------------------------------------


def fit_projections(model, processor, dataset) -> None:
    """Projections along which photos and their captions vary together (partial least squares), in place of training.

    They are fitted to half of the photos that are then searched, so the figures say nothing about the model.
    """
    retriever, photos, texts = model.retriever, [], []
    with torch.no_grad():
        for row in dataset.rows[::2]:
            pixels = processor(images=[row["image"]], return_tensors="pt")["pixel_values"]
            photos.append(retriever.vision_model(pixels)[0, 0])
            batch = processor(text=[caption["text"] for caption in row["captions"]], return_tensors="pt")
            hidden = retriever.text_model(batch["input_ids"], batch["attention_mask"])
            texts.append(summarise(hidden, batch["attention_mask"], "mean").mean(0))
        photos, texts = torch.stack(photos), torch.stack(texts)
        left, _, right = torch.linalg.svd((photos - photos.mean(0)).T @ (texts - texts.mean(0)), full_matrices=False)
        for layer, features, axes in (
            (retriever.visual_projection[0], photos, left.T),
            (retriever.text_projection[0], texts, right),
        ):
            axes = axes[: layer.out_features]
            layer.weight.copy_(axes)
            layer.bias.copy_(-axes @ features.mean(0))


@pytest.mark.slow
def test_real_photos_and_towers(shared):
    """242 photos with human captions in four languages, pretrained towers; `pytest -s` shows the figures."""
    towers = shared / "weights" / "tf_efficientnet_lite0", shared / "weights" / "multilingual-e5-small-pruned"
    model = CCRkModel.from_towers(*towers, text_pooling="mean")
    processor = CCRkProcessor(CCRkImageProcessor.from_tower(towers[0]), AutoTokenizer.from_pretrained(towers[1]))
    languages = ["cs", "de", "en", "fr"]
    dataset = read_corpus(shared / "data" / "flickr8k_multi" / "val.jsonl", languages=languages)
    fit_projections(model, processor, dataset)
    report = evaluate_retrieval(model, processor, dataset, ks=KS)
    encoder = CCRkEncoder.of(model, processor, "local/towers")
    for direction, way in (("t2i", "ir"), ("i2t", "tr")):
        found = run(encoder, caption_task(dataset, "Flickr8kMulti", direction))
        check_recall(found, report, way, languages)
        for tag in languages:
            ours = [f"{report['languages'][tag][f'{way}@{k}']:.5f}" for k in KS]
            print(way, tag, *ours, "mteb", *(found[tag][f"hit_rate_at_{k}"] for k in KS))
    assert len({figures["ir@10"] for figures in report["languages"].values()}) > 1, "not all alike"
