"""What came of a sweep, case by case, and the moments at which something goes wrong."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator


@dataclasses.dataclass
class Count:
    """What came of a sweep."""

    cases: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, words: str, wrong: list[str]) -> None:
        self.cases += 1
        self.outcomes[words] += 1
        self.wrong += [f"{words}: {sentence}" for sentence in wrong]

    def tell(self) -> None:
        """The answer of a sweep, on stdout."""
        for line in self.wrong:
            print(line, file=sys.stderr)
        answer = {"cases": self.cases, "wrong": len(self.wrong), "outcomes": dict(self.outcomes.most_common())}
        print(json.dumps(answer))


def moments(count: int, seconds: float, seed: int) -> Iterator[float]:
    """Random moments of a run that takes so long."""
    rng = random.Random(seed)
    yield from (rng.uniform(0, seconds) for _ in range(count))
