"""Trouble in one of two processes: `torchrun --nproc_per_node 2 troubles.py CASE OUTPUT_DIR RESULTS`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from ccrk import CCRkTrainer, CCRkTrainingArguments


def make_trainer(folder: Path, rows, **options) -> CCRkTrainer:
    """A trainer of eight steps that saves every second."""
    processor = tiny.make_processor()
    defaults = {"per_device_train_batch_size": 4, "max_steps": 8, "save_steps": 2, "logging_steps": 1}
    more = {name: options.pop(name) for name in ("eval_dataset",) if name in options}
    args = CCRkTrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **(defaults | options)
    )
    model = tiny.make_model(processor)
    return CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, **more)


def spoil(trainer: CCRkTrainer, case: str) -> None:
    """The matching head, which makes this process's share of the loss, but not the other's, no number."""
    weight = trainer.model.ccrk.itm_head[0].weight
    if case == "inf-gradient":
        weight.register_hook(lambda gradient: gradient * float("inf"))
    else:
        weight.data[0, 0] = float("nan")


def fill_disk(trainer: CCRkTrainer) -> None:
    """From now on this process cannot write its part of a checkpoint."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer._save_rng_state, trainer._save = refuse, refuse


def free_disk(trainer: CCRkTrainer) -> None:
    """It can again."""
    del trainer._save_rng_state, trainer._save


def run(case: str, folder: Path, rank: int) -> dict:
    """A case; what is to be known of it."""
    rows = tiny.make_rows()
    if case == "cache":
        for place in (3, 8):
            rows[place]["image"] = b""
        trainer = make_trainer(folder, rows, freeze="towers", cache_features=True, max_steps=2, save_strategy="no")
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = 6
        trainer.train()
        cache = trainer.data_collator.cache
        digest = hashlib.sha256(cache.images.tobytes() + cache.texts.tobytes()).hexdigest()
        # two epochs: twice two rows, of one cache
        return {"images": digest, "skipped": {cause: n // 2 for cause, n in trainer.all_skipped().items()}}
    options = {"mini_batch_size": 2} if case == "nan-in-pieces" else {}
    if "with-best" in case:
        options |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "eval_dataset": rows}
        options |= {"metric_for_best_model": "eval_score", "greater_is_better": True}
    trainer = make_trainer(folder, rows, **options)
    if "with-best" in case:

        def evaluate(*_, **__):
            metrics = {"eval_score": float(trainer.state.global_step)}
            trainer.log(metrics)
            return metrics

        trainer.evaluate = evaluate
    if case.startswith("disk"):
        if case.endswith(str(rank)):
            trainer.add_callback(tiny.At(3, lambda: fill_disk(trainer)))
            trainer.add_callback(tiny.At(5, lambda: free_disk(trainer)))
    elif rank == 1:
        trainer.add_callback(tiny.At(2, lambda: spoil(trainer, case)))
    trainer.train()
    parts = [value.numpy().tobytes() for value in trainer.model.state_dict().values()]
    return {"weights": hashlib.sha256(b"".join(parts)).hexdigest()}


def main(case: str, folder: Path, results: Path) -> None:
    """Runs a case and writes what came of it for each process, an error too."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    path = results / f"{case}-{rank}.json"
    try:
        path.write_text(json.dumps(run(case, folder, rank)))
    except Exception as error:
        path.write_text(json.dumps({"error": str(error)}))
        raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
