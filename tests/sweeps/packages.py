"""10 000 damaged, wrong or malicious model packages, each opened and put to work in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests import package_judge

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bodies = package_judge.good_packages(folder)
        judge = package_judge.Judge(folder)
        outcomes, wrong = package_judge.sweep(judge, bodies, range(COUNT))
        judge.close()
    for line in wrong:
        print(line, file=sys.stderr)
    print(json.dumps({"cases": COUNT, "wrong": len(wrong), "outcomes": dict(outcomes.most_common())}))


if __name__ == "__main__":
    main()
