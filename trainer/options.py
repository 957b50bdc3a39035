"""Every option of a training run, once: the command line, the recipes and the pages are made of this table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any

GROUPS = {
    "data": "What to learn from. Several sources are joined: photos of equal id become one.",
    "model": "What to start from: a model (--model), or two pretrained towers of which a new one is built.",
    "inputs": "How photos and captions are prepared.",
    "batch": "A batch is what is compared with one another in a step: more photos make more negatives.",
    "objective": "What is learned. docs/training.md says which data calls for which.",
    "optimisation": "How long and how fast.",
    "what learns": "Everything by default; less is cheaper, and safer with little data.",
    "cost": "Memory and time; none of these changes what is learned by more than rounding.",
    "evaluation": "The whole evaluation set is searched, after training and, if asked for, during it.",
    "run": "Where results go, and how a run goes on.",
}


def layer_list(text: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5].

    Raises:
        ValueError: for anything else.
    """
    layers: list[int] = []
    for part in str(text).split(","):
        first, _, last = part.partition("-")
        try:
            layers += range(int(first), int(last or first) + 1)
        except ValueError:
            raise ValueError(f"'{text}' is not a list of layers such as 0-5 or 1,3,5") from None
    return layers


def interval(text: str | int) -> str | int:
    """`epoch` or a number of steps.

    Raises:
        ValueError: for anything else.
    """
    if str(text) == "epoch":
        return "epoch"
    try:
        steps = int(text)
    except ValueError:
        steps = 0
    if steps < 1:
        raise ValueError(f"'{text}' is neither 'epoch' nor a number of steps")
    return steps


KINDS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "whole number": int,
    "number": float,
    "layers": layer_list,
    "interval": interval,
}


def _option(group: str, help: str, kind: str = "text", default: Any = None, **more: Any) -> Any:
    """A field with what the command line and the recipes need to know of it.

    Args:
        group: of `GROUPS`.
        help: what it does.
        kind: of `KINDS`, or `switch`, or `pairs` (NAME=VALUE).
        default: the value without it.
        more: `many` (a list), `choices`, `metavar`, `flags` (other names on the command line).
    """
    made = {"group": group, "help": help, "kind": kind, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=made)
    return field(default=default, metadata=made)


