"""What the engine computes on, in words, from what its `probe` job told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .language import tr

# Keyed by the engine's codes.
REASONS = {
    "NO_DRIVER": "no NVIDIA driver was found",
    "CARD_WITHOUT_DRIVER": "there is an NVIDIA card, but its driver is not installed",
    "DRIVER_SILENT": "the NVIDIA driver does not answer; restart the computer, or install the driver again",
    "DRIVER_OLD": "the NVIDIA driver is too old; install a newer one",
    "CARD_OLD": "the NVIDIA card is too old for this PyTorch",
    "HIDDEN": "the variable CUDA_VISIBLE_DEVICES hides the NVIDIA card",
    "NO_TORCH": "PyTorch is not installed",
    "TORCH_WITHOUT_CUDA": "this PyTorch has no CUDA; for the GPU, choose a Python of your own with a CUDA build",
    "SET_UP_FOR_CPU": "the engine was set up without a GPU; press Repair to set it up for this one",
    "INTEL_MAC": "PyTorch uses the GPU of Apple's own processors only",
}


def summary(told: Mapping[str, Any], chosen: str = "auto") -> str:
    """One sentence: the device, and why it is not a GPU. Empty where the engine has told nothing."""
    devices = [device for device in told.get("devices") or [] if isinstance(device, Mapping)]
    cpu = next((device for device in devices if device.get("device") == "cpu"), None)
    if cpu is None:
        return ""
    gpus = [device for device in devices if device.get("device") != "cpu" and device.get("usable")]
    used = next((gpu for gpu in gpus if chosen in ("auto", gpu.get("device"))), None)
    if used is not None:
        return tr("Computes on: {name}").format(name=_named(used))
    cores = tr("the CPU ({count} cores)").format(count=cpu.get("cores") or os.cpu_count() or 1)
    if chosen == "cpu":
        if not gpus:
            return tr("Computes on {cpu}").format(cpu=cores)
        text = tr("Computes on {cpu}, as chosen in the options; {gpu} is not used")
        return text.format(cpu=cores, gpu=_named(gpus[0]))
    code = str(told.get("gpu_reason"))
    reason = tr(REASONS[code]) if code in REASONS else ""
    if chosen != "auto":
        reason = reason or tr("this machine has none")
        return tr("{device} is chosen in the options, but {reason}").format(device=chosen.upper(), reason=reason)
    if not reason:
        return tr("Computes on {cpu}").format(cpu=cores)
    return tr("Computes on {cpu}: {reason}").format(cpu=cores, reason=reason)


def _named(device: Mapping[str, Any]) -> str:
    memory = round(int(device.get("memory_mb") or 0) / 1024)
    return f"{device.get('name')} ({memory} GB)" if memory else str(device.get("name"))
