"""What pairs of runs say of a claim: held, not held, or that they cannot tell."""

from typing import Any

import pytest
from geopeft.study.claims import FAILED, HELD, OPEN, Verdict, judge
from geopeft.study.grid import Cell, Method
from geopeft.study.runs import DONE
from geopeft.study.table import row_of

ABOVE = "LoRA is more accurate than full tuning in the unseen region."


def rows(adapter: str, scores: list[float], backbone: str = "galileo_nano", **fields: Any) -> list[dict[str, Any]]:
    method = Method(backbone, adapter, "unet")
    return [
        row_of(Cell("run", method, 1.0, seed, 1.0, 10), f"{adapter}{seed}",
               {"state": DONE, "message": "", "unseen": score, "in_region": 0.8, **fields}, 9)
        for seed, score in enumerate(scores)
    ]  # fmt: skip


def verdict(found: list[dict[str, Any]], claim: str) -> Verdict | None:
    return next((one for one in judge(found) if one.claim == claim), None)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [([0.71, 0.73, 0.72], HELD), ([0.51, 0.53, 0.52], FAILED), ([0.75, 0.55, 0.61], OPEN), ([0.7], OPEN)],
)
def test_a_claim_holds_where_the_interval_of_the_paired_difference_does(lora: list[float], expected: str) -> None:
    found = verdict(rows("lora", lora) + rows("full", [0.61, 0.62, 0.62]), ABOVE)
    assert found is not None and found.verdict == expected and found.pairs == len(lora)


def test_runs_that_failed_or_differ_in_more_make_no_pair() -> None:
    one, other = rows("lora", [0.7, 0.7]), rows("full", [0.6, 0.6])
    assert verdict(one + rows("full", [0.6, 0.6], backbone="clay_v1"), ABOVE) is None
    other[1]["state"] = "OUT_OF_MEMORY"
    found = verdict(one + other, ABOVE)
    assert found is not None and found.pairs == 1


def test_memory_is_told_as_a_share_and_by_numbers_only() -> None:
    claim = "LoRA trains in less memory than full tuning."
    small, large = rows("lora", [0.7] * 2, training_mb=70.0), rows("full", [0.7] * 2, training_mb=100.0)
    found = verdict(small + large, claim)
    assert found is not None and found.verdict == HELD and found.numbers.startswith("-30 %")
    swapped = verdict(rows("lora", [0.7] * 2, training_mb=100.0) + rows("full", [0.7] * 2, training_mb=70.0), claim)
    assert swapped is not None and swapped.verdict == FAILED


def test_what_is_lost_elsewhere_is_compared_too() -> None:
    claim = "LoRA loses less than full tuning on the way to the unseen region."
    one, other = rows("lora", [0.60, 0.61, 0.60]), rows("full", [0.65, 0.66, 0.66])
    for row in other:
        row["in_region"] = 0.95
    found = verdict(one + other, claim)
    assert found is not None and found.verdict == HELD


def test_baselines_are_paired_by_share_and_seed() -> None:
    claim = "LoRA on a foundation model is more accurate than a random forest in the unseen region."
    forest = rows("", [0.6, 0.6, 0.61], backbone="random-forest")
    for row in forest:
        row["decoder"] = ""
    found = verdict(rows("lora", [0.7, 0.71, 0.7]) + forest, claim)
    assert found is not None and found.verdict == HELD and found.pairs == 3
