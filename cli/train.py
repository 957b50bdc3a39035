"""`ccrk train`: trains on photos with captions in several languages."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

NAME = "train"
HELP = """Train a CCRk model on your captions.

The data are JSON Lines, one photo a line: {"image": "photos/1.jpg", "id": "1", "captions": {"en": ["..."], "de":
["..."]}}. Start from pretrained towers (--image-tower, --text-tower) or go on from a model (--model). With --freeze
towers --cache-features the towers' output is computed once, and the rest trains at a fraction of the cost."""


NEW_MODEL_OPTIONS = (
    "image_tower",
    "text_tower",
    "text_layers",
    "fusion_layers",
    "pooling",
    "projection_dim",
    "projection_hidden",
    "projection_dropout",
    "fusion_image_norm",
    "text_prefix",
    "max_length",
)
"""Options that shape a new model; they mean nothing for one that is there already."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ccrk train`."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help="JSON Lines of photos and captions to train on")
    data.add_argument("--eval", help="the same, to evaluate on after training")
    data.add_argument("--images", help="folder that image paths start from (default: the data file's folder)")
    data.add_argument("--languages", nargs="+", help="languages to use (default: all)")
    data.add_argument(
        "--source", nargs="+", default=[], metavar="LANG=NAME", help="take extra captions, such as zh=zh_human"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="CCRk model to go on from: a folder or a Hub id")
    model.add_argument("--image-tower", help="timm model: a name, a Hub id or a folder")
    model.add_argument("--text-tower", help="XLM-R or BERT family encoder: a Hub id or a folder")
    model.add_argument("--text-layers", type=layer_list, help="its layers for the text tower, such as 0-5 or 1,3,5")
    model.add_argument("--fusion-layers", type=layer_list, help="its layers for the fusion encoder")
    model.add_argument(
        "--pooling", choices=("first", "mean"), default="first", help="summary of a text (default: first)"
    )
    model.add_argument("--projection-dim", type=int, default=256, help="length of embeddings (default: 256)")
    model.add_argument(
        "--projection-hidden", type=int, help="width of a hidden layer in the projections (default: none)"
    )
    model.add_argument(
        "--projection-dropout", type=float, default=0.0, help="dropout in the projections; 0.3 for frozen towers"
    )
    model.add_argument(
        "--fusion-image-norm", action="store_true", help="for image towers that do not end in a norm, as most CNNs"
    )
    model.add_argument("--text-prefix", default="", help='put before every text, such as "query: " for E5 towers')
    model.add_argument("--max-length", type=int, default=64, help="tokens per text (default: 64)")
    train = parser.add_argument_group("training")
    train.add_argument("--out", required=True, help="folder for the model, its processor and the figures")
    train.add_argument("--epochs", type=float, default=10, help="passes over the data (default: 10)")
    train.add_argument("--batch-size", type=int, default=64, help="photos in a step (default: 64)")
    train.add_argument("--texts-per-image", type=int, help="captions of a photo in a step (default: one per language)")
    train.add_argument("--lr", type=float, default=1e-4, help="learning rate (default: 1e-4)")
    train.add_argument("--new-layer-multiplier", type=float, default=2.0, help="learning rate factor of new layers")
    train.add_argument("--warmup", type=float, default=0.1, help="share of steps to warm up (default: 0.1)")
    train.add_argument("--weight-decay", type=float, default=0.01, help="weight decay (default: 0.01)")
    train.add_argument("--variant", default="balanced", choices=("official", "balanced", "one-to-one"))
    train.add_argument("--matching-weight", type=float, default=1.0, help="weight of image-text matching; 0 = off")
    train.add_argument("--mlm-weight", type=float, default=1.0, help="weight of masked-language modelling; 0 = off")
    train.add_argument("--matching-images", type=int, help="photos of a step that are matched (default: all)")
    train.add_argument("--negative-ramp", type=float, default=0.0, help="share of training until negatives are hard")
    train.add_argument("--freeze", default="none", choices=("none", "image", "text", "towers"))
    train.add_argument("--cache-features", action="store_true", help="compute frozen towers' output once")
    train.add_argument("--feature-cache", help="folder for it (default: OUT/feature_cache)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")
    train.add_argument("--rerank", type=int, default=32, help="photos re-scored per text in evaluation (default: 32)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def layer_list(text: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]."""
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            layers += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of layers such as 0-5 or 1,3,5") from None
    return layers


