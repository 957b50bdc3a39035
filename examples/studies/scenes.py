"""Test bed of drawn scenes: everything learns from nothing, and translations are exact.

Scenes, twins and captions are those of `ccrk demo`. Beside its ten languages there are made-up ones, as many as wanted
and all equally hard: words drawn at random, and an order of the parts of a caption that is the language's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from learning import TRUE_ENGLISH

from ccrk import CCRkProcessor
from ccrk.data.scene_captions import LANGUAGES, describe, variants
from ccrk.data.scenes import COLORS, SHAPES, Scene, draw_scene, hard_gallery, sample_scenes
from ccrk.evaluation.features import encode
from ccrk.image_processing_ccrk import CCRkImageProcessor
from ccrk.trainer.demo import DemoPlan, build_model, train_tokenizer, training_scenes

MADE_UP = tuple(f"art-x-{number:02d}" for number in range(1, 17))  # artificial languages, as BCP-47 writes them


@dataclass
class SceneSettings:
    """The model and what it sees.

    Attributes:
        languages: of training and evaluation.
        pool: scenes to train on, in families of three that differ in one attribute.
        asked: scenes of the gallery that are asked for; their twins are in it too.
        hidden_size, text_layers, fusion_layers, channels: sizes of the model.
        varied: share of captions in a wording drawn at random.
        wrong: language -> share of training captions that are those of another scene.
        true_english: give a right English caption beside a wrong one, in a language of its own name.
        sources: language -> source of its captions, for `source_weights`.
    """

    languages: tuple[str, ...] = ("en", "de", "fr", "cs")
    pool: int = 6144
    asked: int = 300
    hidden_size: int = 96
    text_layers: int = 1
    fusion_layers: int = 2
    channels: tuple[int, ...] = (24, 48, 96, 192)
    varied: float = 0.2
    wrong: dict[str, float] | None = None
    true_english: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=len(MADE_UP))
def _lexicon(language: str) -> tuple[dict[Any, str], tuple[int, ...], bool]:
    """Words of a made-up language, the order of number, colour and shape, and whether the place comes first."""
    rng = random.Random(language)
    meanings = [*COLORS, *SHAPES, 1, 2, 3, "left", "above"]
    words: dict[Any, str] = {}
    for meaning in meanings:
        while (word := "".join(rng.choice("ptkbdgmnslrv") + rng.choice("aeiou") for _ in range(3))) in words.values():
            pass
        words[meaning] = word
    return words, tuple(rng.sample(range(3), 3)), rng.random() < 0.5


def caption(scene: Scene, language: str, rng: random.Random | None = None) -> str:
    """A caption in one of the ten languages or a made-up one; with `rng` in a wording drawn at random."""
    if language == TRUE_ENGLISH:
        language = "en"
    if not language.startswith("art-x-"):
        return describe(scene, language, **({"variant": 0} if rng is None else {"rng": rng}))
    words, order, place_first = _lexicon(language)
    groups = []
    for group in scene.groups:
        parts = (words[group.count], words[group.color], words[group.shape])
        groups.append(" ".join(parts[place] for place in order))
    if scene.relation is None:
        return groups[0]
    relation = words[scene.relation]
    return f"{relation} {groups[0]} {groups[1]}" if place_first else f"{groups[0]} {relation} {groups[1]}"


def wordings(scene: Scene, language: str) -> list[str]:
    """All captions of a scene in one of the ten languages or a made-up one."""
    return [caption(scene, language)] if language.startswith("art-x-") else variants(scene, language)


class SceneRows(torch.utils.data.Dataset):
    """Drawn scenes with captions in the languages of the settings; drawn once, captions as they come."""

    def __init__(self, scenes: list[Scene], settings: SceneSettings, seed: int, described: int | None = None):
        self.scenes, self.settings, self.seed = scenes, settings, seed
        self.described = len(scenes) if described is None else described
        self.images = [draw_scene(scene, size=64, seed=seed * 100_003 + place) for place, scene in enumerate(scenes)]
        self._captions: dict[int, list[dict]] = {}
        self.told = {tag: list(range(len(scenes))) for tag in settings.languages}  # the scene that a caption tells of
        for tag, share in sorted((settings.wrong or {}).items()):
            rng = random.Random(f"{seed}-{tag}")
            chosen = rng.sample(range(len(scenes)), round(share * len(scenes)))
            rng.shuffle(chosen)
            for row, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
                self.told[tag][row] = other

    def __len__(self) -> int:
        return len(self.scenes)

    def captions(self, row: int) -> list[dict]:
        """The captions of a scene, made once."""
        if row not in self._captions:
            self._captions[row] = self._describe(row)
        return self._captions[row]

    def _describe(self, row: int) -> list[dict]:
        if row >= self.described:
            return []
        found, settings = [], self.settings
        tags = [*settings.languages, *([TRUE_ENGLISH] if settings.true_english else [])]
        for tag in tags:
            rng = random.Random(f"{self.seed}-{row}-{tag}")
            scene = self.scenes[self.told[tag][row] if tag in self.told else row]
            text = caption(scene, tag, rng if rng.random() < settings.varied else None)
            found.append({"language": tag, "text": text, "source": settings.sources.get(tag)})
        return found

    def __getitem__(self, row: int) -> dict:
        # scenes recur: equal ones are each other's positives, as equal photos are
        # `place` tells one occurrence from another
        captions = self.captions(row)
        return {"image": self.images[row], "image_id": self.scenes[row].key, "captions": captions, "place": row}


class SceneBed:
    """Scenes, captions and models to train on them."""

    def __init__(self) -> None:
        side = {"height": 64, "width": 64}
        self.image_processor = CCRkImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.25] * 3)

    def start(self, settings: SceneSettings, seed: int):
        """What a run begins with: rows to train on, an untrained model, and its processor."""
        rows = SceneRows(training_scenes(settings.pool, seed), settings, seed)
        # of all languages whatever the run's own are, so that the model has one size
        tags = MADE_UP if settings.languages[0] in MADE_UP else LANGUAGES
        texts = [text for scene in rows.scenes[:800] for tag in tags for text in wordings(scene, tag)]
        processor = CCRkProcessor(self.image_processor, train_tokenizer(texts))
        plan = DemoPlan(
            tower={"channels": list(settings.channels), "stem_width": 16},
            hidden_size=settings.hidden_size,
            text_layers=settings.text_layers,
            fusion_layers=settings.fusion_layers,
        )
        return rows, build_model(plan, len(processor.tokenizer)), processor

    def features(self, model, processor, settings: SceneSettings, seed: int, states: bool = False):
        """Features of scenes whose colour-shape pairs were never together in training, and of all their twins."""
        scenes = sample_scenes(settings.asked, seed=seed + 1, held_out=True)
        gallery = hard_gallery(scenes, seed=seed + 2)
        plain = replace(settings, wrong=None, true_english=False, varied=0.0)
        rows = SceneRows(gallery, plain, seed + 3, described=len(scenes))
        return encode(model, processor, rows, languages=settings.languages, states=states)