@dataclass
class TrainOptions:
    """Options of `ccrk train` and keys of a recipe; the help of each says what it does."""

    # --- data
    data: list[str] | None = _option("data", "files, folders or Hub names to train on", many=True)
    format: list[str] | None = _option(
        "data", "their format, one for all or one for each (default: seen from the files)", many=True
    )
    split: list[str] | None = _option("data", "the part of a corpus that has several, such as train", many=True)
    images: list[str] | None = _option("data", "folder of the photos (default: that of the data)", many=True)
    eval: list[str] | None = _option("data", "the same to evaluate on", many=True)
    eval_format: list[str] | None = _option("data", "format of --eval (default: seen from the files)", many=True)
    eval_split: list[str] | None = _option("data", "part of --eval", many=True)
    eval_images: list[str] | None = _option("data", "photos of --eval (default: --images)", many=True)
    languages: list[str] | None = _option("data", "languages to train and evaluate on (default: all)", many=True)
    source: list[str] | None = _option(
        "data", "extra captions to take, such as zh=zh_human", many=True, metavar="LANG=NAME"
    )
    language: str | None = _option("data", "language of captions that do not say theirs")
    columns: dict[str, str] = _option(
        "data", "columns of a table that have other names", "pairs", {}, metavar="ROLE=COLUMN"
    )
    captions_as_rows: bool = _option(
        "data",
        "each caption is an example of its own, as the authors fine-tune; their photos share their id",
        "switch",
        False,
    )
    stream: bool = _option(
        "data", "read on the go what is too large to hold; --max-steps says when to stop", "switch", False
    )
    buffer_size: int | None = _option("data", "rows that a stream is shuffled through", "whole number")
    # --- model
    model: str | None = _option("model", "CCRk model to go on from: a folder or a Hub id")
    image_tower: str | None = _option("model", "timm model: a name, a Hub id or a folder")
    text_tower: str | None = _option("model", "XLM-R or BERT family encoder: a Hub id or a folder")
    text_layers: list[int] | None = _option("model", "its layers for the text tower, such as 0-5 or 1,3,5", "layers")
    fusion_layers: list[int] | None = _option("model", "its layers for the fusion encoder", "layers")
    pooling: str = _option("model", "summary of a text", default="first", choices=("first", "mean"))
    position_offset: int | None = _option(
        "model", "id of the first position (default: as the text tower was trained)", "whole number"
    )
    projection_dim: int = _option("model", "length of embeddings", "whole number", 256)
    projection_hidden: int | None = _option(
        "model", "width of a hidden layer in the projections (default: none)", "whole number"
    )
    projection_dropout: float = _option("model", "dropout in the projections; 0.3 for frozen towers", "number", 0.0)
    fusion_image_norm: bool = _option(
        "model", "for image towers that do not end in a norm, as most CNNs", "switch", False
    )
    # --- inputs
    image_size: int | None = _option("inputs", "side of the photos in pixels (default: the model's)", "whole number")
    image_stats: str = _option(
        "inputs",
        "mean and deviation of colours for a new model: those of its image tower, or CLIP's, as the authors",
        default="tower",
        choices=("tower", "clip"),
    )
    augmentation: str = _option(
        "inputs",
        "random crops and changes of photos: light (finetune) or strong (pretrain)",
        default="none",
        choices=("none", "finetune", "pretrain"),
    )
    max_length: int | None = _option(
        "inputs", "tokens per text, the rest is cut off (default: 64, or the model's)", "whole number"
    )
    max_words: int | None = _option("inputs", "words per text, with --clean-text", "whole number")
    clean_text: bool | None = _option("inputs", "lower case and no punctuation, as the authors", "switch")
    text_prefix: str = _option("inputs", 'put before every text, such as "query: " for E5 towers', default="")
    on_broken: str = _option(
        "inputs",
        "what happens to a photo that cannot be read: count it and go on, or stop",
        default="skip",
        choices=("skip", "raise"),
    )
    # --- batch
    batch_size: int = _option("batch", "photos in a batch, of all processes together", "whole number", 64)
    accumulation: int = _option(
        "batch",
        "batches whose gradients are added before a step; they are not compared with one another",
        "whole number",
        1,
    )
    mini_batch: int | None = _option(
        "batch",
        "photos that pass through the model at once: the batch in the memory of so many (gradient cache)",
        "whole number",
    )
    texts_per_image: int | None = _option(
        "batch", "captions of a photo in a batch, in languages drawn anew (default: one per language)", "whole number"
    )
    language_sampling: str = _option(
        "batch",
        "with --texts-per-image: draw languages alike, or rare ones more often",
        default="uniform",
        choices=("uniform", "balanced"),
    )
    drop_last: bool = _option("batch", "leave out the incomplete batch at the end of an epoch", "switch", True)
    workers: int = _option("batch", "processes that read photos, beside each training process", "whole number", 0)
    # --- objective
    variant: str = _option(
        "objective",
        "contrastive loss: official, balanced (1-to-K), one-to-one (the baseline), sigmoid",
        default="balanced",
        choices=("official", "balanced", "one-to-one", "sigmoid"),
        flags=("--objective",),
    )
    contrastive_weight: float = _option("objective", "weight of the contrastive loss; 0 = off", "number", 1.0)
    matching_weight: float = _option("objective", "weight of image-text matching; 0 = off", "number", 1.0)
    mlm_weight: float = _option("objective", "weight of masked-language modelling; 0 = off", "number", 1.0)
    english_guidance: float | None = _option(
        "objective", "share of what the English caption sees in the target of the others", "number"
    )
    source_weights: list[str] | None = _option(
        "objective", "how much captions of a source count, such as machine=0.5", many=True, metavar="SOURCE=WEIGHT"
    )
    positive_choice: str | None = _option(
        "objective", "which caption of a photo is matched with it", choices=("probability", "similarity", "uniform")
    )
    negatives: str | None = _option(
        "objective",
        "wrong pairs for matching: drawn by similarity, the most similar, or at random",
        choices=("hard", "hardest", "random"),
        flags=("--negative-strategy",),
    )
    negative_ramp: float = _option("objective", "share of training until negatives are hard", "number", 0.0)
    matching_images: int | None = _option(
        "objective", "photos of a batch that are matched (default: all)", "whole number"
    )
    mask_ratio: float = _option("objective", "share of tokens that is masked", "number", 0.4)
    max_masks: int = _option("objective", "most tokens masked in a text", "whole number", 12)
    span_probability: float = _option("objective", "share of masks that are spans of two or three", "number", 0.2)
    temperature_range: list[float] | None = _option(
        "objective", "least and largest temperature (default: the model's)", "number", many=True, metavar="T"
    )
    # --- optimisation
    epochs: float = _option("optimisation", "passes over the data", "number", 10.0)
    max_steps: int | None = _option("optimisation", "steps in all, in place of --epochs", "whole number")
    lr: float = _option("optimisation", "learning rate", "number", 1e-4)
    warmup: float = _option("optimisation", "share of the steps to warm up, or their number", "number", 0.1)
    schedule: str = _option(
        "optimisation", "learning rate after that, such as linear, cosine, constant", default="linear"
    )
    weight_decay: float = _option("optimisation", "weight decay", "number", 0.01)
    betas: list[float] = _option("optimisation", "of AdamW", "number", [0.9, 0.999], many=True, metavar="B")
    clip: float = _option("optimisation", "largest norm of the gradient; 0 = no clipping", "number", 1.0)
    new_layer_multiplier: float = _option("optimisation", "learning rate factor of new layers", "number", 2.0)
    decay_rules: str = _option(
        "optimisation",
        "what is decayed: the usual, or what the authors' code decays",
        default="standard",
        choices=("standard", "official"),
    )
    # --- what learns
    freeze: str = _option(
        "what learns",
        "parts that do not learn; locked-image is image, full is none",
        default="none",
        choices=("none", "full", "image", "locked-image", "text", "towers", "projection-only"),
    )
    freeze_parameters: list[str] | None = _option(
        "what learns", "regular expressions of names of parameters that do not learn either", many=True
    )
    cache_features: bool = _option("what learns", "compute frozen towers' output once", "switch", False)
    feature_cache: str | None = _option("what learns", "folder for it (default: OUT/feature_cache)")
    lora: str | None = _option(
        "what learns",
        "low-rank adapters in attention or in all linear layers; new layers learn in full",
        choices=("attention", "all-linear"),
    )
    lora_rank: int = _option("what learns", "rank of the adapters", "whole number", 16)
    lora_alpha: float = _option("what learns", "their scale is alpha / rank", "number", 32.0)
    lora_dropout: float = _option("what learns", "dropout before the adapters; it is not keyed", "number", 0.0)
    lora_crossattention: str | None = _option(
        "what learns",
        "cross-attention learns in full or by adapters (default: full in a new model, else lora)",
        choices=("full", "lora"),
    )
    # --- cost
    bf16: bool = _option("cost", "compute in bfloat16, keep weights in float32", "switch", False)
    activation_checkpointing: bool = _option(
        "cost", "forget what layers computed and compute it again: less memory, a third more time", "switch", False
    )
    torch_compile: bool = _option("cost", "compile the model; minutes at the start", "switch", False)
    tiled: bool = _option("cost", "never hold all similarities; for batches of thousands", "switch", False)
    keyed_draws: bool = _option(
        "cost", "dropout and draws by seed, step and photo, the same however a batch is split", "switch", True
    )
    threads: int | None = _option("cost", "CPU threads (default: torch's choice)", "whole number")
    # --- evaluation
    rerank: int = _option("evaluation", "photos re-scored per text", "whole number", 32)
    eval_steps: str | int | None = _option(
        "evaluation", "also evaluate every so many steps, or every epoch", "interval", metavar="N|epoch"
    )
    best_metric: str | None = _option("evaluation", "keep the checkpoint best by this figure, such as ir@1_mean")
    early_stopping: int | None = _option(
        "evaluation", "stop when so many evaluations brought nothing better", "whole number"
    )
    # --- run
    out: str | None = _option("run", "folder for the model, its processor and the figures")
    resume: bool = _option(
        "run", "go on from the last checkpoint in OUT, or begin where there is none", "switch", False
    )
    save_steps: str | int | None = _option(
        "run",
        "keep a checkpoint every so many steps (default: epoch; 10000 for a stream)",
        "interval",
        metavar="N|epoch",
    )
    keep: int = _option("run", "checkpoints that are kept", "whole number", 1)
    log_steps: int = _option("run", "steps from one line of the log to the next", "whole number", 20)
    tensorboard: bool = _option("run", "write the log for TensorBoard too", "switch", False)
    seed: int = _option("run", "of everything random", "whole number", 0)
    set: dict[str, Any] = _option(
        "run", "any other argument of CCRkTrainingArguments", "pairs", {}, metavar="NAME=VALUE"
    )


