"""What ONNX Runtime computes on: chosen, told, and gone on from where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from geopeft.errors import GeopeftError
from geopeft.onnx.providers import choose_providers, open_session
from west_coast import Heard  # type: ignore[import-not-found]


def test_the_fastest_provider_is_taken_and_a_missing_one_is_told() -> None:
    cpu, cuda, apple, windows = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "CoreML", "Dml"))
    assert choose_providers("auto", [cpu]) == [cpu] == choose_providers("cpu", [cuda, cpu])
    assert choose_providers("auto", ["AzureExecutionProvider", cpu, windows, cuda]) == [cuda, windows, cpu]
    assert choose_providers("mps", [apple, cpu]) == [apple, cpu]
    with pytest.raises(GeopeftError) as told:
        choose_providers("cuda", [cpu])
    assert told.value.code == "DEVICE_UNAVAILABLE" and "CUDA" in told.value.message


class Session:
    """Stands for ONNX Runtime's session: opens on the named providers only, or on the CPU in their place."""

    starts: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    def __init__(self, model: bytes, options: Any, providers: Sequence[str], **others: Any) -> None:
        assert others == {"enable_fallback": 0}
        if providers[0] not in (*self.starts, *self.silent):
            raise RuntimeError(f"no library for {providers[0]}\nat line 7")
        self.providers = [*providers] if providers[0] in self.starts else ["CPUExecutionProvider"]

    def get_providers(self) -> list[str]:
        return self.providers


@pytest.fixture
def three_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [f"{name}ExecutionProvider" for name in ("CUDA", "Dml", "CPU")]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(Session, "starts", ("CPUExecutionProvider",))


def attempt(session: Any) -> np.ndarray:
    if session.get_providers()[0] == "DmlExecutionProvider":
        raise ValueError("out of memory")
    return np.ones(1)


def test_a_provider_that_fails_is_told_and_the_next_one_taken(
    three_providers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    # The one does not start, the other one fails at work.
    monkeypatch.setattr(Session, "starts", ("DmlExecutionProvider", "CPUExecutionProvider"))
    session, found = open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert session.get_providers() == ["CPUExecutionProvider"] and found == 1
    assert heard.texts == [
        ("warning", "ONNX Runtime cannot use CUDA for m.onnx: no library for CUDAExecutionProvider. It goes on with "
         "DirectML."),
        ("warning", "ONNX Runtime cannot use DirectML for m.onnx: out of memory. It goes on with the CPU."),
        ("info", "m.onnx is computed by ONNX Runtime on the CPU."),
    ]  # fmt: skip


def test_a_provider_that_silently_became_the_cpu_is_told_and_one_that_was_named_is_needed(
    three_providers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(Session, "silent", ("CUDAExecutionProvider",))
    open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert heard.says("cannot use CUDA for m.onnx: it does not start on this machine", "warning")
    with pytest.raises(GeopeftError) as told:
        open_session(Path("m.onnx"), b"", "cuda", heard, attempt)
    assert told.value.code == "DEVICE_UNAVAILABLE" and told.value.hint == "Set the device to auto."
    monkeypatch.setattr(Session, "starts", ())
    with pytest.raises(GeopeftError, match="m.onnx cannot be used: ONNX Runtime says no library for CPU") as told:
        open_session(Path("m.onnx"), b"", "auto", heard, attempt)
    assert told.value.code == "ONNX_BROKEN"
