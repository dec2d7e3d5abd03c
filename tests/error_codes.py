"""The table of the engine's error codes (code, sentences, next steps), read from its code; for build.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENGINE, PLUGIN = ROOT / "engine" / "geopeft", ROOT / "geopeft_qgis"
TABLE = ROOT / "resources" / "errors.md"
HEAD = """# What can go wrong, by code

Every failure of GeoPEFT has a code that stays the same, a sentence and a next step. `{...}` stands for what is filled
in. Made from the code by `python3 build.py schema`.

| code | what it says | what to do |
|---|---|---|
"""


class Error(NamedTuple):
    """One place where an error is made."""

    code: str
    sentence: str
    hint: str


def errors() -> list[Error]:
    """Every error that the engine, and the part of the plugin that runs it, can end a job with."""
    classes = _classes(ast.parse((ENGINE / "errors.py").read_text(encoding="utf-8")))
    found = [error for path in sorted(ENGINE.rglob("*.py")) for error in _made(path, classes)]
    found += _made(PLUGIN / "engine_process.py", {"EngineError": "", "EngineFailed": ""})
    crashed = Error("ENGINE_CRASHED", "The engine ended without a result.", "See the end of its log.")
    return sorted({*found, crashed})


def codes() -> list[str]:
    return sorted({error.code for error in errors()})


def table() -> str:
    """The table as Markdown."""
    rows = [f"| {e.code} | {_cell(e.sentence)} | {_cell(e.hint)} |" for e in errors()]
    return HEAD + "\n".join(rows) + "\n"


def _classes(module: ast.Module) -> dict[str, str]:
    """Default code by the name of the class."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code":
                    found[node.name] = str(ast.literal_eval(line.value))
    return found


def _made(path: Path, classes: dict[str, str]) -> Iterator[Error]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            # What another process has told is in the table where it was made.
            told = any(isinstance(argument, ast.Starred) for argument in call.args)
            if name in classes and not told:
                yield from _error(call, function, module, classes[name])


def _error(call: ast.Call, function: ast.FunctionDef, module: ast.Module, default: str) -> Iterator[Error]:
    parts: list[ast.expr | None] = [*call.args, None, None, None][:3]
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    first, second, third = parts
    if not default:  # the plugin's: code, message, hint
        code, sentence, hint = named.get("code", first), named.get("message", second), named.get("hint", third)
    else:
        sentence, hint, code = named.get("message", first), named.get("hint", second), named.get("code", third)
    for value in _values(code, function, module) if code is not None else [default]:
        if value.isupper():
            yield Error(value, _text(sentence, function, module), _text(hint, function, module))


def _values(code: ast.expr, function: ast.FunctionDef, module: ast.Module) -> list[str]:
    """A code as it stands there, or all that the function is called with."""
    if isinstance(code, ast.Constant):
        return [str(code.value)]
    found = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if isinstance(code, ast.Name):
        for node in ast.walk(module):
            constants = ast.walk(node) if isinstance(node, ast.Call | ast.arguments) else ()
            if isinstance(node, ast.Call) and ast.unparse(node.func) != function.name:
                continue
            if isinstance(node, ast.arguments) and node is not function.args:
                continue
            found += [n.value for n in constants if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        found += [str(n.value.value) for n in ast.walk(function) if isinstance(n, ast.Assign)
                  and isinstance(n.value, ast.Constant) and ast.unparse(n.targets[0]) == code.id]  # fmt: skip
    return sorted({value for value in found if value.isupper() and value.replace("_", "").isalpha() and len(value) > 6})


def _text(node: ast.expr | None, function: ast.FunctionDef, module: ast.Module) -> str:
    """A text with `{...}` where something is filled in."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "{...}" for p in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, function, module) + _text(node.right, function, module)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tr", "_translate") and node.args:
        return _text(node.args[0], function, module)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _text(node.func.value, function, module)
    if isinstance(node, ast.Name):
        for place in (function, module):
            for line in (n for n in ast.walk(place) if isinstance(n, ast.Assign)):
                if ast.unparse(line.targets[0]) == node.id:
                    return _text(line.value, function, module)
    return "{...}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
