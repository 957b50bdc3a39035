"""Contrastive losses and gradients of features in two processes: the authors' way, and ours.

`torchrun --nproc_per_node 2 two_processes.py IN OUT`: IN is a file with `image_feat (B, D)`, `text_feat (BK, D)` and
`temp`, split in rank order; each process writes OUT/rank{r}.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ccrk.losses_ccrk import contrastive_share, one_to_k
from ccrk.objectives_ccrk import gather_batch
from ccrk.trainer.exchange import ProcessExchange


class Projections(nn.Module):
    """Features out of a linear layer for each kind, so that a gradient of features reaches weights."""

    def __init__(self, width: int, temperature: torch.Tensor):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("image", "text"):
            weight = torch.eye(width) + 0.1 * torch.randn(width, width, generator=generator)
            setattr(self, name, nn.Parameter(weight))
        self.temp = nn.Parameter(temperature.clone())

    def forward(self, images: torch.Tensor, texts: torch.Tensor):
        """Unit vectors of both kinds, and the temperature."""
        features = nn.functional.normalize(images @ self.image), nn.functional.normalize(texts @ self.text)
        return *features, self.temp * 1


def gather_keeping_own(rows: torch.Tensor, exchange: ProcessExchange) -> torch.Tensor:
    """Rows of all processes of which only this process's own have a gradient, and only this process's loss."""
    parts = list(exchange.gather(rows).split(exchange.counts(rows)))
    parts[exchange.rank] = rows
    return torch.cat(parts)


def authors_loss(images, texts, temperature, exchange: ProcessExchange, gathered: bool) -> torch.Tensor:
    """The loss of the whole batch in every process, or that of each process's own part."""
    if gathered:
        images, texts = (gather_keeping_own(rows, exchange) for rows in (images, texts))
    index = torch.arange(len(texts)) // (len(texts) // len(images))
    return one_to_k(images @ texts.t() / temperature, index)


def our_share(images, texts, temperature, exchange: ProcessExchange) -> torch.Tensor:
    """This process's share of the loss of the whole batch."""
    index = torch.arange(len(texts)) // (len(texts) // len(images))
    step = gather_batch(index, len(images), exchange=exchange)
    return contrastive_share(*(exchange.gather_rows(rows) for rows in (images, texts)), temperature, step.layout)


def main(source: Path, out: Path) -> None:
    """Computes all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    exchange, given, found = ProcessExchange(), load_file(source), {}
    ways = {
        "itc_allgather0": lambda *features: authors_loss(*features, exchange, True),
        "itc_allgather1": lambda *features: authors_loss(*features, exchange, False),
        "ours": lambda *features: our_share(*features, exchange),
    }
    own = [given[name].chunk(exchange.world_size)[exchange.rank] for name in ("image_feat", "text_feat")]
    for name, way in ways.items():
        leaves = [leaf.clone().requires_grad_() for leaf in (*own, given["temp"])]
        loss = way(*leaves)
        loss.backward()
        found[f"{name}.loss"] = loss.detach()
        for kind, leaf in zip(("image_feat", "text_feat", "temp"), leaves, strict=True):
            found[f"{name}.grad.{kind}"] = leaf.grad
        model = DistributedDataParallel(Projections(own[0].shape[1], given["temp"]))
        loss = way(*model(*own))
        (loss * (exchange.world_size if name == "ours" else 1)).backward()
        found |= {f"{name}.ddp.{key}": p.grad for key, p in model.module.named_parameters()}
    save_file({key: value.contiguous() for key, value in found.items()}, out / f"rank{exchange.rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
