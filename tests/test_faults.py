"""What can go wrong is listed, and each case has its tests or a reason."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests import faults

TABLE = "| M01 | cut | | a::b |\n| M02 | other | not here | |\n"


def test_the_table_is_what_the_markers_say() -> None:
    assert faults.problems(faults.TABLE.read_text(encoding="utf-8"), faults.marked()) == []


def test_every_known_case_is_in_the_table() -> None:
    shared = Path(os.environ.get("GEOPEFT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    listed = shared / "facts" / "faults.csv"
    if not listed.is_file():
        pytest.skip(f"no list of cases at {listed}")
    with listed.open(encoding="utf-8", newline="") as lines:
        known = {row["id"] for row in csv.DictReader(lines)}
    assert known <= {row.case_id for row in faults.rows(faults.TABLE.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("table", "tests", "problem"),
    [
        (TABLE, {}, "M01 has no test"),
        (TABLE, {"M01": ["a::b"], "M03": ["a::c"]}, "M03 is marked"),
        (TABLE, {"M01": ["a::other"]}, "not those that carry"),
        (TABLE + TABLE, {"M01": ["a::b"]}, "M01 is there twice"),
        (TABLE.replace("cut", ""), {"M01": ["a::b"]}, "M01 has no words"),
    ],
)
def test_a_table_that_is_not_current_is_noticed(table: str, tests: dict[str, list[str]], problem: str) -> None:
    assert any(problem in found for found in faults.problems(table, tests))


def test_a_table_is_brought_up_to_date() -> None:
    tests = {"M01": ["a::other"]}
    assert faults.problems(faults.written(TABLE, tests), tests) == []


def test_markers_are_found_in_decorators_and_parameters(tmp_path: Path) -> None:
    lines = ['@pytest.mark.fault("M01", "M02")', "def test_a(): ...", ""]
    case = 'pytest.param(1, marks=pytest.mark.fault("M03"))'
    lines += [f'@pytest.mark.parametrize("x", [{case}])', "def test_b(x): ..."]
    (tmp_path / "test_x.py").write_text("\n".join(lines), encoding="utf-8")
    assert faults.marked(tmp_path) == {"M01": ["test_x::a"], "M02": ["test_x::a"], "M03": ["test_x::b"]}


def test_results_are_read_from_the_reports(tmp_path: Path) -> None:
    case = '<testcase name="t"><properties><property name="fault" value="{}"/></properties>{}</testcase>'
    cases = [case.format("M01", ""), case.format("M01", "<failure/>"), case.format("M02", "<skipped/>")]
    (tmp_path / "a.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", "utf-8")
    assert faults.results(tmp_path) == {"M01": [1, 1, 0], "M02": [0, 0, 1]}
