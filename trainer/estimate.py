r"""What a run will be, said beforehand: steps, tokens, parameters and memory; no pixel is read and no weight loaded.

Memory is estimated as

.. math:: M = 4P + 4L + 8L + 4E + A + S

in bytes, with P parameters, L of them learning (their gradient; two moments of Adam, where AdamW is the optimizer), E
the size of the word embeddings where they learn (a second gradient of their size is there while the first is added
up), A what the layers keep for the backward pass, and S the similarities. A is not guessed: the model is built on the
meta device, which has shapes but no numbers, passes run on it, and what autograd keeps is added up, each tensor once:

* image tower: for the images of a batch (of a mini-batch with a gradient cache, to which the output for the whole
  batch and its gradient are then added);
* text tower: for its texts, at the longest of a batch as seen from a sample;
* fusion encoder: for three pairs of each matched image, and the masked texts.

With activation checkpointing a layer counts with its input alone, and the largest one in full. Frozen towers keep
nothing. In bfloat16 half of A is counted, and two bytes more for each parameter (its copy). S is three times B T
floats, and nothing where they are tiled. What libraries take by themselves is told apart: it is no part of a GPU's
memory.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from ccrk import CCRkConfig, CCRkForPreTraining, CCRkModel, CCRkVisionConfig
from ccrk.data.sharding import GlobalBatchSampler
from ccrk.draws_ccrk import Draws
from ccrk.towers_ccrk import OFFSET_MODEL_TYPES, default_layers
from ccrk.trainer.arguments_ccrk import FREEZE_ALIASES, FREEZE_PRESETS
from ccrk.trainer.options import TrainOptions
from ccrk.trainer.parameters import choose_learning
from ccrk.trainer.recipes import recipe_text
from ccrk.trainer.run import model_fields, prepared, read_data, world_size

SAMPLE = 512
PARTS = ("vision_model", "text_model", "fusion_model", "itm_head", "mlm_head", "lora")


# --- the model, without its weights -------------------------------------------------------------------------------


def planned_config(options: TrainOptions) -> CCRkConfig:
    """The configuration that the run's model will have; reads configurations, and no weights.

    Raises:
        ValueError: if the image tower is neither a folder nor a name that timm knows.
    """
    if options.model:
        config = CCRkConfig.from_pretrained(options.model)
    else:
        text = AutoConfig.from_pretrained(options.text_tower)
        text_layers, fusion_layers = default_layers(text.num_hidden_layers)
        fields = model_fields(options)
        if text.model_type in OFFSET_MODEL_TYPES:
            fields.setdefault("position_offset", text.pad_token_id + 1)
        config = CCRkConfig(
            vision_config=_planned_tower(options.image_tower),
            text_config=text,
            num_text_layers=len(options.text_layers or text_layers),
            num_fusion_layers=len(options.fusion_layers or fusion_layers),
            **fields,
        )
    if options.image_size:
        config.image_size = options.image_size
    config.contrastive_variant = options.variant
    for name in ("contrastive_weight", "matching_weight", "mlm_weight"):
        setattr(config, name, getattr(options, name))
    return config


def _planned_tower(name: str) -> CCRkVisionConfig:
    import timm

    folder = Path(name)
    if folder.is_dir():
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = (told.get("pretrained_cfg") or {}).get("input_size") or [3, 224, 224]
        return CCRkVisionConfig(
            architecture=told["architecture"], image_size=size[-1], model_args=told.get("model_args")
        )
    known = name.split("/")[-1]
    trained = timm.get_pretrained_cfg(known) if timm.is_model(known.split(".")[0]) else None
    if trained is None:
        raise ValueError(f"--dry-run cannot tell what the image tower '{name}' is: timm knows no model of that name")
    return CCRkVisionConfig(architecture=known.split(".")[0], image_size=trained.input_size[-1])


def planned_model(options: TrainOptions, config: CCRkConfig) -> nn.Module:
    """The model on the meta device, frozen and with adapters as it will train."""
    with torch.device("meta"):
        model = (CCRkForPreTraining if options.mlm_weight else CCRkModel)(config)
        parts = FREEZE_PRESETS[FREEZE_ALIASES.get(options.freeze, options.freeze)]
        choose_learning(model, parts, options.freeze_parameters or [])
        if options.lora:
            from ccrk.trainer.adapters import add_adapters

            model = add_adapters(
                model,
                options.lora,
                rank=options.lora_rank,
                crossattention=options.lora_crossattention or ("lora" if options.model else "full"),
            )
    return model.train()


@dataclass
class Parameters:
    """Numbers of parameters: all, those that learn, and the same by part of the model."""

    total: int = 0
    learning: int = 0
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)


def count_parameters(model: nn.Module) -> Parameters:
    """Counts the parameters of a model, a tied one once."""
    counted = Parameters()
    for name, parameter in model.named_parameters():
        part = next((part for part in PARTS if f"{part}." in name), "projections and temperature")
        part = "adapters" if "lora_" in name else part
        size, learning = parameter.numel(), parameter.numel() * parameter.requires_grad
        counted.total += size
        counted.learning += learning
        before = counted.parts.get(part, (0, 0))
        counted.parts[part] = (before[0] + size, before[1] + learning)
    return counted


# --- what autograd keeps ------------------------------------------------------------------------------------------


class KeptBytes:
    """Adds up what autograd keeps while it is entered; parameters are no part of it, and a tensor counts once."""

    def __init__(self, model: nn.Module):
        self.total = 0
        self.inputs = 0
        self.layers: list[int] = []
        self._own = {id(parameter) for parameter in model.parameters()}
        self._seen: dict[int, torch.UntypedStorage] = {}
        self._model = model

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if id(base) not in self._own and storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, so that its address is not given away again
            self.total += storage.nbytes()
        return tensor

    def __enter__(self) -> KeptBytes:
        self._handles = []
        for module in self._model.modules():
            if isinstance(module, GradientCheckpointingLayer) or type(module).__name__.endswith("Block"):
                self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._after))
        self._stack: list[int] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _before(self, module, args, kwargs) -> None:
        self._stack.append(self.total)
        if len(self._stack) == 1:
            self.inputs += sum(a.numel() * a.element_size() for a in args[:1] if isinstance(a, torch.Tensor))

    def _after(self, module, args, output) -> None:
        started = self._stack.pop()
        if not self._stack:
            self.layers.append(self.total - started)

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def bytes(self, checkpointing: bool) -> tuple[int, int]:
        """What is kept until the backward pass, and what the largest layer takes once it is computed again."""
        if not checkpointing or not self.layers:
            return self.total, 0
        return self.total - sum(self.layers) + self.inputs, max(self.layers)


def activation_bytes(
    model: nn.Module, rows: int, what: str, length: int = 0, checkpointing: bool = False
) -> tuple[int, int]:
    """Bytes that autograd keeps of a pass over `rows` images, texts, pairs or masked texts of `length` tokens.

    Args:
        model: on the meta device.
        rows: how many.
        what: `images`, `texts`, `pairs` or `masked`.
        length: tokens of a text.
        checkpointing: whether layers are computed again.

    Returns:
        What is kept, and what the largest layer takes when it is computed again (0 without checkpointing).
    """
    traced = min(rows, 2)
    if not traced:
        return 0, 0
    retriever, size = model.retriever, model.config.image_size
    empty = {"device": "meta", "dtype": torch.long}
    draws = Draws(torch.empty(traced, **empty))
    with KeptBytes(model) as kept:
        if what == "images":
            retriever.get_image_features(torch.empty(traced, 3, size, size, device="meta"), draws=draws)
        elif what == "texts":
            retriever.get_text_features(torch.empty(traced, length, **empty), draws=draws)
        else:
            hidden = torch.empty(traced, length, model.config.text_config.hidden_size, device="meta")
            tokens = image_tokens(model)
            image = torch.empty(traced, *tokens, device="meta").requires_grad_()
            if what == "masked":
                hidden = retriever.text_model(torch.empty(traced, length, **empty), None, draws)
            states = retriever.fusion_model.image_states(image)
            fused = retriever.fusion_model(hidden.requires_grad_(), None, states, torch.empty(traced, **empty), draws)
            if what == "masked":
                masked = max(1, round(0.4 * length))
                nn.functional.cross_entropy(
                    model.mlm_head(fused[:, :masked].flatten(0, 1)), torch.empty(traced * masked, **empty)
                )
            else:
                retriever.itm_head(fused[:, 0])
    first, second = kept.bytes(checkpointing)
    return first * rows // traced, second * rows // traced


def image_tokens(model: nn.Module) -> tuple[int, int]:
    """Number and width of the tokens of an image."""
    size = model.config.image_size
    with torch.no_grad():
        return tuple(model.retriever.vision_model(torch.empty(1, 3, size, size, device="meta")).shape[1:])


@dataclass
class Memory:
    """Bytes by what they are for; see the module."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    similarities: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.similarities


