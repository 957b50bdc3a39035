"""A step with every layer's weights sharded over two gloo processes (FSDP2 of torch), against the step of one.

`torchrun --nproc_per_node 2 sharded.py` prints the relative difference of all gradients. With `accelerate` the trainer
is asked to shard, and the kind of distribution that accelerate chose is printed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from ccrk import CCRkTrainer, CCRkTrainingArguments
from ccrk.masking_ccrk import MaskingRules
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.exchange import ProcessExchange


def by_torch() -> None:
    """A step under `fully_shard`."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    processor = tiny.make_processor()
    model, whole = tiny.make_model(processor).train(), tiny.make_model(processor).train()
    collate = CCRkDataCollator(processor, masking=MaskingRules(4, len(processor.tokenizer)))
    rows = tiny.make_rows(8)
    batches = [collate(rows), collate(rows[rank * 8 // world_size : (rank + 1) * 8 // world_size])]
    for batch in batches:
        del batch["row_ids"], batch["skipped"]
    whole(**batches[0], return_loss=True).loss.backward()

    mesh = init_device_mesh("cpu", (world_size,))
    for layer in (*model.ccrk.text_model.layer, *model.ccrk.fusion_model.layer):
        fully_shard(layer, mesh=mesh)
    for layer in model.ccrk.fusion_model.layer:
        # called by itself, outside the layer's forward, where its weights would still be in pieces
        register_fsdp_forward_method(layer, "image_keys_values")
    temperature = model.ccrk.temperature  # a scalar cannot be sharded
    fully_shard(model, mesh=mesh, ignored_params={temperature})
    loss = model(**batches[1], return_loss=True, exchange=ProcessExchange()).loss * world_size
    loss.backward()
    dist.all_reduce(temperature.grad)
    temperature.grad /= world_size

    apart = size = 0.0
    for (name, own), (other, wanted) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other
        gradient = own.grad.full_tensor() if hasattr(own.grad, "full_tensor") else own.grad
        if own is not temperature:  # its gradient is larger than all others together
            apart += float(((gradient - wanted.grad) ** 2).sum())
            size += float((wanted.grad**2).sum())
        else:
            assert torch.allclose(gradient, wanted.grad, rtol=1e-4), (gradient, wanted.grad)
    if rank == 0:
        print("relative difference", (apart / size) ** 0.5)


def by_accelerate() -> None:
    """The trainer, told to shard."""
    processor = tiny.make_processor()
    with tempfile.TemporaryDirectory() as folder:
        args = CCRkTrainingArguments(
            folder,
            fsdp=True,
            fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["CCRkLayer"]},
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        )
        trainer = CCRkTrainer(
            model=tiny.make_model(processor), args=args, train_dataset=tiny.make_rows(), processing_class=processor
        )
        if trainer.exchange.rank == 0:
            print("distribution", trainer.accelerator.distributed_type.value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    by_accelerate() if sys.argv[1:] == ["accelerate"] else by_torch()
    dist.destroy_process_group()
