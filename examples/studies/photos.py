"""Test bed of real photos: heads learn on frozen towers, whose output is computed once.

The photos and captions are those of a folder with `train.jsonl` (Flickr8k with Multi30K's captions in en, de, fr, cs
and Flickr8k-CN's in zh); of its photos 1,000 are set aside as the gallery. Towers are EfficientNet-Lite0 and a small
multilingual E5.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import TRUE_ENGLISH
from transformers import AutoTokenizer

from ccrk import CCRkForPreTraining, CCRkModel, CCRkProcessor
from ccrk.data.corpora import read_corpus
from ccrk.data.rows import first_captions
from ccrk.evaluation.features import RetrievalFeatures
from ccrk.evaluation.state_store import StateStore
from ccrk.image_processing_ccrk import CCRkImageProcessor
from ccrk.trainer.feature_cache import FeatureCache

LANGUAGES = ("en", "de", "fr", "cs", "zh")
SOURCES = ["zh=zh_flickr8kcn_human"]
GALLERY = 1000
SPLIT_SEED = 8


@dataclass
class PhotoSettings:
    """The model on the frozen towers, and what it sees.

    Attributes:
        languages: of training and evaluation.
        projection_hidden, projection_dropout, projection_dim: of both projections.
        asked: of the gallery's 1,000 photos so many are asked for, all by default; re-ranking takes long.
        photos: to train on, drawn by the seed of a run; all by default.
        whole: keep all tokens of the towers, which matching needs; without, their summaries, which embeddings are made
            of: equal in what is learned, and much less to read.
        wrong: language -> share of its training captions that are those of another photo.
        true_english: give the right English caption beside a wrong one, in a language of its own name.
        sources: language -> source of its captions, for `source_weights`.
    """

    languages: tuple[str, ...] = ("en", "de", "fr", "cs")
    projection_hidden: int = 512
    projection_dropout: float = 0.3
    projection_dim: int = 256
    asked: int = GALLERY
    photos: int | None = None
    whole: bool = False
    wrong: dict[str, float] | None = None
    true_english: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _summaries(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, image width) summary token of every image, and (T, hidden) mean of every text's tokens."""
    cache = FeatureCache(folder)
    images = torch.from_numpy(cache.images[:, 0].astype(np.float32))
    tokens, lengths = cache.texts[:].astype(np.float32), np.diff(cache.offsets)
    means = np.add.reduceat(tokens, cache.offsets[:-1]) / lengths[:, None]
    return images, torch.from_numpy(means.astype(np.float32))


class StudyCache(FeatureCache):
    """A feature cache in which captions may be exchanged for others, and tokens for what embeddings are made of.

    Args:
        folder: of the cache.
        whole: whether states are those of all tokens.
        exchanged: (row, place of the caption) -> row and place of the one that is taken.
    """

    def __init__(self, folder: Path, whole: bool = True, exchanged: Mapping[tuple[int, int], tuple[int, int]] = {}):
        super().__init__(folder)
        self.exchanged = exchanged
        self.summaries = None if whole else _summaries(folder)

    def _span(self, row: int, caption: int) -> slice:
        return super()._span(*self.exchanged.get((row, caption), (row, caption)))

    def image_states(self, row: int) -> torch.Tensor:
        """(1 + P, width), or (1, width) of the summary token."""
        return super().image_states(row) if self.summaries is None else self.summaries[0][row, None]

    def text_states(self, row: int, caption: int) -> torch.Tensor:
        """(L, hidden), or (1, hidden) of their mean, by which texts are pooled."""
        if self.summaries is None:
            return super().text_states(row, caption)
        row, caption = self.exchanged.get((row, caption), (row, caption))
        return self.summaries[1][self.first_text[row] + caption, None]

    def token_ids(self, row: int, caption: int) -> torch.Tensor:
        """(L,) token ids; one where there is one state."""
        return super().token_ids(row, caption) if self.summaries is None else torch.zeros(1, dtype=torch.long)


