"""Sharded weights (FSDP2) on a CPU, as far as the libraries permit; and compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo

from ccrk import CCRkModel, CCRkTrainer, CCRkTrainingArguments

SHARDED = Path(__file__).with_name("sharded.py")


def launch(*words: str) -> str:
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, SHARDED, *words], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_sharded_step_is_the_step_of_one_process():
    """By `fully_shard` of torch: gradients of two processes with sharded layers against those of one without."""
    words = launch().split()
    assert words[:2] == ["relative", "difference"]
    assert float(words[2]) < 1e-5


@pytest.mark.slow
def test_the_trainer_shards_through_accelerate():
    """Version 1.15 of it takes FSDP up for accelerators alone: with gloo on a CPU it goes on with DDP, silently."""
    found = launch("accelerate").split()
    if found[-1] == "MULTI_CPU":
        pytest.skip("accelerate chooses FSDP only where it has a GPU or the like; on a CPU it takes DDP")
    assert found[-1] == "FSDP"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_changes_no_loss(tmp_path, rows, processor, make_model, backend):
    losses = []
    torch._dynamo.utils.counters.clear()
    for name, options in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": backend})):
        args = CCRkTrainingArguments(
            str(tmp_path / name), per_device_train_batch_size=6, max_steps=3, learning_rate=1e-3, logging_steps=1,
            report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, optim="sgd", **options,
        )  # fmt: skip
        model = make_model(CCRkModel)
        trainer = CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
        found = []
        note = trainer._note_losses
        trainer._note_losses = lambda loss, parts, found=found, note=note: (
            found.append(loss.item()),
            note(loss, parts),
        )
        trainer.train()
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert (graphs > 0) == (name == "compiled")
        losses.append((found, {name: value.clone() for name, value in model.state_dict().items()}))
    torch._dynamo.reset()
    (plain, weights), (compiled, others) = losses
    assert len(plain) == 3 and plain == pytest.approx(compiled, abs=1e-5)
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)
