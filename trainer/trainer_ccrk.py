"""Trainer of CCRk: the losses of the method, retrieval metrics, frozen towers from cached features."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from transformers import Trainer

from ccrk.evaluation.retrieval import evaluate_retrieval
from ccrk.masking_ccrk import MaskingRules
from ccrk.trainer.arguments_ccrk import CCRkTrainingArguments
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.feature_cache import CachedRows, FeatureCache

NEW_LAYERS = ("crossattention", "_projection.", "itm_head.", "temperature")
CONFIG_OVERRIDES = ("contrastive_variant", "positive_choice", "contrastive_weight", "matching_weight", "mlm_weight")


class CCRkTrainer(Trainer):
    """A `transformers.Trainer` for CCRk models.

    Give it a model, [`CCRkTrainingArguments`], data sets of rows (`image`, `image_id`, `captions`) and a
    [`CCRkProcessor`] as `processing_class`. `evaluate` searches the whole evaluation set and reports recall by
    language and MRV.
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
        frozen = _freeze(model, args.freeze)
        if data_collator is None:
            data_collator = self._make_collator(model, args, kwargs["processing_class"])
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        self._frozen = frozen
        self._partial_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.args.accelerator_config.dispatch_batches = False

    @staticmethod
    def _make_collator(model, args: CCRkTrainingArguments, processor) -> CCRkDataCollator:
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
            )
        return CCRkDataCollator(processor, args.languages, args.texts_per_image, masking)

    def train(self, *args, **kwargs):
        """Trains as `Trainer.train` does; with `cache_features`, the towers' output is computed first."""
        if self.args.cache_features and not isinstance(self.train_dataset, CachedRows):
            folder = self.args.feature_cache_dir or Path(self.args.output_dir) / "feature_cache"
            if not isinstance(self.data_collator, CCRkDataCollator):
                raise ValueError(
                    f"cache_features needs a CCRkDataCollator, which reads the cache; "
                    f"data_collator is a {type(self.data_collator).__name__}"
                )
            self.data_collator.cache = FeatureCache.build(
                folder, self.model, self.processing_class, self.train_dataset, bf16=self.args.bf16
            )
            self.train_dataset = CachedRows(self.train_dataset)
        return super().train(*args, **kwargs)

    def negative_hardness(self) -> float:
        """How hard matching negatives are now: rises from 0 to 1 over `negative_ramp` of the training."""
        steps = self.args.negative_ramp * max(1, self.state.max_steps)
        return 1.0 if steps == 0 else min(1.0, self.state.global_step / steps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the model's losses; the parts are logged beside it."""
        for module in self._frozen:
            module.eval()  # no dropout in a tower that does not learn
        outputs = model(
            **inputs,
            return_loss=True,
            negative_hardness=self.negative_hardness(),
            matching_images=self.args.matching_images,
        )
        if not torch.isfinite(outputs.loss):
            raise ValueError(
                f"the loss is {outputs.loss.item()} at step {self.state.global_step}; training stops here"
            )
        for name in ("contrastive", "matching", "mlm"):
            value = outputs.get(f"loss_{name}")
            if value is not None:
                self._partial_losses[f"loss_{name}"].append(value.detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the mean of each loss and the temperature since the last time."""
        if "loss" in logs:
            for name, values in self._partial_losses.items():
                logs[name] = round(torch.stack(values).mean().item(), 4)
            self._partial_losses.clear()
            logs["temperature"] = round(self.model.retriever.temperature.item(), 5)
        super().log(logs, start_time)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW in four groups: with and without weight decay, and new layers at their own learning rate.

        Biases, norms and the temperature are not decayed. (In the authors' code the temperature and the norm of the
        matching head are; both are known slips.)
        """
        model = self.model if model is None else model
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    new = any(part in name for part in NEW_LAYERS)
                    groups[new, name in decayed and not name.endswith("temperature")].append(parameter)
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
            `eval_ir@1_de` and so on (shares), `eval_ir@1_mean`, `eval_ir@1_worst`, `eval_mrv`; with
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
            batch_size=self.args.eval_batch_size,
        )
        metrics = flat_metrics(report, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _freeze(model, preset: str) -> list[torch.nn.Module]:
    """Takes towers out of training; returns them."""
    retriever = model.retriever
    towers = {"none": [], "image": [retriever.vision_model], "text": [retriever.text_model]}
    towers["towers"] = towers["image"] + towers["text"]
    for tower in towers[preset]:
        tower.requires_grad_(False)
    return towers[preset]


def flat_metrics(report: dict, prefix: str) -> dict[str, float]:
    """The figures of `evaluate_retrieval` under flat names, re-ranked ones in the place of plain ones."""
    metrics: dict[str, float] = {}
    languages = {tag: dict(figures) for tag, figures in report["languages"].items()}
    mrv = report["mrv"]
    if "reranked" in report:
        mrv = report["reranked"]["mrv"]
        for tag, figures in report["reranked"]["languages"].items():
            languages[tag] |= figures
    names = [name for name in next(iter(languages.values())) if "@" in name]
    for name in names:
        values = {tag: figures[name] for tag, figures in languages.items()}
        metrics |= {f"{prefix}_{name}_{tag}": value for tag, value in values.items()}
        metrics[f"{prefix}_{name}_mean"] = sum(values.values()) / len(values)
        metrics[f"{prefix}_{name}_worst"] = min(values.values())
    if mrv is not None:
        metrics[f"{prefix}_mrv"] = mrv["mrv"]
    return metrics
