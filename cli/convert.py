"""`ccrk convert`: turns a checkpoint of the authors' code into a Hugging Face model."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "convert"
HELP = """Turn a checkpoint of the authors' code (.th) into a model folder that AutoModel loads.

Pre-training and fine-tuned checkpoints are read, without executing anything in the file. Every tensor is checked; what
is missing or unexpected is listed and nothing is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ccrk convert`."""
    parser.add_argument("checkpoint", help="the .th file, or REPO:FILE on the Hub (BUAADreamer/CCRK:ccrk_3m_....th)")
    parser.add_argument("out", help="folder to write")
    parser.add_argument(
        "--config", help="JSON of the model's sizes (default: the paper's; 384 px for fine-tuned files)"
    )
    parser.add_argument(
        "--tokenizer",
        default="FacebookAI/xlm-roberta-large",
        help="folder or Hub id of the tokenizer, or 'none' to leave it out (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Converts and says what was done."""
    from ccrk.conversion_ccrk import convert_checkpoint
    from ccrk.pipelines.registration import attach_pipeline

    tokenizer = None if args.tokenizer == "none" else args.tokenizer
    report = convert_checkpoint(args.checkpoint, args.out, config=args.config, tokenizer=tokenizer)
    if tokenizer is not None:
        attach_pipeline(args.out)
    print(f"{report.layout} checkpoint: {report.converted} tensors converted to {Path(args.out)}")
    print(f"{len(report.derived)} buffers left out (they are computed when the model is built)")
    if report.unused:
        print(f"left out because the method does not use them: {', '.join(report.unused)}")
    if tokenizer is None:
        print("no tokenizer was written (--tokenizer none): add one before texts can be searched")
    return 0
