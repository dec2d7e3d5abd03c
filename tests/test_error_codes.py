"""The table of errors is what the code has, and every error is a sentence with a next step."""

from __future__ import annotations

import pytest

from tests import error_codes


@pytest.mark.fault("Q07")
def test_the_table_of_errors_is_current() -> None:
    assert error_codes.TABLE.read_text(encoding="utf-8") == error_codes.table(), "run python3 build.py schema"


@pytest.mark.fault("Q07")
@pytest.mark.parametrize("error", error_codes.errors(), ids=lambda error: f"{error.code} {error.sentence[:30]}")
def test_every_error_is_a_sentence_with_a_next_step(error: error_codes.Error) -> None:
    assert error.sentence and "\n" not in error.sentence
    assert error.hint, "what can the user do?"
    assert error.sentence.rstrip().endswith((".", "}", ")"))
