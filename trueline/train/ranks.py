"""Several processes, one run: data parallelism in a few sums.

    torchrun --nproc_per_node 2 -m trueline sft ...       RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR are in the environment

    ranks.deal(step)             this rank's microbatches: number r, r + world, ... of the step
    ranks.sum_gradients(model)   every rank then holds the gradient of the whole step
    ranks.sum(sums)              {metric: (sum, count)} over all ranks
    ranks.gather(value)          what every rank says, in their order

Every rank reads the same rows and lays out the same step, so each knows the weights of the whole step before the first forward
without a message, and gradients are summed, never averaged. Microbatches are sorted by length: dealt in turn, they are of
like size. Rank 0 alone writes. What ranks tell one another is JSON and tensors, never pickle.

What holds: gradients are those of one process with the same rows per step, up to the order of summation (1e-5 of the largest).
`prepare` sees the whole step on every rank, so its statistics are exact, and it may draw no noise. Noise (dropout, NEFTune) is drawn
anew for each microbatch from (seed, step, its number in the step), whichever rank computes it: 2 ranks of microbatches of 4 rows draw
what one process draws with 2 such microbatches. Other microbatches (1 of 8) draw other noise.

Left out: sharded weights and optimizer state; ranks that read different rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from trueline.train.state import Sums

T = TypeVar("T")
BUCKET = 1 << 24
"""Gradients summed in one message: 64 MiB in float32."""
PATIENCE = timedelta(hours=2)
"""How long a rank waits for another, that draws samples or scores references meanwhile."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. Alone, nothing here does anything."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number of this process on its machine: the GPU it takes."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def place(self, device: str) -> str:
        """The device of this rank: "cuda" is one GPU for each."""
        if self.world == 1 or device == "cpu":
            return device
        if device != "cuda":
            raise ValueError(f"device is {device!r}, and there are {self.world} ranks: give device = cpu or cuda")
        if self.local >= torch.cuda.device_count():
            raise ValueError(f"rank {self.rank} is number {self.local + 1} on its machine, which has {torch.cuda.device_count()} GPUs: "
                             "lower --nproc_per_node")  # fmt: skip
        return f"cuda:{self.local}"

    def deal(self, step: Sequence[T]) -> Sequence[T]:
        """This rank's share of a step."""
        return step[self.rank :: self.world]

    def gather(self, value: Any) -> list[Any]:
        """The values (JSON) of all ranks, in their order. Every rank must come here; so it is a barrier, too."""
        if self.world == 1:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with others():
            dist.all_gather(sizes, torch.tensor([len(said)]))
            longest = max(int(size) for size in sizes)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
            dist.all_gather(parts, torch.cat((said, said.new_zeros(longest - len(said)))))
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]

    def sum(self, sums: Sums) -> dict[str, tuple[float, float]]:
        """Sums and counts over all ranks; a rank may lack some."""
        total: dict[str, tuple[float, float]] = {}
        for part in self.gather(dict(sums)):
            for name, (value, count) in part.items():
                before = total.get(name)
                total[name] = (value, count) if before is None else (before[0] + value, before[1] + count)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        """Each parameter's gradient over all ranks, bucket by bucket. One that no rank has stays None."""
        for bucket in buckets(model) if self.world > 1 else ():
            pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            touched = pieces[0].new_tensor([float(p.grad is not None) for p in bucket])
            flat = torch.cat([*(piece.flatten() for piece in pieces), touched])
            with others():
                dist.all_reduce(flat)
            *summed, counts = flat.split([*(p.numel() for p in bucket), len(bucket)])
            for p, piece, count in zip(bucket, summed, counts.tolist(), strict=True):
                p.grad = piece.view_as(p) if count else None

    def agree_to_stop(self, signals: Sequence[int]) -> int:
        """The signal that some rank got, the same one on all of them, or 0."""
        return next((got[0] for got in self.gather([int(number) for number in signals]) if got), 0)

    def refuse_difference(self, values: Mapping[str, Any]) -> None:
        """All ranks must start from the same place."""
        first, *rest = self.gather(dict(values))
        for rank, other in enumerate(rest, 1):
            for name in (name for name in first if first[name] != other[name]):
                raise ValueError(
                    f"rank {rank} has another {name} than rank 0: give all ranks the same files and options"
                )


ALONE = Ranks()
"""A run of one process."""


def of_environment() -> Ranks:
    """What the launcher says, or a process group that the caller made; without either, one process."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        return Ranks(rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if "MASTER_ADDR" not in os.environ:
        raise ValueError("WORLD_SIZE is set, and MASTER_ADDR is not: start with torchrun --nproc_per_node 2 -m trueline ...")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Ranks(rank, world, int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def joined(ranks: Ranks, device: str) -> Iterator[None]:
    """Connected to the other ranks: gloo on the CPU, nccl between GPUs. A group that the caller made is used as it is."""
    if ranks.world == 1 or dist.is_initialized():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def others() -> Iterator[None]:
    """A connection that breaks says that another rank ended; why is that rank's to say."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ValueError(f"another rank ended, so this one ends too: see what that one says ({said[:120]})") from error


def buckets(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The trained parameters in their order, at most BUCKET numbers together."""
    bucket: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
