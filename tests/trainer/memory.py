"""Trains a model of some size for two steps and prints what was estimated beforehand and what was taken, in bytes.

`python memory.py OUT [OPTION=VALUE ...]`: `batch_size`, `mini_batch`, `activation_checkpointing`, `lora`, `freeze`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from ccrk import CCRkConfig, CCRkForPreTraining
from ccrk.trainer.estimate import estimate_memory, planned_config, planned_model, sample_lengths
from ccrk.trainer.options import TrainOptions, number_or_text
from ccrk.trainer.recipes import RESOLVED  # noqa: F401  (imported as the command does, so that memory is alike)
from ccrk.trainer.run import training_arguments
from ccrk.trainer.trainer_ccrk import CCRkTrainer


def resident(name: str) -> int:
    """Bytes of resident memory of this program, now or at its peak; `ru_maxrss` may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024


def main(out: Path, words: list[str]) -> None:
    """Estimates, trains, prints."""
    torch.set_num_threads(1)
    processor = tiny.make_processor()
    config = tiny.make_model(processor).config.to_dict()
    config["text_config"] |= {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    config["text_config"] |= {"vocab_size": 20_000, "max_position_embeddings": 64}
    config["vision_config"]["model_args"] |= {"depths": [1, 1, 3, 1], "dims": [32, 64, 128, 256]}
    config |= {"num_text_layers": 3, "num_fusion_layers": 3, "projection_dim": 128}
    model = CCRkForPreTraining(CCRkConfig.from_dict(config))
    model.save_pretrained(out / "model")
    del model
    given = {name: number_or_text(value) for name, value in (word.split("=") for word in words)}
    options = TrainOptions(
        data=["none"], model=str(out / "model"), out=str(out / "run"), max_steps=2, log_steps=1, drop_last=False,
        **{"batch_size": 64, **given},
    )  # fmt: skip
    rows = tiny.make_rows(64)
    lengths, _ = sample_lengths(rows, processor)
    memory = estimate_memory(options, planned_model(options, planned_config(options)), 3, lengths[-1])
    arguments = training_arguments(options)
    before = resident("VmRSS")
    trainer = CCRkTrainer(
        model=CCRkForPreTraining.from_pretrained(options.model), args=arguments, train_dataset=rows,
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    print(json.dumps({"estimated": memory.total, "taken": resident("VmHWM") - before, "parts": vars(memory)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
