"""Training arguments that name the method, on top of those of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ccrk.evaluation.retrieval import greater_is_better

# preset -> parts of the model that do not learn
FREEZE_PRESETS = {
    "none": (),
    "image": ("vision_model",),
    "text": ("text_model",),
    "towers": ("vision_model", "text_model"),
    "projection-only": ("vision_model", "text_model", "fusion_model", "itm_head"),
}
FREEZE_ALIASES = {"full": "none", "locked-image": "image"}
DECAY_RULES = ("standard", "official")
AUGMENTATIONS = ("none", "finetune", "pretrain")
LANGUAGE_SAMPLINGS = ("uniform", "balanced")
ORDERS = ("random", "sequential")
LORA_PRESETS = ("attention", "all-linear")


@dataclass
class CCRkTrainingArguments(TrainingArguments):
    """Arguments of [`CCRkTrainer`]; all of `TrainingArguments`, with these added.

    Those that default to None leave what the model's configuration says.

    Attributes:
        contrastive_variant, positive_choice, negative_strategy, english_guidance, contrastive_weight,
            matching_weight, mlm_weight: see `CCRkConfig`.
        temperature_range: smallest and largest temperature; it is clamped to them before every step. Without it
            `CCRkForPreTraining` takes the range of its configuration, and `CCRkModel` none.
        languages: languages to train on; all that occur by default.
        texts_per_image: captions of each image in a step, each in another language, drawn anew every time; without
            it, one caption in every language that the image has.
        language_sampling: with `texts_per_image`, `uniform` draws languages alike, `balanced` draws one with a weight
            of one divided by the number of its captions.
        source_weights: weights of captions by their source, as `SOURCE=WEIGHT`: how much they count as positives.
        mask_ratio, max_masks, span_probability: see `masking_ccrk.MaskingRules`.
        negative_ramp: share of the training over which matching negatives go from uniformly drawn to fully hard. A
            matcher from scratch needs it; one that starts from a trained fusion encoder does not.
        matching_images: images of each global batch that take part in matching and masked-language modelling, drawn
            at random; all by default. Negatives still come from the whole batch. The fusion encoder is most of a
            step's cost, so this buys larger contrastive batches.
        augmentation: `none`, or the authors' recipe for `finetune` (crops of half the photo and more) or `pretrain`
            (of a fifth and more).
        on_broken: `skip` counts photos that cannot be read and goes on, `raise` stops at the first; in training and
            in evaluation.
        new_layer_multiplier: factor of the learning rate for parts that towers do not have (projections,
            temperature, matching head, cross-attention); the authors take 2.
        decay_rules: which parameters are decayed: `standard` (no bias, norm, temperature or logit bias), or
            `official`, which repeats the authors' slips (it decays the temperature and the norm of the matching head,
            and spares the tables of relative positions).
        freeze: `none` (or `full`), `image` (or `locked-image`), `text`, `towers` (both), or `projection-only`.
        freeze_parameters: regular expressions; parameters in whose names one is found do not learn either, such as
            `blocks[.][0-3][.]` for the first stages of a timm EfficientNet.
        lora: `attention` or `all-linear`: adapters learn in the place of what towers and fusion encoder brought along;
            what is new (projections, temperature, heads, cross-attention) learns in full. See `adapters`.
        lora_rank, lora_alpha, lora_dropout: of the adapters. Their dropout is not keyed.
        lora_crossattention: `full` where cross-attention is new, `lora` in a model that was trained before.
        cache_features: compute the output of frozen towers (both or one) once, and train the rest from it.
        feature_cache_dir: where to keep it; `output_dir/feature_cache` by default. It is found again by a
            fingerprint of towers and data.
        mini_batch_size: images that pass through the model at once; a step over a larger batch is then taken in
            pieces, with the gradient of the whole (a gradient cache). Without it a batch passes as a whole.
        tiled_contrastive: never hold the matrix of similarities; for batches of thousands.
        keyed_draws: dropout, negatives, masks and augmentation are functions of seed, step and image, so that a step
            is the same however it is split. Off, dropout comes from the global generator, as elsewhere.
        eval_rerank: in `evaluate`, re-score so many images for each text by the fusion encoder.
        eval_languages: languages to evaluate; all by default.
    """

    remove_unused_columns: bool | None = field(default=False)
    contrastive_variant: str | None = field(
        default=None, metadata={"help": "official, balanced, one-to-one or sigmoid"}
    )
    positive_choice: str | None = field(default=None, metadata={"help": "probability, similarity or uniform"})
    negative_strategy: str | None = field(default=None, metadata={"help": "hard, hardest or random"})
    english_guidance: float | None = field(default=None, metadata={"help": "share of English-guided targets"})
    contrastive_weight: float | None = field(default=None, metadata={"help": "weight of the contrastive loss"})
    matching_weight: float | None = field(default=None, metadata={"help": "weight of the matching loss"})
    mlm_weight: float | None = field(default=None, metadata={"help": "weight of the masked-language loss"})
    temperature_range: list[float] | None = field(default=None, metadata={"help": "clamp of the temperature"})
    languages: list[str] | None = field(default=None, metadata={"help": "languages to train on (default: all)"})
    texts_per_image: int | None = field(default=None, metadata={"help": "captions of an image in a step"})
    language_sampling: str = field(default="uniform", metadata={"help": "uniform or balanced"})
    source_weights: list[str] | None = field(default=None, metadata={"help": "weights of captions, SOURCE=WEIGHT"})
    mask_ratio: float = field(default=0.4, metadata={"help": "share of tokens that is masked"})
    max_masks: int = field(default=12, metadata={"help": "most tokens masked in a text"})
    span_probability: float = field(default=0.2, metadata={"help": "share of masks that are spans of 2 or 3"})
    negative_ramp: float = field(default=0.0, metadata={"help": "share of training until negatives are fully hard"})
    matching_images: int | None = field(default=None, metadata={"help": "images of a batch that are matched"})
    augmentation: str = field(default="none", metadata={"help": "none, finetune or pretrain"})
    on_broken: str = field(default="skip", metadata={"help": "skip or raise"})
    new_layer_multiplier: float = field(default=1.0, metadata={"help": "learning rate factor of new layers"})
    decay_rules: str = field(default="standard", metadata={"help": "standard or official"})
    freeze: str = field(default="none", metadata={"help": "none, image, text, towers or projection-only"})
    freeze_parameters: list[str] | None = field(default=None, metadata={"help": "patterns of names that stay fixed"})
    lora: str | None = field(default=None, metadata={"help": "adapters: attention or all-linear"})
    lora_rank: int = field(default=16, metadata={"help": "rank of adapters"})
    lora_alpha: float = field(default=32.0, metadata={"help": "adapters are scaled by alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before adapters; not keyed"})
    lora_crossattention: str = field(default="full", metadata={"help": "full or lora"})
    cache_features: bool = field(default=False, metadata={"help": "compute frozen towers once"})
    feature_cache_dir: str | None = field(default=None, metadata={"help": "folder of the cached features"})
    mini_batch_size: int | None = field(default=None, metadata={"help": "images in a piece of the gradient cache"})
    tiled_contrastive: bool = field(default=False, metadata={"help": "never hold all similarities"})
    keyed_draws: bool = field(default=True, metadata={"help": "draws by seed, step and image"})
    eval_rerank: int = field(default=0, metadata={"help": "images re-scored for each text in evaluation"})
    eval_languages: list[str] | None = field(default=None, metadata={"help": "languages to evaluate"})

    def __post_init__(self):
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # what a step does not use is frozen, so there is nothing to find
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)  # of MRV, less is better
        super().__post_init__()
        self.freeze = FREEZE_ALIASES.get(self.freeze, self.freeze)
        for name, allowed in (
            ("freeze", FREEZE_PRESETS),
            ("decay_rules", DECAY_RULES),
            ("augmentation", AUGMENTATIONS),
            ("language_sampling", LANGUAGE_SAMPLINGS),
            ("train_sampling_strategy", ORDERS),
            ("on_broken", ("skip", "raise")),
            ("lora", (None, *LORA_PRESETS)),
            ("lora_crossattention", ("full", "lora")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is '{getattr(self, name)}'; it is one of {', '.join(map(str, allowed))}")
        self._check_cache()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns would drop the image column; leave it off")
        for name, least in (("texts_per_image", 1), ("matching_images", 2), ("mini_batch_size", 1), ("lora_rank", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it is at least {least}")
        for name in ("negative_ramp", "span_probability", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share between 0 and 1")
        if self.temperature_range is not None and not (
            len(self.temperature_range) == 2 and 0 < self.temperature_range[0] <= self.temperature_range[1]
        ):
            raise ValueError(f"temperature_range is {self.temperature_range}; it is a smallest and a largest, above 0")
        self.caption_weights()

    def _check_cache(self) -> None:
        if not self.cache_features:
            return
        frozen = FREEZE_PRESETS[self.freeze]
        if not frozen:
            raise ValueError(
                f"cache_features needs a frozen tower (freeze='towers', 'image', 'text' or 'projection-only'), but "
                f"freeze is '{self.freeze}': features of a tower that still learns would be stale after one step"
            )
        if self.augmentation != "none" and "vision_model" in frozen:
            raise ValueError(
                f"cache_features keeps one picture of each photo, but augmentation is '{self.augmentation}', which "
                "shows another one each time; leave one of the two off"
            )

    def caption_weights(self) -> dict[str, float]:
        """`source_weights` as source -> weight.

        Raises:
            ValueError: if one is not of the form SOURCE=WEIGHT with a weight of at least 0.
        """
        weights = {}
        for entry in self.source_weights or []:
            source, _, number = entry.rpartition("=")
            try:
                weights[source] = float(number)
            except ValueError:
                weights[source] = -1.0
            if not source or not 0 <= weights[source] < float("inf"):
                raise ValueError(f"the source weight '{entry}' is not of the form SOURCE=WEIGHT, such as machine=0.5")
        return weights

    @property
    def n_gpu(self) -> int:
        """At most one device in a process: DataParallel would cut images and texts, which differ in number, alike."""
        return min(1, super().n_gpu)
