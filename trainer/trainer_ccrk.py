"""Trainer of CCRk: the losses of the method, the same step for any number of processes, runs that survive."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ccrk.data.augmentation import AugmentationRules
from ccrk.data.report import TAIL, SkipReport
from ccrk.data.sharding import BatchStream, EpochRows, GlobalBatchSampler
from ccrk.draws_ccrk import mix
from ccrk.evaluation.retrieval import evaluate_retrieval, flat_metrics
from ccrk.masking_ccrk import MaskingRules
from ccrk.objectives_ccrk import SingleProcess
from ccrk.trainer.arguments_ccrk import FREEZE_PRESETS, CCRkTrainingArguments
from ccrk.trainer.cards import CardWriting
from ccrk.trainer.checkpoints import SKIPPED, STATE, SafeCheckpoints
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.exchange import ProcessExchange
from ccrk.trainer.feature_cache import CachedRows, FeatureCache, one_by_one
from ccrk.trainer.gradient_cache import CachedStep
from ccrk.trainer.loading import EpochLoader, IterableRecords, is_stream, language_counts, undecoded
from ccrk.trainer.parameters import choose_learning, decays, is_new

logger = logging.getLogger(__name__)

CONFIG_OVERRIDES = (
    "contrastive_variant",
    "positive_choice",
    "negative_strategy",
    "english_guidance",
    "contrastive_weight",
    "matching_weight",
    "mlm_weight",
)
UNUSABLE = 50  # batches in a row of which not one row can be used, before a training that has used none gives up


class _Bookkeeping(TrainerCallback):
    """Counts what an epoch leaves out at its end, and the epochs of a stream in a run that goes on."""

    def __init__(self, trainer: CCRkTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        """Called before anything is logged or saved."""
        sampler = self.trainer._sampler
        if sampler is None:
            state.epoch = state.global_step / max(1, state.max_steps)
            return
        steps = -(-sampler.batches_per_epoch // args.gradient_accumulation_steps)
        if sampler.dropped and sampler.rank == 0 and state.global_step % steps == 0:
            epoch = state.global_step // steps - 1
            for row in sampler.order(epoch)[-sampler.dropped :]:
                self.trainer.skipped.add(TAIL, f"row {row}")


class CCRkTrainer(CardWriting, SafeCheckpoints, Trainer):
    """A `transformers.Trainer` for CCRk models.

    Give it a model, [`CCRkTrainingArguments`], data sets of rows (`image`, `image_id`, `captions`) and a
    [`CCRkProcessor`] as `processing_class`. `evaluate` searches the whole evaluation set and reports recall by
    language and MRV.

    With several processes, a step is that of one process on the whole batch: losses are means over it, negatives come
    from all of it, and rows are shared out so that none is read twice or lost.

    Attributes:
        skipped: what this process has left out in training, by cause.
    """

    loss_is_scaled_for_ga = False  # losses are means over the batch

    def __init__(self, model=None, args: CCRkTrainingArguments | None = None, data_collator=None, **kwargs):
        if kwargs.get("processing_class") is None:
            raise ValueError("CCRkTrainer needs a processor: pass processing_class=CCRkProcessor(...)")
        args = args if args is not None else CCRkTrainingArguments("ccrk_output")
        for name in CONFIG_OVERRIDES:
            if getattr(args, name) is not None:
                setattr(model.config, name, getattr(args, name))
        if not hasattr(model, "mlm_head"):
            model.config.mlm_weight = 0.0
        model.retriever.add_logit_bias()
        frozen = choose_learning(model, FREEZE_PRESETS[args.freeze], args.freeze_parameters or [])
        if args.lora:
            from ccrk.trainer.adapters import add_adapters  # peft takes seconds to import

            model = add_adapters(
                model,
                args.lora,
                rank=args.lora_rank,
                alpha=args.lora_alpha,
                dropout=args.lora_dropout,
                crossattention=args.lora_crossattention,
            )
        if data_collator is None:
            data_collator = self._make_collator(model, args, kwargs["processing_class"], kwargs.get("train_dataset"))
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        self._frozen = frozen
        self._reports: dict[tuple[int, str], dict] = {}  # step of the weights and name of the set -> report
        self._loaded_step: int | None = None  # of weights that are no longer those of the last step
        self._partial_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._batches_done = 0  # of a stream, when a run goes on
        self._row_ids: list[str] = []
        self._usable = self._unusable = 0  # batches of this process with something in them, and without
        self._sampler: GlobalBatchSampler | None = None
        self.add_callback(_Bookkeeping(self))
        self.skipped = SkipReport()
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.exchange = ProcessExchange() if several else SingleProcess()

    @staticmethod
    def _make_collator(model, args: CCRkTrainingArguments, processor, dataset) -> CCRkDataCollator:
        masking = None
        if hasattr(model, "mlm_head") and model.config.mlm_weight:
            tokenizer = processor.tokenizer
            if tokenizer.mask_token_id is None:
                raise ValueError("the tokenizer has no mask token; train with mlm_weight=0, or give it one")
            masking = MaskingRules(
                tokenizer.mask_token_id,
                model.config.text_config.vocab_size,
                mask_ratio=args.mask_ratio,
                max_masks=args.max_masks,
                span_probability=args.span_probability,
            )
        augmentation = None
        if args.augmentation != "none":
            augmentation = AugmentationRules.preset(args.augmentation, model.config.image_size)
        return CCRkDataCollator(
            processor,
            args.languages,
            args.texts_per_image,
            masking,
            seed=args.seed,
            augmentation=augmentation,
            language_counts=language_counts(dataset) if args.language_sampling == "balanced" else None,
            source_weights=args.caption_weights(),
            guide=bool(model.config.english_guidance),
            on_broken=args.on_broken,
        )

    # --- data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """A loader of this process's share of each global batch; see `ccrk.data.sharding`.

        The sharding of accelerate is not used: it reads rows twice to fill the last batch, or cuts streams by slicing
        every tensor of a batch alike, which images and texts of different number do not survive.
        """
        if self.train_dataset is None:
            raise ValueError("CCRkTrainer: training requires a train_dataset")
        args, dataset = self.args, undecoded(self.train_dataset)
        rank, world_size = self.exchange.rank, self.exchange.world_size
        workers = args.dataloader_num_workers
        options = {
            "collate_fn": self.data_collator,
            "num_workers": workers,
            "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": args.dataloader_persistent_workers and workers > 0,
            "multiprocessing_context": args.dataloader_multiprocessing_context if workers else None,
            "prefetch_factor": args.dataloader_prefetch_factor if workers else None,
            # a loader draws from its generator when it is begun, which a run that goes on does once more
            "generator": torch.Generator().manual_seed(args.seed),
        }
        self._sampler = None
        if is_stream(dataset):
            if getattr(dataset, "_distributed", None) is not None:
                raise ValueError("the stream is split by node already; give the trainer the whole one")
            stream = BatchStream(
                dataset if hasattr(dataset, "records") else IterableRecords(dataset),
                self._train_batch_size,
                rank,
                world_size,
                start_batch=self._batches_done,
                drop_last=args.dataloader_drop_last,
            )
            return DataLoader(stream, batch_size=None, **options)
        self._sampler = self._make_sampler(len(dataset))
        return EpochLoader(EpochRows(dataset), batch_sampler=self._sampler, **options)

    def _make_sampler(self, num_rows: int) -> GlobalBatchSampler:
        args = self.args
        return GlobalBatchSampler(
            num_rows,
            self._train_batch_size,
            self.exchange.rank,
            self.exchange.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy == "random",
            drop_last=args.dataloader_drop_last,
        )

    # --- a run ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Trains as `Trainer.train` does.

        With `cache_features`, the towers' output is computed first. `resume_from_checkpoint=True` goes on from the
        last checkpoint that was written to its end, and `"auto"` too, or begins where there is none: a command that
        can be given again however often it is killed. The run ends as one that was not interrupted. What was left
        out is written to `skipped.json` in the output folder.

        Raises:
            ValueError: if there is no checkpoint to go on from, the one named is not whole, a loss or a gradient is
                not finite, or not one row can be used.
        """
        resume_from_checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        if self.args.cache_features and not isinstance(self.train_dataset, CachedRows):
            if not is_stream(self.train_dataset):
                self._make_sampler(len(self.train_dataset))  # too few rows are seen before hours of work, not after
            self._cache_features()
        ignored, self.skipped = self.args.ignore_data_skip, SkipReport()
        self._loaded_step = None
        self._reports.clear()
        self._usable = self._unusable = 0
        if resume_from_checkpoint:
            self._recall(Path(resume_from_checkpoint))
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip, self._batches_done = ignored, 0
        self._report_skipped()
        return result

    def _recall(self, checkpoint: Path) -> None:
        """Takes up what a checkpoint knows beside the state of transformers: skipped rows, the place in a stream."""
        if self.exchange.rank == 0 and (checkpoint / SKIPPED).exists():
            self.skipped = SkipReport.from_dict(json.loads((checkpoint / SKIPPED).read_text(encoding="utf-8")))
        if is_stream(self.train_dataset) and not self.args.ignore_data_skip:
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            self._batches_done = state["global_step"] * self.args.gradient_accumulation_steps
            self.args.ignore_data_skip = True  # the stream skips by itself, without opening a single photo

    def _cache_features(self) -> None:
        folder = self.args.feature_cache_dir or Path(self.args.output_dir) / "feature_cache"
        if not isinstance(self.data_collator, CCRkDataCollator):
            raise ValueError(
                f"cache_features needs a CCRkDataCollator, which reads the cache; "
                f"data_collator is a {type(self.data_collator).__name__}"
            )
        if is_stream(self.train_dataset):
            raise ValueError("cache_features needs a data set that can be indexed, not a stream")
        rows = undecoded(self.train_dataset)
        frozen = FREEZE_PRESETS[self.args.freeze]
        parts = tuple(p for p, t in (("images", "vision_model"), ("texts", "text_model")) if t in frozen)

        def build() -> FeatureCache:
            options = {"parts": parts, "bf16": self.args.bf16, "on_broken": self.args.on_broken}
            return FeatureCache.build(folder, self.model, self.processing_class, rows, **options)

        several = self.exchange.world_size > 1
        if several:
            # one process writes; the others open what is there, or write it where they do not share a disk
            one_by_one([self.args.process_index == 0, self.args.local_process_index == 0], build)
        self.data_collator.cache = build()
        self.train_dataset = CachedRows(rows, keep_images="images" not in parts)

    def all_skipped(self) -> SkipReport:
        """What all processes have left out; called by all of them."""
        if self.exchange.world_size == 1:
            return SkipReport().merge(self.skipped)
        parts: list[Any] = [None] * self.exchange.world_size
        dist.all_gather_object(parts, self.skipped.to_dict())
        total = SkipReport()
        for part in parts:
            total.merge(SkipReport.from_dict(part))
        return total

    def merged_model(self, adapter_folder: str | Path | None = None):
        """The trained model with adapters, where there are any, merged into its weights; then training is over.

        Args:
            adapter_folder: where to save the adapters by themselves before.
        """
        if not self.args.lora:
            return self.model
        from ccrk.trainer.adapters import plain_model

        if adapter_folder is not None:
            self.model.save_pretrained(adapter_folder)
        return plain_model(self.model)

    def _report_skipped(self) -> None:
        total = self.all_skipped()
        if self.is_world_process_zero() and total:
            folder = Path(self.args.output_dir)
            logger.warning(f"left out in training, over all epochs:\n{total.table()}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / SKIPPED).write_text(json.dumps(total.to_dict(), indent=1), encoding="utf-8")
            except OSError as error:  # the training is done, and worth more than its report
                logger.error(f"'{folder / SKIPPED}' could not be written: {error}")
        batches = torch.tensor([float(self._usable), float(self._unusable)], device=self.args.device)
        usable, unusable = self.exchange.total(batches).tolist()
        if unusable and not usable:
            raise self._no_rows(total)

    @staticmethod
    def _no_rows(skipped: SkipReport) -> ValueError:
        return ValueError(f"not one row of the data could be used, so nothing was learned:\n{skipped.table()}")

    # --- a step ---------------------------------------------------------------------------------------------------

    def negative_hardness(self) -> float:
        """How hard matching negatives are now: rises from 0 to 1 over `negative_ramp` of the training."""
        steps = self.args.negative_ramp * max(1, self.state.max_steps)
        return 1.0 if steps == 0 else min(1.0, self.state.global_step / steps)

    def _prepare_inputs(self, inputs):
        """Takes out what is not for the model, and makes the keys of draws those of this step."""
        inputs = dict(inputs)
        skipped = inputs.pop("skipped", None)
        if isinstance(skipped, SkipReport):
            self.skipped.merge(skipped)
        self._row_ids = inputs.pop("row_ids", [])
        inputs = super()._prepare_inputs(inputs) if inputs else inputs
        keys = inputs.pop("draw_keys", None)
        if keys is not None and self.args.keyed_draws:
            inputs["draw_keys"] = mix(keys, self.state.global_step)
        return inputs

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """One forward and backward pass, in pieces where `mini_batch_size` says so."""
        if self.args.mini_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.is_fsdp_enabled:
            raise ValueError("mini_batch_size does not go with FSDP, which gathers weights for whole forward passes")
        model.train()
        plain = self.accelerator.unwrap_model(model)
        inputs = self._complete(self._prepare_inputs(inputs))
        if inputs is None:
            return self._nothing(plain).detach()
        self._before_step(plain)
        step = CachedStep(
            plain,
            inputs,
            self.args.mini_batch_size,
            exchange=self.exchange,
            hardness=self.negative_hardness(),
            matching_images=self.args.matching_images,
            tiled=self.args.tiled_contrastive,
            autocast=self.accelerator.autocast,
        )
        scale = 1 / self.current_gradient_accumulation_steps
        if self.accelerator.scaler is not None:  # float16: gradients are kept large, and the optimizer undoes it
            scale *= float(self.accelerator.scaler.scale(torch.ones((), device=plain.device)))
        # gradients are added up over processes below, so nothing is averaged, and no backward pass is waited for
        losses = step.run(scale)
        self._note_losses(losses["loss"], losses)
        if self.exchange.world_size > 1 and self.accelerator.sync_gradients:
            self.exchange.sum_gradients(plain.parameters())
        return losses["loss"].detach() * self.exchange.world_size / self.current_gradient_accumulation_steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the model's losses; the parts are logged beside it.

        Times the number of processes, of whose gradients the mean will be taken: what is wanted is their sum.
        """
        plain = self.accelerator.unwrap_model(model)
        inputs = self._complete(inputs)
        if inputs is None:
            return (self._nothing(plain), None) if return_outputs else self._nothing(plain)
        self._before_step(plain)
        outputs = model(
            **inputs,
            return_loss=True,
            negative_hardness=self.negative_hardness(),
            matching_images=self.args.matching_images,
            tiled=self.args.tiled_contrastive,
            lenient=True,
            exchange=self.exchange if self.exchange.world_size > 1 else None,
        )
        parts = {name: outputs.get(f"loss_{name}") for name in ("contrastive", "matching", "mlm")}
        self._note_losses(outputs.loss, {name: value for name, value in parts.items() if value is not None})
        loss = outputs.loss * self.exchange.world_size
        return (loss, outputs) if return_outputs else loss

    def _before_step(self, model) -> None:
        for module in self._frozen:
            module.eval()  # no dropout in a part that does not learn
        if self.args.temperature_range is not None:
            with torch.no_grad():
                model.retriever.temperature.clamp_(*self.args.temperature_range)

    def _complete(self, inputs):
        """The inputs, or where every row of this process was broken: None, or a stand-in if others go on.

        Raises:
            ValueError: if the collator leaves out the index, or nothing at all can be used.
        """
        if "image_index" in inputs:
            self._usable += 1
            return inputs
        if inputs:
            raise ValueError(
                f"the collator's batch has no 'image_index', the row of the image that each text describes (it has "
                f"{', '.join(sorted(inputs))}); CCRkDataCollator makes one, and so does the processor of nested texts"
            )
        self._unusable += 1
        if self.exchange.world_size == 1:
            if not self._usable and self._unusable >= UNUSABLE:
                raise self._no_rows(self.skipped)
            return None
        return self._stand_in()

    def _stand_in(self) -> dict[str, torch.Tensor]:
        """A batch that takes part in what processes exchange, and counts for nothing."""
        size = self.model.config.image_size
        blank = [torch.zeros(3, size, size, dtype=torch.uint8).permute(1, 2, 0).numpy()]
        inputs = dict(self.processing_class(images=blank, text=[["a"]], return_tensors="pt"))
        cache = getattr(self.data_collator, "cache", None)
        if cache is not None and cache.images is not None:
            inputs.pop("pixel_values")
            inputs["image_hidden_states"] = cache.image_states(0)[None]
        if cache is not None and cache.texts is not None:
            length = inputs["input_ids"].shape[1]
            inputs["text_hidden_states"] = torch.zeros(1, length, self.model.config.text_config.hidden_size)
        inputs |= {"image_ids": torch.zeros(1, dtype=torch.long), "text_weights": torch.ones(1)}
        if self.args.keyed_draws:
            inputs["draw_keys"] = torch.zeros(1, dtype=torch.long)
        if getattr(self.data_collator, "guide", False):
            inputs["is_guide"] = torch.zeros(1, dtype=torch.bool)
        if getattr(self.data_collator, "masking", None) is not None:
            inputs["masked_input_ids"] = inputs["input_ids"]
            inputs["mlm_labels"] = torch.full_like(inputs["input_ids"], -100)
        return super()._prepare_inputs(inputs) | {"stand_in": True}

    @staticmethod
    def _nothing(model) -> torch.Tensor:
        """A loss of 0 that reaches every parameter, so that a step can be taken with no gradient."""
        return sum((p.sum() * 0 for p in model.parameters() if p.requires_grad), torch.zeros(()))

    def _note_losses(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Keeps the parts for the log, and stops where a loss is not finite.

        Raises:
            ValueError: naming the step, the part at fault and the images of the batch.
        """
        for name, value in parts.items():
            if name != "loss":
                self._partial_losses[f"loss_{name}"].append(value.detach())
        # all processes stop together, or the others would wait for this one
        if self.exchange.largest((~torch.isfinite(loss.detach())).float()):
            found = {name: value.item() for name, value in parts.items() if not torch.isfinite(value)}
            self._stop(f"the loss is {loss.item()}" + (f" ({found})" if found else ""), torch.isfinite(loss))

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of the gradient; one that is not finite would spoil all weights, and checkpoints after that."""
        norm = super()._get_grad_norm(model, grad_norm)
        # in half precision with a scaler such steps occur, and are left out
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._stop(f"the norm of the gradient is {float(norm)}", finite=False)
        return norm

    def _stop(self, what: str, finite: bool) -> None:
        """Ends the training in all processes, with the images of the whole batch.

        Raises:
            ValueError: always.
        """
        temperature = self.model.retriever.temperature.item()
        reports: list[Any] = [(what, bool(finite), self._row_ids)]
        if self.exchange.world_size > 1:
            own, reports = reports[0], [None] * self.exchange.world_size
            dist.all_gather_object(reports, own)
        what = next((report[0] for report in reports if not report[1]), what)
        ids = [identity for *_, part in reports for identity in part]
        shown = ", ".join(ids[:64]) + (f" and {len(ids) - 64} more" if len(ids) > 64 else "")
        raise ValueError(
            f"{what} at step {self.state.global_step}: it is not finite, so training stops here, before the weights "
            f"are changed. The learning rate was {self._get_learning_rate():.3g}, the temperature {temperature:.4g}. "
            f"Images of the batch: {shown or 'unknown'}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the mean of each loss and the temperature since the last time."""
        if "loss" in logs:
            for name, values in self._partial_losses.items():
                logs[name] = round(self.exchange.total(torch.stack(values).mean()).item(), 4)
            self._partial_losses.clear()
            logs["temperature"] = round(self.model.retriever.temperature.item(), 5)
        super().log(logs, start_time)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW in four groups: with and without weight decay (see `decay_rules`), new layers at their own rate."""
        model = self.model if model is None else model
        if self.optimizer is None:
            standard = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups[is_new(name), decays(name, standard, self.args.decay_rules)].append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            rate = options.pop("lr", self.args.learning_rate)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": rate * (self.args.new_layer_multiplier if new else 1.0),
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                    }
                    for (new, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
                ],
                **options,
            )
        return self.optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Searches the whole evaluation set: recall by language, its mean and worst, and MRV.

        Args:
            eval_dataset: rows as for training; the trainer's own by default. A dict of several is evaluated in turn.
            ignore_keys: unused; part of the interface.
            metric_key_prefix: put before every name.

        Returns:
            `eval_ir@1_de` and so on (shares), `eval_ir@1_mean`, `eval_ir@1_worst`, `eval_rsum` and `eval_mrv`; with
            `args.eval_rerank` text-to-image figures are the re-ranked ones.

        Raises:
            ValueError: if there is no evaluation set.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None:
            raise ValueError("there is no evaluation set: pass eval_dataset to the trainer or to evaluate")
        if isinstance(dataset, dict):
            metrics: dict[str, float] = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        report = evaluate_retrieval(
            self.model,
            self.processing_class,
            dataset,
            languages=self.args.eval_languages,
            rerank=self.args.eval_rerank,
            rerank_directions=["text-to-image"],  # one figure to choose by, at half the cost
            batch_size=self.args.eval_batch_size,
            on_broken=self.args.on_broken,
            bf16=self.args.bf16 or self.args.bf16_full_eval,
            rank=self.exchange.rank,
            world_size=self.exchange.world_size,
        )
        self._remember(report, metric_key_prefix.removeprefix("eval").removeprefix("_"))
        metrics = flat_metrics(report, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
