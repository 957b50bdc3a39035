"""One training run from its options: data, model, trainer, training, what is written; `ccrk train` calls it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, EarlyStoppingCallback, TrainerCallback, set_seed

import ccrk
from ccrk import CCRkForPreTraining, CCRkImageProcessor, CCRkModel, CCRkProcessor
from ccrk.data.corpora import read_corpus, stream_corpus
from ccrk.data.rows import CaptionDataset, first_captions, join_corpora
from ccrk.evaluation.retrieval import evaluate_retrieval, greater_is_better, report_lines
from ccrk.hub_cards.cards import weights_in
from ccrk.hub_cards.model_card import CardOptions, adapter_class
from ccrk.hub_cards.runs import EVALUATION, TRAINING_RUN
from ccrk.trainer.arguments_ccrk import CCRkTrainingArguments
from ccrk.trainer.cards import versions_of_run, write_card, write_json
from ccrk.trainer.checkpoints import last_complete_checkpoint
from ccrk.trainer.options import FIELDS, TrainOptions, flag, nearest
from ccrk.trainer.recipes import RESOLVED, recipe_text
from ccrk.trainer.run_facts import training_facts
from ccrk.trainer.summary import TrainingSummaryCallback
from ccrk.trainer.trainer_ccrk import CCRkTrainer

logger = logging.getLogger(__name__)

# arguments of the trainer that an option sets -> the option
ARGUMENT_OPTIONS = {
    "output_dir": "out",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "mini_batch_size": "mini_batch",
    "dataloader_drop_last": "drop_last",
    "dataloader_num_workers": "workers",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    "max_grad_norm": "clip",
    "contrastive_variant": "variant",
    "negative_strategy": "negatives",
    "feature_cache_dir": "feature_cache",
    "tiled_contrastive": "tiled",
    "eval_rerank": "rerank",
    "eval_languages": "languages",
    "save_total_limit": "keep",
    "logging_steps": "log_steps",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "eval_strategy": "eval_steps",
    "save_strategy": "save_steps",
    "metric_for_best_model": "best_metric",
    "load_best_model_at_end": "best_metric",
    "report_to": "tensorboard",
}
# those that have the same name
ARGUMENT_OPTIONS |= {one.name: one.name for one in fields(CCRkTrainingArguments) if one.name in FIELDS}


def world_size() -> int:
    """Number of training processes, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", 0)) == 0


def say(text: str) -> None:
    """Prints in process 0."""
    if is_main():
        print(text, flush=True)


# --- data ---------------------------------------------------------------------------------------------------------


def one_for_each(name: str, values: Sequence[str] | None, sources: Sequence[str]) -> list[str | None]:
    """A value for each source, of one value for all or of as many; `none` is none.

    Raises:
        ValueError: if their numbers differ.
    """
    if not values:
        return [None] * len(sources)
    if len(values) == 1:
        values = list(values) * len(sources)
    if len(values) != len(sources):
        raise ValueError(f"{flag(name)} names {len(values)}, but there are {len(sources)} sources; give one or each")
    return [None if value == "none" else value for value in values]


def _columns(options: TrainOptions) -> dict[str, str] | None:
    return {role: str(column) for role, column in options.columns.items()} or None


def read_sources(options: TrainOptions, kind: str = "data") -> CaptionDataset:
    """Reads and joins the sources to train on, or to evaluate on.

    Args:
        options: of the run.
        kind: `data` or `eval`.

    Raises:
        OSError, ValueError: of the readers, naming the file.
    """
    prefix = "" if kind == "data" else "eval_"
    sources = getattr(options, kind)
    formats, splits = (
        one_for_each(prefix + name, getattr(options, prefix + name), sources) for name in ("format", "split")
    )
    folders = options.images if kind == "data" else options.eval_images or options.images
    images = one_for_each(f"{prefix}images", folders, sources)
    common = {"languages": options.languages, "sources": options.source, "language": options.language}
    common["columns"] = _columns(options)
    common = {name: value for name, value in common.items() if value is not None}
    corpora = [
        read_corpus(source, format=format, split=split, images=folder, **common)
        for source, format, split, folder in zip(sources, formats, splits, images, strict=True)
    ]
    return corpora[0] if len(corpora) == 1 else join_corpora(*corpora)