def estimate_memory(options: TrainOptions, model: nn.Module, texts: int, length: int) -> Memory:
    """Estimates the memory of a training process; the formula is in the module.

    Args:
        options: of the run.
        model: on the meta device, from `planned_model`.
        texts: captions of a photo in a batch.
        length: tokens of the longest text of a batch.
    """
    counted = count_parameters(model)
    batch = options.batch_size // world_size()
    piece = min(batch, options.mini_batch or batch)
    matched = batch if options.matching_images is None else min(batch, -(-options.matching_images // world_size()))
    again = options.activation_checkpointing
    images = words = pairs = masked = (0, 0)
    if not options.cache_features:
        images = activation_bytes(model, piece, "images", checkpointing=again)
    words = activation_bytes(model, piece * texts, "texts", length, again)
    if options.matching_weight:
        pairs = activation_bytes(model, 3 * min(matched, piece), "pairs", length, again)
    if options.mlm_weight:
        masked = activation_bytes(model, min(matched, piece), "masked", length, again)
    towers, fusion = images[0] + words[0], pairs[0] + masked[0]
    largest = max(one[1] for one in (images, words, pairs, masked))  # layers are computed again one at a time
    tokens, width = image_tokens(model)
    hidden = model.config.text_config.hidden_size
    outputs = 4 * batch * (tokens * width + texts * length * hidden)
    activations = towers + fusion + largest + outputs
    if options.mini_batch:  # towers and fusion are not there at the same time; outputs are, with their gradient
        activations = max(towers, fusion) + largest + 2 * outputs
    copies = 0
    if options.bf16:
        activations, copies = activations // 2, 2 * counted.total
    embeddings = model.get_input_embeddings().weight
    extra = embeddings.numel() if embeddings.requires_grad else 0
    every = options.batch_size
    return Memory(
        4 * counted.total + copies,
        4 * (counted.learning + extra),
        8 * counted.learning,
        activations,
        0 if options.tiled else 12 * batch * every * texts,
    )


# --- data ---------------------------------------------------------------------------------------------------------


def load_processor(options: TrainOptions):
    """The processor of the run, or what stands for it where the image tower's weights would have to be read."""
    if options.model:
        return prepared(AutoProcessor.from_pretrained(options.model), options)
    from ccrk import CCRkImageProcessor, CCRkProcessor

    tokenizer = AutoTokenizer.from_pretrained(options.text_tower)
    return prepared(CCRkProcessor(CCRkImageProcessor(), tokenizer, max_length=64), options)


def sample_lengths(rows, processor, limit: int = SAMPLE) -> tuple[list[int], int]:
    """Tokens of a sample of texts, sorted, and how many of them were cut off.

    Args:
        rows: a data set, or a stream, whose beginning is taken.
        processor: of the run.
        limit: rows to look at, spread over the data set.
    """
    if hasattr(rows, "__len__"):
        step = max(1, len(rows) // limit)
        chosen = [rows[place] for place in range(0, len(rows), step)][:limit]
    else:
        chosen = [row for row, _ in zip(rows, range(limit), strict=False)]
    texts = []
    for row in chosen:
        for caption in row["captions"]:
            try:
                texts.append(processor.prepare_text(caption["text"]))
            except (TypeError, ValueError):
                continue
    whole = [len(ids) for ids in processor.tokenizer(texts, verbose=False)["input_ids"]]
    most = processor.max_length or processor.tokenizer.model_max_length
    return sorted(min(length, most) for length in whole), sum(length > most for length in whole)


def plan_data(options: TrainOptions, train_set, lengths: list[int], cut: int) -> list[str]:
    """Lines on rows, steps and tokens."""
    lines = []
    if options.stream:
        lines.append(f"steps             {options.max_steps} in all, of a stream")
    else:
        per_rank = options.batch_size // world_size()
        sampler = GlobalBatchSampler(
            len(train_set), per_rank, 0, world_size(), options.seed, drop_last=options.drop_last
        )
        each = max(1, -(-sampler.batches_per_epoch // options.accumulation))
        total = options.max_steps or int(-(-each * options.epochs // 1))
        lines.append(f"rows              {len(train_set)}, of which {sampler.dropped} are left out of each epoch")
        lines.append(f"steps             {each} an epoch, {total} in all ({total / each:.4g} epochs)")
    middle, late = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
    lines.append(
        f"tokens per text   median {middle}, 95 % up to {late}, longest {lengths[-1]} ({len(lengths)} texts sampled; "
        f"{cut} of them longer than --max-length)"
    )
    return lines


def texts_per_image(options: TrainOptions, rows) -> int:
    """Captions of a photo in a batch, the most that occur in a sample."""
    chosen = rows if not hasattr(rows, "__len__") else (rows[place] for place in range(min(len(rows), SAMPLE)))
    most = 1
    for row, _ in zip(chosen, range(SAMPLE), strict=False):
        most = max(most, len({caption["language"] for caption in row["captions"]}))
    return min(most, options.texts_per_image or most)


def plan(options: TrainOptions) -> str:
    """What `ccrk train --dry-run` prints."""
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    train_set, _ = read_data(options)
    processor = load_processor(options)
    lengths, cut = sample_lengths(train_set, processor)
    texts = texts_per_image(options, train_set)
    model = planned_model(options, planned_config(options))
    counted = count_parameters(model)
    memory = estimate_memory(options, model, texts, lengths[-1])
    lines = plan_data(options, train_set, lengths, cut)
    lines.append(
        f"batch             {options.batch_size} photos with up to {texts} captions, {world_size()} process(es)"
        + (f", {options.mini_batch} photos at once" if options.mini_batch else "")
        + (f", {options.accumulation} batches a step" if options.accumulation > 1 else "")
    )
    lines.append(f"parameters        {counted.total:,}, of which {counted.learning:,} learn")
    for part, (total, learning) in counted.parts.items():
        lines.append(f"  {part:<28} {total:>13,} {learning:>13,}")
    lines.append(f"memory            about {memory.total / 2**30:.2f} GiB in each process")
    for name, value in vars(memory).items():
        lines.append(f"  {name:<28} {value / 2**30:>9.2f} GiB")
    lines.append(f"  on a CPU, libraries and data add {base / 2**30:.2f} GiB")
    return "\n".join([*lines, "", recipe_text(options, "the resolved recipe")])
