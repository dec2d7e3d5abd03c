"""Names of files that are not finished yet."""

from __future__ import annotations

import secrets
from pathlib import Path


def part_of(path: Path) -> Path:
    """A hidden name beside a file that nobody can foresee, so that no link can be put there beforehand."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
