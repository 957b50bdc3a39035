"""Training arguments that name the method, on top of those of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

FREEZE_PRESETS = ("none", "image", "text", "towers")


@dataclass
class CCRkTrainingArguments(TrainingArguments):
    """Arguments of [`CCRkTrainer`]; all of `TrainingArguments`, with these added.

    Those that default to None leave what the model's configuration says.

    Attributes:
        contrastive_variant, positive_choice, contrastive_weight, matching_weight, mlm_weight: see `CCRkConfig`.
        languages: languages to train on; all that occur by default.
        texts_per_image: captions of each image in a step, each in another language, drawn anew every time; without
            it, one caption in every language that the image has.
        mask_ratio, max_masks: see `masking_ccrk.MaskingRules`.
        negative_ramp: share of the training over which matching negatives go from uniformly drawn to fully hard. A
            matcher from scratch needs it; one that starts from a trained fusion encoder does not.
        matching_images: images of each batch that take part in matching and masked-language modelling, drawn at
            random; all by default. Negatives still come from the whole batch. The fusion encoder is most of a step's
            cost, so this buys larger contrastive batches.
        new_layer_multiplier: factor of the learning rate for parts that towers do not have (projections,
            temperature, matching head, cross-attention); the authors take 2.
        freeze: `none`, `image`, `text` or `towers` (both).
        cache_features: with both towers frozen, compute their output once and train the rest from it.
        feature_cache_dir: where to keep it; `output_dir/feature_cache` by default. It is found again by a
            fingerprint of towers and data.
        eval_rerank: in `evaluate`, re-score so many images for each text by the fusion encoder.
        eval_languages: languages to evaluate; all by default.
    """

    remove_unused_columns: bool | None = field(default=False)
    contrastive_variant: str | None = field(default=None, metadata={"help": "official, balanced or one-to-one"})
    positive_choice: str | None = field(default=None, metadata={"help": "probability, similarity or uniform"})
    contrastive_weight: float | None = field(default=None, metadata={"help": "weight of the contrastive loss"})
    matching_weight: float | None = field(default=None, metadata={"help": "weight of the matching loss"})
    mlm_weight: float | None = field(default=None, metadata={"help": "weight of the masked-language loss"})
    languages: list[str] | None = field(default=None, metadata={"help": "languages to train on (default: all)"})
    texts_per_image: int | None = field(default=None, metadata={"help": "captions of an image in a step"})
    mask_ratio: float = field(default=0.4, metadata={"help": "share of tokens that is masked"})
    max_masks: int = field(default=12, metadata={"help": "most tokens masked in a text"})
    negative_ramp: float = field(default=0.0, metadata={"help": "share of training until negatives are fully hard"})
    matching_images: int | None = field(default=None, metadata={"help": "images of a batch that are matched"})
    new_layer_multiplier: float = field(default=1.0, metadata={"help": "learning rate factor of new layers"})
    freeze: str = field(default="none", metadata={"help": "none, image, text or towers"})
    cache_features: bool = field(default=False, metadata={"help": "compute frozen towers once"})
    feature_cache_dir: str | None = field(default=None, metadata={"help": "folder of the cached features"})
    eval_rerank: int = field(default=0, metadata={"help": "images re-scored for each text in evaluation"})
    eval_languages: list[str] | None = field(default=None, metadata={"help": "languages to evaluate"})

    def __post_init__(self):
        super().__post_init__()
        if self.freeze not in FREEZE_PRESETS:
            raise ValueError(f"freeze is '{self.freeze}'; it is one of {', '.join(FREEZE_PRESETS)}")
        if self.cache_features and self.freeze != "towers":
            raise ValueError(
                f"cache_features needs freeze='towers', but freeze is '{self.freeze}': features of a tower that "
                "still learns would be stale after one step"
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns would drop the image column; leave it off")
        if self.texts_per_image is not None and self.texts_per_image < 1:
            raise ValueError(f"texts_per_image is {self.texts_per_image}; it is at least 1")
        if self.matching_images is not None and self.matching_images < 2:
            raise ValueError(f"matching_images is {self.matching_images}; it is at least 2")
        if not 0 <= self.negative_ramp <= 1:
            raise ValueError(f"negative_ramp is {self.negative_ramp}; it is a share between 0 and 1")

    @property
    def n_gpu(self) -> int:
        """At most one device in a process: DataParallel would cut images and texts, which differ in number, alike."""
        return min(1, super().n_gpu)
