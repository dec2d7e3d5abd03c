"""The table tests/faults.md: which test covers which case of what can go wrong, and what came of it.

A test names its cases with `@pytest.mark.fault("M17", ...)`. The columns `case` and `note` are written by hand (a note
says what is not covered, and why), the column `tests` by `build.py faults table`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE / "faults.md"
CASE = re.compile(r"[A-Z]\d\d")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; `tests` as they stand there."""

    case_id: str
    case: str
    note: str
    tests: str

    def __str__(self) -> str:
        return f"| {self.case_id} | {self.case} | {self.note} | {self.tests} |"


def rows(text: str) -> list[Row]:
    """The cases of the table, in its order."""
    cells = ([part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|"))
    return [Row(*row) for row in cells if len(row) == 4 and CASE.fullmatch(row[0])]


def marked(folder: Path = HERE) -> dict[str, list[str]]:
    """Case -> tests (`engine/test_package::a_cut_file`), from the markers in the tests below a folder."""
    tests: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        module = path.relative_to(folder).with_suffix("").as_posix()
        for name, case in _cases(ast.parse(path.read_text(encoding="utf-8"))):
            listed = tests.setdefault(case, [])
            label = f"{module}::{name.removeprefix('test_')}"
            if label not in listed:
                listed.append(label)
    return tests


def _cases(module: ast.Module) -> Iterator[tuple[str, str]]:
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        for node in (part for decorator in function.decorator_list for part in ast.walk(decorator)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                yield from ((function.name, ast.literal_eval(argument)) for argument in node.args)


def written(text: str, tests: Mapping[str, Iterable[str]]) -> str:
    """The table with its last column as the markers have it."""

    def line(old: str) -> str:
        found = rows(old)
        return str(dataclasses.replace(found[0], tests=", ".join(tests.get(found[0].case_id, ())))) if found else old

    return "\n".join(map(line, text.splitlines())) + "\n"


def problems(text: str, tests: Mapping[str, Iterable[str]]) -> list[str]:
    """Why the table is not what it should be, a sentence each."""
    there = rows(text)
    ids = [row.case_id for row in there]
    found = [f"{case} is marked in a test and is not in the table." for case in sorted(set(tests) - set(ids))]
    found += [f"{case} is there twice." for case in sorted({case for case in ids if ids.count(case) > 1})]
    found += [f"{row.case_id} has no words." for row in there if not row.case]
    found += [
        f"{row.case_id} has no test, and no note says why."
        for row in there
        if not tests.get(row.case_id) and not row.note
    ]
    if not found and written(text, tests) != text:
        found.append("Its tests are not those that carry the marker: run python3 build.py faults table")
    return found


def results(folder: Path) -> dict[str, list[int]]:
    """Case -> how many of its tests (passed, failed, skipped), from pytest's reports in a folder."""
    counts: dict[str, list[int]] = {}
    for test in (
        test for report in sorted(folder.glob("*.xml")) for test in ET.parse(report).getroot().iter("testcase")
    ):
        kind = 1 if test.find("failure") is not None or test.find("error") is not None else 0
        kind = 2 if test.find("skipped") is not None else kind
        for case in {entry.get("value", "") for entry in test.iter("property") if entry.get("name") == "fault"}:
            counts.setdefault(case, [0, 0, 0])[kind] += 1
    return counts


def codes(folder: Path) -> set[str]:
    """The error codes that tests have met, from pytest's reports in a folder."""
    entries = (e for path in folder.glob("*.xml") for e in ET.parse(path).getroot().iter("property"))
    return {entry.get("value", "") for entry in entries if entry.get("name") == "code"}


def report(folder: Path) -> str:
    """What tests and sweeps gave, as Markdown, from pytest's reports and the sweeps' answers in a folder."""
    lines = [
        "# What came of what can go wrong",
        "",
        "Made by `python3 build.py faults`; the cases are in tests/faults.md.",
    ]
    lines += ["", "| sweep | cases | wrong | what came of them | seconds |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        outcomes = "; ".join(f"{words}: {count}" for words, count in found["outcomes"].items())
        lines.append(f"| {path.stem} | {found['cases']} | {found['wrong']} | {outcomes} | {found['seconds']} |")
    counts = results(folder / "tests")
    lines += ["", "| case | passed | failed | skipped |", "|---|---|---|---|"]
    lines += [f"| {case} | {' | '.join(map(str, counts[case]))} |" for case in sorted(counts)]
    without = [row for row in rows(TABLE.read_text(encoding="utf-8")) if not row.tests]
    lines += [
        "",
        f"Without a test, for the reason in the table: {', '.join(row.case_id for row in without) or 'none'}.",
    ]
    return "\n".join(lines) + "\n"
