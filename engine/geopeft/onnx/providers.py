"""What ONNX Runtime computes on: CUDA, CoreML, DirectML or the CPU, whichever is there and works, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from geopeft.errors import DeviceError, PackageError
from geopeft.events import Reporter
from geopeft.onnx.graph import broken

# ONNX Runtime's names of what it computes on, in the order of our liking; by our names of devices.
_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "CUDA"),
    "mps": ("CoreMLExecutionProvider", "CoreML"),
    "directml": ("DmlExecutionProvider", "DirectML"),
    "cpu": ("CPUExecutionProvider", "the CPU"),
}
_NAMES = dict(_PROVIDERS.values())
CPU = _PROVIDERS["cpu"][0]


def choose_providers(device: str, available: Sequence[str]) -> list[str]:
    """What ONNX Runtime shall compute on, the CPU last; DeviceError where the named device is not among it."""
    if device == "auto":
        return [provider for provider, _ in _PROVIDERS.values() if provider in available and provider != CPU] + [CPU]
    provider, name = _PROVIDERS[device]
    if provider not in available:
        raise DeviceError(f"ONNX Runtime cannot use {name} on this machine.", "Set the device to auto.")
    return [provider] if provider == CPU else [provider, CPU]


def open_session(
    path: Path,
    model: bytes,
    device: str,
    reporter: Reporter,
    attempt: Callable[[onnxruntime.InferenceSession], np.ndarray],
) -> tuple[onnxruntime.InferenceSession, np.ndarray]:
    """A session on the first provider on which the model opens and the attempt succeeds, and what the attempt gave.

    A provider that fails is told and the next one taken, as far as the CPU.

    Args:
        path: of the file, for messages.
        device: "auto", or what has to be used: DeviceError where that does not work.
        attempt: uses the session once; PackageError where the model is to blame.
    """
    providers = choose_providers(device, onnxruntime.get_available_providers())
    while True:
        provider, *others = providers
        try:
            session = _session(model, provider)
            if session.get_providers()[0] != provider:
                raise RuntimeError("it does not start on this machine")
            found = attempt(session)
        except Exception as error:  # the library raises a dozen kinds of its own
            reason = str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
            if provider == CPU:
                if isinstance(error, PackageError):
                    raise
                raise broken(path, f"ONNX Runtime says {reason}") from error
            failed = f"ONNX Runtime cannot use {_NAMES[provider]} for {path.name}: {reason}."
            if device != "auto":
                raise DeviceError(failed, "Set the device to auto.") from error
            reporter.warn(f"{failed} It goes on with {_NAMES[others[0]]}.")
            providers = others
            continue
        reporter.message(f"{path.name} is computed by ONNX Runtime on {_NAMES[provider]}.")
        return session, found


def _session(model: bytes, provider: str) -> onnxruntime.InferenceSession:
    """On one provider; what it cannot do goes to the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Threads that spin while they wait take the processor from everything else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = torch.get_num_threads()
    if provider == _PROVIDERS["directml"][0]:
        options.enable_mem_pattern = False
    if provider == _PROVIDERS["cuda"][0] and hasattr(onnxruntime, "preload_dlls"):
        with suppress(Exception):  # what is missing is told by the session
            onnxruntime.preload_dlls()
    providers = [provider] if provider == CPU else [provider, CPU]
    # Its own way of going on elsewhere says so on standard output only.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