def run(args: argparse.Namespace) -> int:
    """Trains, saves and evaluates."""
    import torch
    from transformers import set_seed

    from ccrk import CCRkTrainer, CCRkTrainingArguments
    from ccrk.data.caption_files import read_captions
    from ccrk.pipelines.ccr_retrieval import CCRkRetrievalPipeline

    if args.threads:
        torch.set_num_threads(args.threads)
    reading = {"images": args.images, "languages": args.languages, "sources": args.source}
    train_set = read_captions(args.data, **reading)
    print(f"training on {train_set.describe()}")
    eval_set = None
    if args.eval:
        eval_set = first_captions(read_captions(args.eval, **reading))
        print(f"evaluating on {eval_set.describe()}")
    set_seed(args.seed)
    model, processor = load_model(args)
    arguments = CCRkTrainingArguments(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr,
        new_layer_multiplier=args.new_layer_multiplier,
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        contrastive_variant=args.variant,
        matching_weight=args.matching_weight,
        mlm_weight=args.mlm_weight,
        matching_images=args.matching_images,
        negative_ramp=args.negative_ramp,
        texts_per_image=args.texts_per_image,
        freeze=args.freeze,
        cache_features=args.cache_features,
        feature_cache_dir=args.feature_cache,
        eval_rerank=args.rerank if args.matching_weight else 0,
        seed=args.seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=20,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),  # pinned memory without a device is a warning each epoch
        report_to="none",
    )
    trainer = CCRkTrainer(model=model, args=arguments, train_dataset=train_set, processing_class=processor)
    wall = time.time()
    trainer.train(resume_from_checkpoint=args.resume or None)
    CCRkRetrievalPipeline(model=model, processor=processor).save_pretrained(args.out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "wall_s": round(time.time() - wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mib": round(used.ru_maxrss / 1024),
    }
    print(f"trained: {json.dumps(cost)}")
    if eval_set is not None:
        report = evaluate(model, processor, eval_set, args, cost)
        Path(args.out, "evaluation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def first_captions(dataset):
    """The data set with the first caption of each language: one query per photo and language."""
    for row in dataset.rows:
        first: dict[str, dict] = {}
        for caption in row["captions"]:
            first.setdefault(caption["language"], caption)
        row["captions"] = list(first.values())
    return dataset


def load_model(args: argparse.Namespace):
    """The model to start from, and its processor."""
    from transformers import AutoProcessor, AutoTokenizer

    from ccrk import CCRkForPreTraining, CCRkImageProcessor, CCRkModel, CCRkProcessor

    model_class = CCRkForPreTraining if args.mlm_weight else CCRkModel
    if args.model:
        defaults = argparse.ArgumentParser()
        add_arguments(defaults)
        given = [name for name in NEW_MODEL_OPTIONS if getattr(args, name) != defaults.get_default(name)]
        if given:
            words = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"{words}: these shape a new model, but --model goes on from '{args.model}' as it is")
        return model_class.from_pretrained(args.model), AutoProcessor.from_pretrained(args.model)
    if not (args.image_tower and args.text_tower):
        raise ValueError("say what to start from: --model, or both --image-tower and --text-tower")
    model = model_class.from_towers(
        image=args.image_tower,
        text=args.text_tower,
        text_layers=args.text_layers,
        fusion_layers=args.fusion_layers,
        text_pooling=args.pooling,
        fusion_pooling=args.pooling,
        projection_dim=args.projection_dim,
        projection_hidden_size=args.projection_hidden,
        projection_dropout=args.projection_dropout,
        fusion_image_norm=args.fusion_image_norm,
    )
    processor = CCRkProcessor(
        CCRkImageProcessor.from_tower(args.image_tower, model.config.image_size),
        AutoTokenizer.from_pretrained(args.text_tower),
        max_length=args.max_length,
        text_prefix=args.text_prefix,
    )
    return model, processor


def evaluate(model, processor, dataset, args: argparse.Namespace, cost: dict) -> dict:
    """Retrieval over the evaluation set, printed as a table and returned with what the training cost."""
    from ccrk.evaluation.retrieval import evaluate_retrieval, report_lines

    rerank = args.rerank if args.matching_weight else 0
    report = evaluate_retrieval(model, processor, dataset, languages=args.languages, rerank=rerank, progress=True)
    print("\n".join(report_lines(report)))
    return {"cost": cost, "arguments": {k: v for k, v in vars(args).items() if k != "run"}, **report}
