"""The demonstration: a small CCRk trained from scratch on drawn scenes with captions in ten languages.

Nothing is downloaded. Scenes show one or two groups of objects; colour-shape pairs of the evaluation were never
together in training, so a right answer takes composition, not memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, set_seed

from ccrk.configuration_ccrk import CCRkConfig
from ccrk.data.scene_captions import LANGUAGES, describe, variants
from ccrk.data.scenes import HELD_OUT_PAIRS, Scene, draw_scene, hard_gallery, sample_scenes, twins
from ccrk.image_processing_ccrk import CCRkImageProcessor
from ccrk.modeling_ccrk import CCRkForPreTraining
from ccrk.processing_ccrk import CCRkProcessor
from ccrk.trainer.arguments_ccrk import CCRkTrainingArguments
from ccrk.trainer.trainer_ccrk import CCRkTrainer

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@dataclass
class DemoPlan:
    """Sizes of the demonstration.

    Attributes:
        steps, batch_size, texts_per_image: training.
        learning_rate: of AdamW, with linear decay.
        matching_images: images of a batch that are matched.
        negative_ramp: share of the steps over which matching negatives go from uniform to fully hard.
        varied_wording: share of captions in a wording drawn at random. With all of them so, ten languages have eighty
            ways to say where things are, and a text tower this small does not learn word order in time.
        image_size: side of the drawn scenes in pixels.
        scenes: evaluation scenes.
        rerank: images re-scored for each query.
        seed: of everything random.
    """

    steps: int = 900
    batch_size: int = 64
    texts_per_image: int = 4
    learning_rate: float = 2e-3
    matching_images: int | None = 32
    negative_ramp: float = 0.3
    varied_wording: float = 0.2
    image_size: int = 64
    architecture: str = "resnet10t"
    tower: dict = field(default_factory=lambda: {"channels": [32, 64, 128, 256], "stem_width": 16})
    hidden_size: int = 128
    mlm_weight: float = 0.1
    text_layers: int = 1
    fusion_layers: int = 2
    scenes: int = 240
    rerank: int = 10
    seed: int = 0


class SceneRows(torch.utils.data.Dataset):
    """Scenes as rows of image and captions, drawn when asked for; the drawing of a row is always the same.

    Args:
        scenes: what to draw.
        size: side in pixels.
        seed: of drawing and wording.
        described: so many of the first scenes have captions; all by default.
        varied: share of captions whose wording is drawn at random; the others have the first wording, a bare phrase.
    """

    def __init__(self, scenes: list[Scene], size: int, seed: int, described: int | None = None, varied: float = 0.0):
        self.scenes = scenes
        self.size = size
        self.seed = seed
        self.described = len(scenes) if described is None else described
        self.varied = varied

    def __len__(self) -> int:
        return len(self.scenes)

    def _random(self, index: int, what: str) -> random.Random:
        return random.Random(f"{self.seed}-{index}-{what}")

    def captions(self, index: int) -> list[dict]:
        """The captions of a row, one in each language; none beyond the described rows."""
        if index >= self.described:
            return []
        scene, rng, captions = self.scenes[index], self._random(index, "wording"), []
        for tag in LANGUAGES:
            wording = {"rng": rng} if rng.random() < self.varied else {"variant": 0}
            captions.append({"language": tag, "text": describe(scene, tag, **wording)})
        return captions

    def __getitem__(self, index: int) -> dict:
        scene, seed = self.scenes[index], self._random(index, "drawing").randrange(2**31)
        image = draw_scene(scene, size=self.size, seed=seed)
        return {"image": image, "image_id": scene.key, "captions": self.captions(index)}


def training_scenes(count: int, seed: int, family: int = 3) -> list[Scene]:
    """Scenes to train on, in families: a scene is followed by twins of it that differ in one attribute.

    Kept together in a batch, they are the negatives that make a model look at which group is where and which colour is
    whose; among scenes drawn apart, colours and counts alone tell nearly all from one another. No colour-shape pair
    that is held out occurs.

    Args:
        count: number of scenes.
        seed: of all choices.
        family: scenes in a family.
    """
    rng = random.Random(seed)
    scenes: list[Scene] = []
    for number, scene in enumerate(sample_scenes(count, seed=seed, unique=False)):
        if len(scenes) >= count:
            break
        allowed = [
            twin for twin in twins(scene, seed=seed + number).values() if not HELD_OUT_PAIRS.intersection(twin.pairs)
        ]
        scenes += [scene, *rng.sample(allowed, min(family - 1, len(allowed)))]
    return scenes[:count]


def train_tokenizer(texts: list[str], vocab_size: int = 1500) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with the special tokens of XLM-R, trained on captions of scenes."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    # a character of Chinese or Japanese is a token: merged ones would hold a colour and its shape, and the pairs of
    # the evaluation would be words never seen
    alone = pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}ー]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), alone])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=64,
    )


def build_model(plan: DemoPlan, vocab_size: int) -> CCRkForPreTraining:
    """A small convolutional image tower, a small text tower and fusion encoder, all untrained."""
    config = CCRkConfig(
        vision_config={
            "architecture": plan.architecture,
            "image_size": plan.image_size,
            "model_args": dict(plan.tower),
        },
        text_config={
            "model_type": "bert",
            "vocab_size": vocab_size,
            "hidden_size": plan.hidden_size,
            "num_attention_heads": 4,
            "intermediate_size": 2 * plan.hidden_size,
            "max_position_embeddings": 64,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        num_text_layers=plan.text_layers,
        num_fusion_layers=plan.fusion_layers,
        projection_dim=128,
        text_pooling="mean",
        fusion_pooling="mean",
        fusion_image_norm=True,
        contrastive_variant="balanced",
        mlm_weight=plan.mlm_weight,
        initializer_range=0.06,  # a narrow model starts too quietly at the 0.02 of wide ones
    )
    return CCRkForPreTraining(config)


def train(plan: DemoPlan, folder: str | Path):
    """Trains the model of the demonstration; returns it with its processor."""
    set_seed(plan.seed)
    scenes = training_scenes(plan.steps * plan.batch_size, plan.seed)
    tokenizer = train_tokenizer([text for scene in scenes[:800] for tag in LANGUAGES for text in variants(scene, tag)])
    side = {"height": plan.image_size, "width": plan.image_size}
    processor = CCRkProcessor(CCRkImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.25] * 3), tokenizer)
    model = build_model(plan, len(tokenizer))
    arguments = CCRkTrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        warmup_steps=0.05,
        weight_decay=0.02,
        texts_per_image=plan.texts_per_image,
        matching_images=plan.matching_images,
        negative_ramp=plan.negative_ramp,
        train_sampling_strategy="sequential",  # the scenes are in random order; families stay together
        mask_ratio=0.3,
        seed=plan.seed,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    rows = SceneRows(scenes, plan.image_size, plan.seed, varied=plan.varied_wording)
    trainer = CCRkTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    return model.eval(), processor


def galleries(plan: DemoPlan) -> tuple[SceneRows, SceneRows]:
    """The evaluation scenes, and the same with all their twins; only the scenes themselves are asked for."""
    scenes = sample_scenes(plan.scenes, seed=plan.seed + 1, held_out=True)
    hard = hard_gallery(scenes, seed=plan.seed + 2)
    seed = plan.seed + 3
    return (
        SceneRows(scenes, plan.image_size, seed),
        SceneRows(hard, plan.image_size, seed, described=len(scenes)),
    )
