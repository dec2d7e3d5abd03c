"""Several processes that train one model, as torchrun or accelerate start them: one leads, the others follow.

The leader runs the job: it reads, draws batches, validates and writes. For every step it sends the weights and the
batch to the followers; each process takes its part of the chips, and the gradients of all parts are added (synchronous
data parallelism, arXiv 1706.02677). So the result is that of one process with the same batch, but for the order in
which sums are rounded. Nothing is sent but tensors and JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geopeft.errors import DeviceError, JobError

# Followers wait while the leader reads, validates and fits forests. A process that is gone is noticed at once.
LONGEST_WAIT = timedelta(days=7)
LOST = "PROCESS_LOST"


class Team:
    """The processes of a training.

    Args:
        device: where this process computes; tensors are sent from there.
        rank: the number of this process; 0 leads.
        size: how many there are.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.device, self.rank, self.size = device, rank, size

    def tell(self, note: dict[str, Any]) -> None:
        """Sends a note to the followers."""
        text = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8).to(self.device)
        self.share(torch.tensor([len(text)], device=self.device))
        self.share(text)

    def hear(self) -> dict[str, Any]:
        """Waits for the leader's next note."""
        length = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.share(length)
        text = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        self.share(text)
        note: dict[str, Any] = json.loads(bytes(text.cpu().numpy()))
        return note

    def share(self, tensor: Tensor) -> None:
        """The leader's values, in place; contiguous, on the team's device."""
        with _noticed(self.size):
            dist.broadcast(tensor, 0)

    def share_all(self, tensors: Sequence[Tensor]) -> None:
        """The leader's values in all of these, which are of one type; sent as one."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        self.share(flat)
        if self.rank:
            _put_back(flat, tensors)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """In each of these, the sum over all processes."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with _noticed(self.size):
            dist.all_reduce(flat)
        _put_back(flat, tensors)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team | None]:
    """This process in its team, which ends with the block; None where it was started alone.

    Args:
        device: as a job names it.

    Raises:
        DeviceError: there are fewer GPUs than processes.
    """
    rank, size = (int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1)))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield None
        return
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own = torch.device("cpu")
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"{local + 1} or more processes were started on a machine with {torch.cuda.device_count()} GPUs.",
                "Start one process for each GPU, or set the device to cpu.",
            )
        torch.cuda.set_device(local)
        own = torch.device("cuda", local)
    with _noticed(size):
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    team = Team(own, rank, size)
    _TEAM.append(team)
    try:
        yield team
    finally:
        _TEAM.clear()
        if rank == 0:
            with contextlib.suppress(JobError):
                team.tell({"what": "end"})
        dist.destroy_process_group()


_TEAM: list[Team] = []


def team() -> Team | None:
    """The team that this process has joined."""
    return _TEAM[0] if _TEAM else None


@contextlib.contextmanager
def _noticed(size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"One of the {size} processes that train this model has ended before its time.",
            "Start the training again: it goes on from its last checkpoint. The other process's own words say why.",
            LOST,
        ) from error


def _put_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
