"""The Flower app, with stand-ins for Flower and for the engine: what travels, and what happens when an office fails."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from geopeft import averaging

APP = Path(averaging.__file__).parent / "flower"


class Message:
    """As much of Flower's message as the app uses."""

    def __init__(self, content: Any = None, *, reply_to: Any = None, dst_node_id: int = 0, **options: Any) -> None:
        failed = isinstance(content, SimpleNamespace)
        self.content: Any = None if failed else content
        self.error: Any = content if failed else None
        self.node, self.options = dst_node_id, options
        self.metadata = SimpleNamespace(src_node_id=reply_to.node if reply_to else 0)

    def has_error(self) -> bool:
        return self.error is not None


def decorating(name: str) -> type:
    """A kind of app whose decorator `name` leaves functions as they are."""
    return type("App", (), {name: lambda self: lambda function: function})


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app's module."""
    error = lambda code, reason: SimpleNamespace(code=code, reason=reason)  # noqa: E731
    parts: dict[str, dict[str, Any]] = {
        "flwr": {},
        "flwr.app": {"ConfigRecord": dict, "RecordDict": dict, "Context": Any, "Error": error, "Message": Message},
        "flwr.clientapp": {"ClientApp": decorating("train")},
        "flwr.serverapp": {"ServerApp": decorating("main"), "Grid": Any},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    found = importlib.util.spec_from_file_location("geopeft_rounds", APP / "geopeft_rounds.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)
    yield module


@pytest.fixture
def jobs(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The jobs that the engine is given. It appends to a model where it was fitted, and joins what it averages."""
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-I", "-m", "geopeft", "run"] and not options.get("shell")
        assert not [name for name in options["env"] if name.startswith(("PYTHON", "FLWR_"))]
        job = json.loads(Path(command[5]).read_text(encoding="utf-8"))
        asked.append({**job, "python": command[0]})
        if job.get("labels") == "bad":
            event = {"event": "failed", "code": "LABELS_EMPTY", "message": "No label in /secret.tif.", "hint": "Draw."}
            return subprocess.CompletedProcess(command, 1, json.dumps(event))
        if job["job"] == "fit":
            made = (Path(job["start"]).read_bytes() if "start" in job else b"") + job["labels"].encode()
        else:
            made = b"(" + b"|".join(Path(path).read_bytes() for path in job["models"]) + b")"
        Path(job["out"]).write_bytes(made)
        return subprocess.CompletedProcess(command, 0, json.dumps({"event": "completed", "outputs": {}}))

    monkeypatch.setattr(rounds.subprocess, "run", run)
    monkeypatch.setenv("FLWR_HOME", "elsewhere")
    return asked


Federation = Callable[..., Any]


@pytest.fixture
def federation(rounds: Any, tmp_path: Path) -> Federation:
    """A grid of offices, each with labels of this name; what the server sends is kept in `sent`."""

    def make(*labels: str) -> Any:
        nodes = {}
        for number, name in enumerate(labels, 1):
            job = tmp_path / f"{number}.json"
            own = {
                "job": "fit",
                "rasters": [f"{name}.tif"],
                "labels": name,
                "out": "/mine",
                "start": "/old",
                "steps": 9,
            }
            job.write_text(json.dumps(own))
            nodes[number] = {"job": str(job), "engine-python": f"python{number}"}
        sent: list[Message] = []

        def send(messages: list[Message], timeout: float) -> list[Message]:
            sent.extend(messages)
            return [rounds.fit_here(m, SimpleNamespace(node_config=nodes[m.node])) for m in reversed(messages)]

        return SimpleNamespace(get_node_ids=lambda: reversed(list(nodes)), send_and_receive=send, sent=sent)

    return make


def config(out: Path, **changes: Any) -> Any:
    text = (APP / "pyproject.toml").read_text(encoding="utf-8")
    return SimpleNamespace(
        run_config={**tomllib.loads(text)["tool"]["flwr"]["app"]["config"], "out": str(out), **changes}
    )


def test_every_round_starts_from_the_average_of_the_last(
    rounds: Any, jobs: list[dict[str, Any]], federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "first").write_bytes(b"0")
    changes = {"rounds": 2, "steps": 5, "start": str(tmp_path / "first"), "engine-python": "server"}
    rounds.average_rounds(federation("a", "b"), config(tmp_path / "m.geopeft", **changes))
    assert (tmp_path / "m.geopeft").read_bytes() == b"((0a|0b)a|(0a|0b)b)"
    assert [(job["job"], job["python"]) for job in jobs[:3]] == [
        ("fit", "python2"), ("fit", "python1"), ("average", "server")
    ]  # fmt: skip
    assert {job["steps"] for job in jobs if job["job"] == "fit"} == {5}
    assert (tmp_path / "m_rounds" / "round_1.geopeft").read_bytes() == b"(0a|0b)"


def test_without_a_start_one_office_makes_it(
    rounds: Any, jobs: list[dict[str, Any]], federation: Federation, tmp_path: Path
) -> None:
    rounds.average_rounds(federation("bad", "b", "c"), config(tmp_path / "m.geopeft", rounds=1))
    assert (tmp_path / "m.geopeft").read_bytes() == b"(bb|bc)"
    assert "start" not in jobs[1] and jobs[1]["steps"] == 9, "the office's own job, where the server asks for no steps"


def test_nothing_but_the_model_and_a_number_reaches_an_office_and_nothing_else_leaves_it(
    rounds: Any, jobs: list[dict[str, Any]], federation: Federation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = federation("a", "bad", "c")
    rounds.average_rounds(grid, config(tmp_path / "m.geopeft", rounds=1, steps=1))
    assert all(message.content["round"].keys() == {"package", "steps"} for message in grid.sent)
    assert not {job["out"] for job in jobs} & {"/mine"} and not {job.get("start") for job in jobs} & {"/old"}
    said = capfd.readouterr().err.splitlines()
    assert "Office 2: the training failed with LABELS_EMPTY; its own log says why." in said
    assert "The training failed (LABELS_EMPTY): No label in /secret.tif. Draw." in said
    reply = rounds.fit_here(grid.sent[-2], SimpleNamespace(node_config={"job": str(tmp_path / "2.json")}))
    assert "secret" not in reply.error.reason and reply.error.code > 100


def test_one_office_alone_is_no_federation(
    rounds: Any, jobs: list[dict[str, Any]], federation: Federation, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="Round 1: 1 of 2 offices answered; 2 are needed"):
        rounds.average_rounds(federation("a", "bad"), config(tmp_path / "m.geopeft"))
    with pytest.raises(RuntimeError, match="1 offices are there, 2 are wanted"):
        rounds.average_rounds(federation("a"), config(tmp_path / "m.geopeft", **{"wait-minutes": 0}))
    with pytest.raises(RuntimeError, match="No office could make the first model"):
        rounds.average_rounds(federation("bad", "bad"), config(tmp_path / "m.geopeft"))
    with pytest.raises(ValueError, match="Say where the model goes"):
        rounds.average_rounds(federation("a", "b"), config(tmp_path).__class__(run_config={"out": ""}))
    assert not (tmp_path / "m.geopeft").exists()


def test_an_office_without_a_job_says_so(rounds: Any, capfd: pytest.CaptureFixture[str]) -> None:
    asked = Message({"round": {"package": b"", "steps": 1}}, dst_node_id=7)
    reply = rounds.fit_here(asked, SimpleNamespace(node_config={}))
    assert reply.error.reason == "the training failed with ValueError; its own log says why"
    assert "names no file with a fit job" in capfd.readouterr().err