def open_stream(options: TrainOptions):
    """The sources to train on as one stream.

    Raises:
        ValueError: if they are of several formats, splits or image folders; or of the readers.
    """
    for name in ("format", "split", "images"):
        if len(getattr(options, name) or ()) > 1:
            raise ValueError(f"--stream reads sources of one kind, but {flag(name)} names several")
    first = {name: (getattr(options, name) or [None])[0] for name in ("format", "split", "images")}
    return stream_corpus(
        options.data[0] if len(options.data) == 1 else options.data,
        **first,
        languages=options.languages,
        language=options.language,
        columns=_columns(options),
        sources=options.source or (),
        seed=options.seed,
        buffer_size=options.buffer_size,
    )


def captions_as_rows(dataset: CaptionDataset) -> CaptionDataset:
    """Each caption as a row of its own; the image id says which belong to one photo."""
    rows = [{**row, "captions": [caption]} for row in dataset.rows for caption in row["captions"]]
    return CaptionDataset(rows, dataset.skipped)


def read_data(options: TrainOptions):
    """What to train on and what to evaluate on (or None), described to the user."""
    if options.stream:
        train_set = open_stream(options)
        say(f"training on a stream of {', '.join(options.data)}")
    else:
        train_set = read_sources(options)
        say(f"training on {train_set.describe()}")
        if options.captions_as_rows:
            train_set = captions_as_rows(train_set)
            say(f"each caption is an example of its own: {len(train_set)}")
    if not options.eval:
        return train_set, None
    eval_set = first_captions(read_sources(options, "eval"))
    say(f"evaluating on {eval_set.describe()}")
    return train_set, eval_set


# --- model --------------------------------------------------------------------------------------------------------


def model_fields(options: TrainOptions) -> dict[str, Any]:
    """Fields of the configuration of a new model."""
    made = {
        "text_pooling": options.pooling,
        "fusion_pooling": options.pooling,
        "projection_dim": options.projection_dim,
        "projection_hidden_size": options.projection_hidden,
        "projection_dropout": options.projection_dropout,
        "fusion_image_norm": options.fusion_image_norm,
    }
    return made | ({} if options.position_offset is None else {"position_offset": options.position_offset})


def load_model(options: TrainOptions):
    """The model to start from, and its processor."""
    model_class = CCRkForPreTraining if options.mlm_weight else CCRkModel
    if options.model:
        size = {"image_size": options.image_size} if options.image_size else {}
        model = model_class.from_pretrained(options.model, **size)
        return model, prepared(AutoProcessor.from_pretrained(options.model), options)
    model = model_class.from_towers(
        image=options.image_tower,
        text=options.text_tower,
        text_layers=options.text_layers,
        fusion_layers=options.fusion_layers,
        image_size=options.image_size,
        **model_fields(options),
    )
    side = model.config.image_size
    if options.image_stats == "clip":
        image_processor = CCRkImageProcessor(size={"height": side, "width": side})
    else:
        image_processor = CCRkImageProcessor.from_tower(options.image_tower, side)
    tokenizer = AutoTokenizer.from_pretrained(options.text_tower)
    return model, prepared(CCRkProcessor(image_processor, tokenizer, max_length=64), options)


def prepared(processor: CCRkProcessor, options: TrainOptions) -> CCRkProcessor:
    """A processor with the options that change it."""
    for name in ("max_length", "max_words", "clean_text"):
        if getattr(options, name) is not None:
            setattr(processor, name, getattr(options, name))
    if options.text_prefix:
        processor.text_prefix = options.text_prefix
    if options.image_size:
        processor.image_processor.size = {"height": options.image_size, "width": options.image_size}
    return processor


# --- trainer ------------------------------------------------------------------------------------------------------


