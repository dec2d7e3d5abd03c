"""Tensors that the backward pass computes again instead of keeping them from the forward pass.

What a layer keeps for its gradient is often one cheap operation away from what another keeps too: the output of a
normalisation or of a GELU from its input. Computing such a tensor twice is nearly free beside a matrix product
(selective recomputation, arXiv 2205.05198). Gradients are the same to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Not empty inside what is computed again as a whole, where nothing is kept anyway.
_WHOLLY: list[bool] = []


@dataclass(frozen=True)
class _Again:
    """A tensor that was not kept: how to make the one whose memory it shared, and where in it it lay."""

    make: Callable[[], Tensor]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def autocast_kind(device: str) -> torch.dtype | None:
    """What autocast computes in on a device of this type; None where it is off, or where there is none."""
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


@contextlib.contextmanager
def computed_again(value: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside the block no layer keeps `value`, nor a view of it, for its gradient: it is made again when needed.

    Args:
        value: the caller holds it until the block ends.
        make: gives the same values in the same layout; called without gradients, under the block's autocast.
    """
    useless = _WHOLLY or not (torch.is_grad_enabled() and value.requires_grad)
    if useless or torch.compiler.is_compiling():
        yield
        return
    memory, kind, device = value.untyped_storage().data_ptr(), value.dtype, value.device.type
    half = autocast_kind(device)

    def again() -> Tensor:
        with torch.no_grad(), torch.autocast(device, half) if half is not None else contextlib.nullcontext():
            return make()

    def pack(tensor: Tensor) -> Tensor | _Again:
        if tensor.dtype != kind or tensor.untyped_storage().data_ptr() != memory:
            return tensor
        return _Again(again, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(packed: Tensor | _Again) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return packed.make().as_strided(packed.size, packed.stride, packed.offset)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def wholly_again(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """block(x), of which nothing but x is kept for the gradient: the block runs again in the backward pass.

    Activation checkpointing (arXiv 1604.06174): a third more time, for memory that hardly grows with the depth.
    """

    def plain(tokens: Tensor) -> Tensor:
        _WHOLLY.append(True)
        try:
            return block(tokens)
        finally:
            _WHOLLY.pop()

    y: Tensor = checkpoint(plain, x, use_reentrant=False)
    return y
