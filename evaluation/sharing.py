"""Work divided among processes, and what each of them found brought together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Share:
    """The part of one process in work that is divided by whole batches.

    Batches are the same however many processes there are, and so are the numbers computed from them.

    Attributes:
        rank: of this process.
        world_size: number of processes; above 1, `torch.distributed` has to be initialised.
        device: of the model; used to exchange tensors where the back end needs it.

    Raises (when made):
        ValueError: if there are several processes and they are not connected, or are not so many.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank is {self.rank}, but with world_size {self.world_size} it is below that and not < 0"
            )
        if self.world_size > 1:
            connected = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            if connected != self.world_size:
                raise ValueError(
                    f"world_size is {self.world_size}, but torch.distributed connects {connected} process(es); start "
                    "them with torchrun and call torch.distributed.init_process_group, or leave world_size at 1"
                )

    def mine(self, batches: Sequence) -> list:
        """Every `world_size`-th of the batches, from `rank` on."""
        return list(batches[self.rank :: self.world_size])

    def _exchange_device(self) -> torch.device | str:
        return "cpu" if "gloo" in dist.get_backend() else self.device

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes in the order of ranks, on the CPU, bit for bit.

        Args:
            tensor: (n, ...); n may differ between processes, and may be 0.
        """
        if self.world_size == 1:
            return [tensor.cpu()]
        device, shape = self._exchange_device(), tensor.shape[1:]
        rows = tensor.to(device).reshape(len(tensor), math.prod(shape)).contiguous().view(torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([len(rows)], device=device))
        padded = rows.new_zeros((max(map(int, lengths)), rows.shape[1]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [
            part[: int(length)].cpu().view(tensor.dtype).reshape(int(length), *shape)
            for part, length in zip(parts, lengths, strict=True)
        ]

    def gather_json(self, value: Any) -> list[Any]:
        """A value of each process, in the order of ranks; whatever JSON can hold."""
        if self.world_size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self.gather(text)]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a float tensor of equal shape over all processes, on the CPU."""
        if self.world_size == 1:
            return tensor.cpu()
        tensor = tensor.to(self._exchange_device())
        dist.all_reduce(tensor)
        return tensor.cpu()