def other_arguments(options: TrainOptions) -> dict[str, Any]:
    """What `--set` sets.

    Raises:
        ValueError: for a name that is unknown, with the nearest one, or that has an option of its own.
    """
    known = {one.name for one in fields(CCRkTrainingArguments) if one.init}
    for name in options.set:
        if name in ARGUMENT_OPTIONS:
            raise ValueError(f"--set {name}: this is {flag(ARGUMENT_OPTIONS[name])}")
        if name not in known:
            raise ValueError(f"--set {name}: CCRkTrainingArguments has no such argument{nearest(name, known)}")
    return dict(options.set)


def _interval(value: str | int | None) -> tuple[str, int]:
    """Strategy and steps of transformers."""
    if value is None:
        return "no", 500
    return ("epoch", 500) if value == "epoch" else ("steps", int(value))


def training_arguments(options: TrainOptions) -> CCRkTrainingArguments:
    """The arguments of the trainer.

    Raises:
        ValueError: if something does not go together, naming it.
    """
    processes = world_size()
    if options.batch_size % processes:
        raise ValueError(f"--batch-size {options.batch_size} cannot be shared out among {processes} processes alike")
    if options.tensorboard and not any(importlib.util.find_spec(n) for n in ("tensorboard", "tensorboardX")):
        raise ValueError("--tensorboard needs the package of that name: pip install tensorboard")
    best = options.best_metric or ("ir@1_mean" if options.early_stopping else None)
    save = options.save_steps or (min(10_000, options.max_steps) if options.stream else "epoch")
    (eval_strategy, eval_steps), (save_strategy, save_steps) = _interval(options.eval_steps), _interval(save)
    if best:  # the best checkpoint is one of those that were evaluated
        save_strategy, save_steps = eval_strategy, eval_steps
    same = [name for name, option in ARGUMENT_OPTIONS.items() if name == option]
    given = {name: getattr(options, name) for name in same if name not in ("eval_steps", "save_steps")}
    given |= {
        "output_dir": options.out,
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps or -1,
        "per_device_train_batch_size": options.batch_size // processes,
        "gradient_accumulation_steps": options.accumulation,
        "mini_batch_size": options.mini_batch,
        "dataloader_drop_last": options.drop_last,
        "dataloader_num_workers": options.workers,
        "dataloader_pin_memory": torch.cuda.is_available(),  # without a device it is a warning each epoch
        "learning_rate": options.lr,
        "lr_scheduler_type": options.schedule,
        "warmup_steps": options.warmup,
        "max_grad_norm": options.clip,
        "adam_beta1": options.betas[0],
        "adam_beta2": options.betas[1],
        "contrastive_variant": options.variant,
        "negative_strategy": options.negatives,
        "feature_cache_dir": options.feature_cache,
        "tiled_contrastive": options.tiled,
        "eval_rerank": options.rerank if options.matching_weight else 0,
        "eval_languages": options.languages,
        "eval_strategy": eval_strategy,
        "eval_steps": eval_steps if eval_strategy == "steps" else None,
        "save_strategy": save_strategy,
        "save_steps": save_steps,
        "save_total_limit": options.keep,
        "logging_steps": options.log_steps,
        "metric_for_best_model": best,
        "load_best_model_at_end": best is not None,
        "greater_is_better": None if best is None else greater_is_better(best),
        "report_to": "tensorboard" if options.tensorboard else "none",
        "use_cpu": not torch.accelerator.is_available(),  # else transformers refuses bfloat16 on a CPU
        "lora_crossattention": options.lora_crossattention or ("lora" if options.model else "full"),
    }
    return CCRkTrainingArguments(**{**given, **other_arguments(options)})


def callbacks(options: TrainOptions) -> list[TrainerCallback]:
    """What watches the training."""
    watching: list[TrainerCallback] = []
    if options.early_stopping:
        watching.append(EarlyStoppingCallback(options.early_stopping))
    watching.append(TrainingSummaryCallback())
    return watching


