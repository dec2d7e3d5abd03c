"""Rounds of local training and averaging with Flower, for imagery that may not leave its office.

Flower carries model packages, as bytes, between a server and the offices. The work is the engine's: an office runs
`fit --start` on its own rasters and labels, the server `average`. The engine runs as a process of its own, since its
packages and Flower's need different versions of one library; so this file imports Flower and nothing of GeoPEFT.

An office says in its node's configuration what it has:
    engine-python   its Python with GeoPEFT; none: Flower's own
    job             a fit job as JSON (rasters, labels, class_field, ...), without out and start
The server can set the start and the number of steps, nothing else: no path and no option of an office's job.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

TRAIN, RECORD = "train", "round"
FEWEST = 2
ASK_EVERY_S = 2.0
# Flower leaves numbers up to 100 to itself.
FIT_FAILED = 101
# What an office's job may not take from elsewhere, since the rounds decide it.
OURS = ("job", "out", "start", "json_file", "report")

office = ClientApp()
server = ServerApp()


class EngineError(RuntimeError):
    """The engine ended with an error; the text is its sentence and hint, `code` its stable name."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@office.train()  # type: ignore[untyped-decorator]
def fit_here(message: Message, context: Context) -> Message:
    """One round in an office: fits from the server's model and sends the package back, or says that it failed.

    Why is told here only: a sentence of the engine may name files.
    """
    asked, node = message.content[RECORD], context.node_config
    try:
        package = fit(node, bytes(asked["package"]), int(asked["steps"]))
    except (EngineError, OSError, ValueError) as error:
        code = getattr(error, "code", type(error).__name__)
        print(f"The training failed ({code}): {error}", file=sys.stderr, flush=True)
        return Message(Error(FIT_FAILED, f"the training failed with {code}; its own log says why"), reply_to=message)
    return Message(RecordDict({RECORD: ConfigRecord({"package": package})}), reply_to=message)


def fit(node: Mapping[str, Any], start: bytes, steps: int) -> bytes:
    """Runs the office's job from a package (empty: from nothing) and returns the new package.

    Raises:
        EngineError: the engine could not.
        OSError, ValueError: the job's file cannot be read.
    """
    job = json.loads(Path(str(node["job"])).read_text(encoding="utf-8")) if "job" in node else None
    if not isinstance(job, dict):
        raise ValueError('The node\'s configuration names no file with a fit job: job="...".')
    with tempfile.TemporaryDirectory(prefix="geopeft-") as folder:
        out, before = Path(folder, "office.geopeft"), Path(folder, "start.geopeft")
        fields = {key: value for key, value in job.items() if key not in OURS} | {"job": "fit", "out": str(out)}
        fields |= {"steps": steps} if steps else {}
        if start:
            before.write_bytes(start)
            fields["start"] = str(before)
        run_engine(str(node.get("engine-python", "")), fields, Path(folder))
        return out.read_bytes()


@server.main()  # type: ignore[untyped-decorator]
def average_rounds(grid: Grid, context: Context) -> None:
    """All rounds: sends the model out, averages what comes back, and keeps every round's models beside the result."""
    config = context.run_config
    if not config["out"]:
        raise ValueError("Say where the model goes: --run-config 'out=\"/path/model.geopeft\"'.")
    out, wait_s = Path(str(config["out"])).absolute(), 60.0 * float(config["wait-minutes"])
    folder = out.with_name(f"{out.stem}_rounds")
    folder.mkdir(parents=True, exist_ok=True)
    nodes = gather(grid, max(int(config["offices"]), FEWEST), wait_s)
    steps = int(config["steps"])
    current = folder / "round_0.geopeft"
    if config["start"]:
        shutil.copyfile(str(config["start"]), current)
    else:
        current.write_bytes(ask_one(grid, nodes, steps, wait_s))
    for number in range(1, int(config["rounds"]) + 1):
        answers = ask(grid, nodes, current.read_bytes(), steps, wait_s)
        if len(answers) < FEWEST:
            raise RuntimeError(f"Round {number}: {len(answers)} of {len(nodes)} offices answered; {FEWEST} are needed.")
        models = []
        for at, answer in enumerate(answers, 1):
            models.append(folder / f"round_{number}_office_{at}.geopeft")
            models[-1].write_bytes(answer)
        current = folder / f"round_{number}.geopeft"
        fields = {"job": "average", "models": [str(path) for path in models], "out": str(current)}
        run_engine(str(config["engine-python"]), fields, folder)
        say(f"Round {number}: the average of {len(models)} models is {current}.")
    shutil.copyfile(current, out)
    say(f"The model is {out}. Its accuracy was not measured: evaluate it on labels that have taught nobody.")


def gather(grid: Grid, wanted: int, wait_s: float) -> list[int]:
    """The offices that are there, once they are enough; RuntimeError where they do not come."""
    until = time.monotonic() + wait_s
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(nodes)} offices are there, {wanted} are wanted.")
        time.sleep(ASK_EVERY_S)
    say(f"{len(nodes)} offices are there.")
    return nodes


def ask_one(grid: Grid, nodes: Iterable[int], steps: int, wait_s: float) -> bytes:
    """A first model, of the first office that can make one."""
    for node in nodes:
        for answer in ask(grid, [node], b"", steps, wait_s):
            return answer
    raise RuntimeError("No office could make the first model; their logs say why.")


def ask(grid: Grid, nodes: Iterable[int], start: bytes, steps: int, wait_s: float) -> list[bytes]:
    """The packages that the offices send back, in the order of their ids; those that fail or stay away are said."""
    content = {"package": start, "steps": steps}
    messages = [
        Message(RecordDict({RECORD: ConfigRecord(dict(content))}), dst_node_id=node, message_type=TRAIN, ttl=wait_s)
        for node in nodes
    ]
    found: dict[int, bytes] = {}
    for reply in grid.send_and_receive(messages, timeout=wait_s):
        node = reply.metadata.src_node_id
        if reply.has_error():
            say(f"Office {node}: {reply.error.reason}.")
        else:
            found[node] = bytes(reply.content[RECORD]["package"])
    return [found[node] for node in sorted(found)]


def run_engine(python: str, fields: Mapping[str, Any], folder: Path) -> None:
    """Runs one job of the engine and waits for it; EngineError with the engine's own sentence where it fails."""
    file = folder / "job.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    command = [python or sys.executable, "-I", "-m", "geopeft", "run", str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLWR_"))}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    last: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event.get("event") == "message":
            say(str(event.get("text", "")))
        last = event
    if last.get("event") == "completed" and done.returncode == 0:
        return
    sentence = f"{last.get('message', 'the engine ended early')} {last.get('hint', '')}".strip()
    raise EngineError(str(last.get("code", "ENGINE_ENDED")), sentence)


def say(text: str) -> None:
    """A line in Flower's log."""
    print(text, file=sys.stderr, flush=True)
