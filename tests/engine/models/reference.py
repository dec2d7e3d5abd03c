"""Reads the reference outputs of shared/fixtures: weights, inputs, and what the reference gave for them.

A folder is a Path such as shared / "fixtures" / "prithvi_eo_v2"; its README says how the files are laid out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4
SAMPLES = 1024


@dataclass(frozen=True)
class Expected:
    """One output of the reference: its shape, and its values where `sample` looks."""

    shape: tuple[int, ...]
    values: np.ndarray


def config(folder: Path) -> dict[str, Any]:
    """The reference's constructor parameters."""
    read: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return read


def weights(folder: Path) -> dict[str, Tensor]:
    """The whole state dict under the published names: stored tensors, and those that follow from a rule."""
    state = load_file(folder / "weights_rest.safetensors")
    rules = json.loads((folder / "weights_rule.json").read_text("utf-8"))
    for key, rule in rules.items():
        random = np.random.RandomState(zlib.crc32(key.encode("utf-8")))
        values = random.standard_normal(tuple(rule["shape"])) * rule["std"] + rule["mean"]
        state[key] = torch.from_numpy(values.astype(np.float32))
    return state


def cases(folder: Path) -> list[str]:
    """The names of a folder's cases, sorted."""
    with np.load(folder / "input.npz") as arrays:
        return sorted({name.partition("/")[0] for name in arrays})


def inputs(folder: Path, case: str) -> dict[str, Tensor]:
    """A case's arrays by name, in their stored types."""
    start = f"{case}/"
    with np.load(folder / "input.npz") as arrays:
        return {name.removeprefix(start): torch.tensor(arrays[name]) for name in arrays if name.startswith(start)}


def expected(folder: Path, case: str) -> dict[str, Expected]:
    """A case's outputs by name."""
    start = f"{case}/"
    with np.load(folder / "output.npz") as arrays:
        names = [name for name in arrays if name.startswith(start) and "#" not in name]
        return {
            name.removeprefix(start): Expected(tuple(int(n) for n in arrays[f"{name}#shape"]), arrays[name].ravel())
            for name in names
        }


def sample(tensor: Tensor) -> np.ndarray:
    """The values that the fixtures store of a tensor: all, or 1024 evenly spaced ones."""
    flat = tensor.detach().cpu().contiguous().numpy().ravel()
    if flat.size <= SAMPLES:
        return flat
    return flat[np.linspace(0, flat.size - 1, SAMPLES).astype(np.int64)]


def largest_difference(ours: Mapping[str, Tensor], wanted: Mapping[str, Expected]) -> float:
    """The largest absolute difference over all outputs that are wanted; each must be among ours, in its shape."""
    assert wanted, "the reference has no such outputs"
    assert wanted.keys() <= ours.keys(), f"not compared: {sorted(wanted.keys() - ours.keys())}"
    largest = 0.0
    for name, output in wanted.items():
        assert tuple(ours[name].shape) == output.shape, name
        difference = float(np.abs(sample(ours[name]) - output.values).max())
        assert np.isfinite(difference), name
        largest = max(largest, difference)
    return largest
