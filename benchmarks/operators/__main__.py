"""`make operators`: see the package."""

import argparse
import os
import sys

from benchmarks.operators import campaign
from benchmarks.operators.catalogue import FAMILIES
from benchmarks.operators.variants import OPERATORS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> int:
    assert FAMILIES
    parser = argparse.ArgumentParser(description="Tries each operator that the converters take.")
    parser.add_argument("--only", nargs="+", choices=sorted(OPERATORS), default=(), metavar="OPERATOR")
    parser.add_argument("--results", default=os.path.join(ROOT, "build", "operators.jsonl"))
    asked = parser.parse_args()
    os.makedirs(os.path.dirname(os.path.abspath(asked.results)), exist_ok=True)
    campaign.run(os.path.abspath(asked.results), tuple(asked.only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