NEW_MODEL_OPTIONS = (
    "image_tower",
    "text_tower",
    "text_layers",
    "fusion_layers",
    "pooling",
    "position_offset",
    "projection_dim",
    "projection_hidden",
    "projection_dropout",
    "fusion_image_norm",
    "image_stats",
    "text_prefix",
)
"""Options that shape a new model; they mean nothing for one that is there already."""

FIELDS: dict[str, Field] = {one.name: one for one in fields(TrainOptions)}


def default_of(name: str) -> Any:
    """The value of an option that nobody gave."""
    one = FIELDS[name]
    return one.default_factory() if callable(one.default_factory) else one.default


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def number_or_text(text: Any) -> Any:
    """A value of NAME=VALUE: none, true, false, a number or a text."""
    if not isinstance(text, str):
        return text
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def pairs(entries: Iterable[str], name: str) -> dict[str, Any]:
    """`["a=1"]` as `{"a": 1}`.

    Raises:
        ValueError: if one has another form.
    """
    found = {}
    for entry in entries:
        key, sign, value = entry.partition("=")
        if not sign or not key:
            raise ValueError(f"{flag(name)}: '{entry}' is not of the form NAME=VALUE")
        found[key] = number_or_text(value)
    return found


def convert(name: str, value: Any, where: str) -> Any:
    """A value of a recipe as its option wants it.

    Args:
        name: of the option.
        value: as YAML read it.
        where: what messages call the recipe.

    Raises:
        ValueError: naming the recipe, the key, the value and what would do.
    """
    meta = FIELDS[name].metadata
    kind = meta["kind"]
    if value is None:
        return None
    if kind == "switch":
        if not isinstance(value, bool):
            raise ValueError(f"{where}: {name} is {value!r}; it is true or false")
        return value
    if kind == "pairs":
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {name} is {value!r}; it is a mapping of names to values")
        return {str(key): number_or_text(entry) for key, entry in value.items()}
    if kind == "layers" and isinstance(value, list):
        value = ",".join(str(layer) for layer in value)
    if meta.get("many"):
        return [_convert_one(name, entry, where) for entry in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        raise ValueError(f"{where}: {name} is a list; it takes one {kind}")
    return _convert_one(name, value, where)


def _convert_one(name: str, value: Any, where: str) -> Any:
    meta = FIELDS[name].metadata
    kind, choices = meta["kind"], meta.get("choices")
    if isinstance(value, bool):
        raise ValueError(
            f"{where}: {name} holds {value}, which YAML also makes of yes, no, on and off; put the word in quotes"
        )
    try:
        made = KINDS[kind](value)
    except (TypeError, ValueError):
        made = None
    if made is None or (kind == "whole number" and isinstance(value, float) and made != value):
        raise ValueError(f"{where}: {name} is {value!r}, but it takes a {kind}")
    if choices and made not in choices:
        raise ValueError(
            f"{where}: {name} is '{made}'; it is one of {', '.join(choices)}{nearest(str(made), choices)}"
        )
    return made


def checked(options: TrainOptions) -> TrainOptions:
    """The options themselves, if they go together.

    Raises:
        ValueError: naming the options at fault and what would do.
    """
    for name in ("batch_size", "accumulation", "lora_rank", "keep", "log_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"{flag(name)} is {getattr(options, name)}; it is at least 1")
    for name in ("betas", "temperature_range"):
        value = getattr(options, name)
        if value is not None and len(value) != 2:
            raise ValueError(f"{flag(name)} takes two numbers, not {len(value)}")
    if options.stream and not options.max_steps:
        raise ValueError("--stream needs --max-steps: a stream does not say how long an epoch is")
    if options.stream and options.captions_as_rows:
        raise ValueError("--captions-as-rows needs data that are held; leave --stream or it out")
    if not options.eval:
        for name in ("eval_steps", "best_metric", "early_stopping"):
            if getattr(options, name) is not None:
                raise ValueError(f"{flag(name)} needs something to evaluate on: --eval")
    if (options.best_metric or options.early_stopping) and options.eval_steps is None:
        raise ValueError("--best-metric and --early-stopping need to know when to evaluate: --eval-steps epoch")
    return options


def option_table(group: str) -> str:
    """The options of a group as a table of docs/training.md."""
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for name, one in FIELDS.items():
        meta, default = one.metadata, default_of(name)
        if meta["group"] != group:
            continue
        names = [flag(name), *meta.get("flags", ())]
        if meta["kind"] == "switch":
            names += [each.replace("--", "--no-", 1) for each in names]
        shown = {None: "", True: "yes", False: "no", "": ""}.get(
            default if not isinstance(default, (list, dict)) else ""
        )
        if isinstance(default, list):
            shown = " ".join(f"{part:g}" for part in default)
        elif shown is None or (isinstance(default, (int, float)) and not isinstance(default, bool)):
            shown = f"{default:g}" if isinstance(default, float) else str(default)
        meaning = meta["help"] + (f" ({', '.join(meta['choices'])})" if meta.get("choices") else "")
        lines.append(f"| {', '.join(f'`{each}`' for each in names)} | {shown} | {meaning} |")
    return "\n".join(lines)
