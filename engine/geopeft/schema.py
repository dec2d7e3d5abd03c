"""The `schema` job."""

from __future__ import annotations

from typing import Any

from geopeft.events import Reporter
from geopeft.job import SchemaJob, json_schema


def run(job: SchemaJob, reporter: Reporter) -> dict[str, Any]:
    """The JSON Schema of all jobs."""
    return json_schema()