class PhotoBed:
    """Photos, captions, cached features, and models to train on them.

    Args:
        data: folder of `train.jsonl` and its photos.
        towers: folder of `tf_efficientnet_lite0` and `multilingual-e5-small-pruned`.
        work: where the features are kept, some 1.2 GB.
    """

    def __init__(self, data: str | Path, towers: str | Path, work: str | Path):
        for folder in (data, towers):
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"there is no folder '{folder}'; --data and --towers name photos and towers")
        for tower in ("tf_efficientnet_lite0", "multilingual-e5-small-pruned"):
            if not (Path(towers) / tower).is_dir():
                raise FileNotFoundError(f"the folder of the towers, '{towers}', has no '{tower}'")
        self.image_tower = str(Path(towers) / "tf_efficientnet_lite0")
        self.text_tower = str(Path(towers) / "multilingual-e5-small-pruned")
        self.work = Path(work)
        corpus = read_corpus(Path(data) / "train.jsonl", format="ccrk", languages=LANGUAGES, sources=SOURCES)
        self.rows = first_captions(corpus).rows
        order = list(range(len(self.rows)))
        random.Random(SPLIT_SEED).shuffle(order)
        self.gallery, self.training = sorted(order[:GALLERY]), sorted(order[GALLERY:])
        tokenizer = AutoTokenizer.from_pretrained(self.text_tower)
        image_processor = CCRkImageProcessor.from_tower(self.image_tower, 224)
        self.processor = CCRkProcessor(image_processor, tokenizer, max_length=64)
        self.processor.text_prefix = "query: "
        self.folder: Path | None = None

    def model(self, settings: PhotoSettings, **config: Any):
        """Towers as they were trained, and new heads and fusion encoder."""
        kind = CCRkForPreTraining if config.get("mlm_weight") else CCRkModel
        return kind.from_towers(
            image=self.image_tower,
            text=self.text_tower,
            text_layers=list(range(12)),
            fusion_layers=[10, 11],
            text_pooling="mean",
            fusion_pooling="mean",
            projection_dim=settings.projection_dim,
            projection_hidden_size=settings.projection_hidden,
            projection_dropout=settings.projection_dropout,
            fusion_image_norm=True,
            **config,
        )

    def cache(self, model) -> FeatureCache:
        """The towers' output for all photos and captions, computed if it is not there."""
        if self.folder is None:
            folder = self.work / "features"
            self.folder = FeatureCache.build(folder, model, self.processor, self.rows, bf16=True).folder
        return FeatureCache(self.folder)

    def view(self, model, settings: PhotoSettings, seed: int | None = None) -> StudyCache:
        """The cache as a study sees it; with a seed, with the wrong captions of training."""
        exchanged: dict[tuple[int, int], tuple[int, int]] = {}
        if settings.true_english:
            for row in self.training:
                captions = self.rows[row]["captions"]
                english = next(place for place, one in enumerate(captions) if one["language"] == "en")
                exchanged[row, len(captions)] = row, english
        for language, share in sorted((settings.wrong or {}).items()):
            if seed is not None:
                exchanged |= self._wrong(language, share, random.Random(f"{seed}-{language}"))
        return StudyCache(self.cache(model).folder, settings.whole, exchanged)

    def _wrong(self, language: str, share: float, rng: random.Random) -> dict[tuple[int, int], tuple[int, int]]:
        """Captions of a share of the training rows, passed on among them in a circle."""
        places = {
            row: place
            for row in self.training
            for place, caption in enumerate(self.rows[row]["captions"])
            if caption["language"] == language
        }
        chosen = rng.sample(sorted(places), round(share * len(places)))
        found = {}
        for row, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
            found[row, places[row]] = other, places[other]
        return found

    def training_rows(self, settings: PhotoSettings, seed: int) -> list[dict]:
        """Rows for a collator with the cache; fewer photos are among those that more would be."""
        rows, chosen = [], self.training
        if settings.photos is not None:
            chosen = sorted(random.Random(f"{seed}-photos").sample(chosen, len(chosen))[: settings.photos])
        for row in chosen:
            record = self.rows[row]
            captions = [{**one, "source": settings.sources.get(one["language"])} for one in record["captions"]]
            if settings.true_english:
                captions.append({"language": TRUE_ENGLISH, "text": "in the cache alone"})
            rows.append({"row": row, "image_id": record["image_id"], "captions": captions})
        return rows

    @torch.inference_mode()
    def features(self, model, settings: PhotoSettings, states: bool = False) -> RetrievalFeatures:
        """Features of the gallery from the cache, as `ccrk.evaluation` searches them.

        Args:
            model: trained.
            settings: of the run.
            states: keep what re-ranking needs; then the settings have `whole`.
        """
        model.eval()
        retriever, cache = model.retriever, self.view(model, settings)
        images = torch.stack([cache.image_states(row) for row in self.gallery])
        image_states = StateStore() if states else None
        if image_states is not None:
            for one in images:
                image_states.append(one)
        places = [
            (place, row, caption)
            for tag in settings.languages
            for place, row in enumerate(self.gallery[: settings.asked])
            for caption, record in enumerate(self.rows[row]["captions"])
            if record["language"] == tag
        ]
        texts = [cache.text_states(row, caption) for _, row, caption in places]
        embeds = []
        for start in range(0, len(texts), 500):
            part = texts[start : start + 500]
            lengths = torch.tensor([len(one) for one in part])
            padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            embeds.append(retriever.get_text_features(None, mask, text_hidden_states=padded).pooler_output)
        text_states = StateStore() if states else None
        if text_states is not None:
            for one in texts:
                text_states.append(one)
        count, asked = len(self.gallery), settings.asked
        return RetrievalFeatures(
            image_embeds=retriever.get_image_features(None, image_hidden_states=images).pooler_output,
            image_groups=np.arange(count),
            image_rows=np.arange(count),
            text_embeds=torch.cat(embeds),
            text_images=np.array([place for place, _, _ in places]),
            languages={tag: slice(i * asked, (i + 1) * asked) for i, tag in enumerate(settings.languages)},
            skipped={"images": 0, "captions": 0, "examples": []},
            own_batches=[np.arange(start, min(start + 64, count)) for start in range(0, count, 64)],
            image_states=image_states,
            text_states=text_states,
            text_places=np.arange(len(texts)),
            text_lengths=np.array([len(one) for one in texts]),
        )
