"""Feature maps by the content of chips: computed where they are not known, else read from the disk.

A name is the hash of the chip's values and of all that decides what the backbone makes of them. A chip that is not
known is computed by itself, in whatever batch it comes, and what is used is always what a file holds: so a training
ends with the same weights whether the files were there or not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geopeft import __version__
from geopeft.data.batches import Batch
from geopeft.data.few_windows import Few
from geopeft.events import Reporter
from geopeft.features.store import Store
from geopeft.models import SegmentationModel
from geopeft.models.backbones.backbone import Scene
from geopeft.models.weights import cache_folder

# Changes whenever features are computed or kept in another way.
FORMAT = 1
# How often a training sees the same chip, on average: features are computed for one of so many.
REUSE = 4
# Half precision rounds by at most 2**-11 of a value; where an array loses more on the whole, it has values beyond what
# half precision holds, and stays as it is.
MOST_LOST = 2.0**-11
_OF_SPEC = {"backbone", "bands", "gsd_m", "resample", "metadata"}


class KeptFeatures:
    """What a backbone makes of chips while it does not learn: all of it, or the blocks in front of the first that does.

    Args:
        model: on the CPU, as it will be trained: which parameters learn decides what stays the same.
        store: where features are kept.
    """

    def __init__(self, model: SegmentationModel, store: Store) -> None:
        self._model, self._store = model, store
        self._blocks = model.backbone.resting_blocks()
        self._base = model.base_weights.sha256 or digest(model.backbone.state_dict())
        self._adapter: tuple[tuple[int, ...], str] = ((), "")

    @property
    def resting_blocks(self) -> int:
        """Blocks whose output is kept also while the adapter learns; 0: none."""
        return self._blocks

    def few(self, chips: int, alone: float) -> Few:
        """From how few windows a training should draw its chips.

        Args:
            chips: of the training.
            alone: part of its steps in which the adapter waits.
        """
        learns = any(p.requires_grad for p in self._model.backbone.parameters())
        always = not learns or bool(self._blocks)
        kept = chips if always else round(alone * chips)
        return Few(-(-kept // REUSE), None if always else kept)

    def encode(self, batch: Batch, raw: Tensor, scene: Scene | None) -> tuple[list[Tensor], Tensor]:
        """See `geopeft.training.learning.Features`."""
        return self.maps(raw, scene), self._model.standardise(raw)

    def maps(self, raw: Tensor, scene: Scene | None, whole: bool = False) -> list[Tensor]:
        """The feature maps of chips (B, C, h, w), invalid pixels filled.

        Args:
            whole: the backbone as it is, though it may be about to learn.
        """
        learns = not whole and any(p.requires_grad for p in self._model.backbone.parameters())
        height, width = raw.shape[-2:]
        if self._blocks and not whole:
            begun = self._found(raw, scene, self._blocks)
            return self._model.go_on(begun, self._blocks, height, width)
        return self._model.encode(raw, scene)[0] if learns else self._found(raw, scene, 0)

    def _found(self, raw: Tensor, scene: Scene | None, blocks: int) -> list[Tensor]:
        """What `blocks` first blocks give, or with 0 the maps of the whole backbone; float32."""
        context = self._context(blocks)
        found = [self._one(raw[at : at + 1], _part_of(scene, at), blocks, context) for at in range(len(raw))]
        return [_batched(arrays) for arrays in zip(*found, strict=True)]

    def _one(self, raw: Tensor, scene: Scene | None, blocks: int, context: str) -> list[np.ndarray]:
        name = _name(raw, scene, context)
        kept = self._store.get(name)
        if kept is None:
            with torch.no_grad():
                made = self._model.begin(raw, scene, blocks) if blocks else self._model.encode(raw, scene)[0]
                kept = [_rounded(tensor[0]) for tensor in made]
            self._store.put(name, kept)
        return kept

    def _context(self, blocks: int) -> str:
        """All that decides what becomes of a chip, beside the chip."""
        backbone = self._model.backbone
        facts = {
            "format": [FORMAT, __version__, torch.__version__],
            "machine": [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
            "model": self._model.spec.model_dump(include=_OF_SPEC),
            "precision": str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "float32",
            # How weights lie in memory decides how sums are rounded.
            "layout": hashlib.sha256(repr([p.stride() for p in backbone.parameters()]).encode()).hexdigest(),
            "weights": self._base,
            "blocks": blocks,
            "adapter": "" if blocks else self._adapter_digest(),
        }
        return json.dumps(facts, sort_keys=True)

    def _adapter_digest(self) -> str:
        """Of the adapter's values, worked out again when they have changed."""
        adapter = self._model.adapter
        if adapter is None:
            return ""
        state = adapter.state(self._model.backbone)
        versions = tuple(tensor._version for tensor in state.values())
        if versions != self._adapter[0] or not self._adapter[1]:
            self._adapter = (versions, f"{self._model.spec.adapter} {digest(_deciding(state))}")
        return self._adapter[1]


def kept_features(model: SegmentationModel, reporter: Reporter, folder: Path | None = None) -> KeptFeatures | None:
    """The model's features on the disk; None where nothing of its backbone stays the same, and on a GPU, which computes
    features in less time than a disk gives them.

    Args:
        folder: None: $GEOPEFT_FEATURES, else beside the downloaded weights.
    """
    adapter = model.adapter
    # A dropout that an adapter put in makes of one chip something else each time.
    changes = adapter is None or adapter.trains_statistics or bool(model.backbone.added)
    if changes or model.scale.device.type != "cpu":
        return None
    chosen = folder or Path(os.environ.get("GEOPEFT_FEATURES") or cache_folder().parent / "features")
    return KeptFeatures(model, Store(chosen, reporter))


def digest(state: dict[str, Tensor]) -> str:
    """A checksum of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def _deciding(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the first factors of low-rank updates whose second ones are all zero, as they are at the start."""
    second = [tensor for name, tensor in state.items() if ".lora_B." in name]
    if any(bool(tensor.any()) for tensor in second):
        return state
    return {name: tensor for name, tensor in state.items() if not second or ".lora_A." not in name}


def _name(raw: Tensor, scene: Scene | None, context: str) -> str:
    found = hashlib.sha256(f"{context} {tuple(raw.shape)} ".encode())
    found.update(raw.contiguous().numpy().data)
    if scene is not None:
        for fact in (scene.time, scene.place):
            found.update(b" unknown" if fact is None else fact.double().numpy().tobytes())
    return found.hexdigest()


def _part_of(scene: Scene | None, at: int) -> Scene | None:
    if scene is None:
        return None
    return Scene(*(None if fact is None else fact[at : at + 1] for fact in (scene.time, scene.place)))


def _rounded(tensor: Tensor) -> np.ndarray:
    """As it is kept: in half precision where that loses nothing but the last bits; maps as (h, w, D)."""
    tensor = tensor.float()
    tensor = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).contiguous()
    half = tensor.half()
    lost = (half.float() - tensor).norm()
    array: np.ndarray = (half if bool(lost <= MOST_LOST * tensor.norm()) else tensor).numpy()
    return array


def _batched(arrays: Sequence[np.ndarray]) -> Tensor:
    """(B, ...) float32; maps (B, D, h, w) with the channels of a cell side by side."""
    out = torch.empty(len(arrays), *arrays[0].shape)
    for at, array in enumerate(arrays):
        out[at] = torch.from_numpy(array)
    return out.permute(0, 3, 1, 2) if out.ndim == 4 else out