class TrainingRun:
    """A run: `TrainingRun(options).train()`, then `evaluate`.

    Attributes:
        options: of the run.
        train_set, eval_set: what was read.
        model, processor: what is trained; after `train` the trained model, adapters merged.
        trainer: the [`CCRkTrainer`].
        cost: wall time, processor time and peak memory of the training.
        facts: of the training, see `training_facts`.
    """

    def __init__(self, options: TrainOptions):
        self.options = options
        if options.threads:
            torch.set_num_threads(options.threads)
        arguments = training_arguments(options)  # first: it joins the processes, and finds what does not go together
        self.train_set, self.eval_set = read_data(options)
        set_seed(options.seed)
        self.model, self.processor = load_model(options)
        self.cost: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.trainer = CCRkTrainer(
            model=self.model,
            args=arguments,
            train_dataset=self.train_set,
            eval_dataset=self.eval_set,
            processing_class=self.processor,
            callbacks=callbacks(options),
        )

    def train(self) -> None:
        """Trains; writes the resolved options before, so that a run that fails can be repeated."""
        options = self.options
        if is_main():
            folder = Path(options.out)
            folder.mkdir(parents=True, exist_ok=True)
            remark = (
                f"What ccrk {ccrk.__version__} trained with, in {world_size()} process(es). It is a recipe:\n"
                f"ccrk train --recipe {RESOLVED} repeats the run, from the folder that its paths start from."
            )
            (folder / RESOLVED).write_text(recipe_text(options, remark), encoding="utf-8")
        if options.resume and last_complete_checkpoint(options.out) is None:
            say(f"no checkpoint in {options.out} yet: the run begins")
        wall = time.time()
        self.trainer.train(resume_from_checkpoint="auto" if options.resume else None)
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.cost = {
            "wall_s": round(time.time() - wall, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "peak_rss_mib": round(used.ru_maxrss / 1024),
        }
        say(f"trained: {json.dumps(self.cost)}")
        started_from = [options.model] if options.model else [options.image_tower, options.text_tower]
        # now, for merging adapters changes what there is to count
        self.facts = training_facts(self.trainer, started_from, options.data)
        self.model = self.trainer.merged_model(Path(options.out) / "adapter" if is_main() else None)

    def evaluate(self) -> dict | None:
        """Searches the evaluation set, prints the figures and writes `evaluation.json`; None without one."""
        if self.eval_set is None:
            return None
        begun, rerank = time.perf_counter(), self.options.rerank if self.options.matching_weight else 0
        report = evaluate_retrieval(
            self.model,
            self.processor,
            self.eval_set,
            languages=self.options.languages,
            rerank=rerank,
            rerank_directions=["text-to-image"],
            details=True,
            progress=True,
        )
        print("\n".join(report_lines(report)))
        used = {"wall_s": round(time.perf_counter() - begun, 2), "rerank": rerank, "ties": "pessimistic"}
        settings = {"data": self.options.eval, "first_captions": True, "weights": weights_in(self.options.out), **used}
        settings |= versions_of_run()
        report = {"cost": self.cost, "arguments": asdict(self.options), "settings": settings, **report}
        write_json(Path(self.options.out, EVALUATION), report)
        return report

    def write_card(self) -> None:
        """Writes `training_run.json` and the model card, of the training and of `evaluation.json` if there is one.

        A folder of adapters gets a card, too. What goes wrong is a warning.
        """
        folder = Path(self.options.out)
        runs = [folder / TRAINING_RUN, *([folder / EVALUATION] if self.eval_set is not None else [])]
        name = folder.resolve().name
        try:
            write_json(folder / TRAINING_RUN, self.facts)
        except OSError as error:
            logger.warning("there is no model card: %s", error)
            return
        if write_card(folder, CardOptions(name), runs):
            say(f"the model card is {folder / 'README.md'}")
        adapter = adapter_class(folder / "adapter")
        if adapter:
            write_card(folder / "adapter", CardOptions(f"{name}-adapter", adapter=adapter), runs)
