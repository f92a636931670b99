"""`make operators`: see the package.

    python -m benchmarks.operators [--only OPERATOR[:TYPE] …] [--results FILE] [--root FOLDER]

All operators take about half an hour on two busy cores. What has been done is not done again, so it may be ended and
started at any time. The lines of results are in build/operators.jsonl; remove it to begin anew. `--only` tries its
operators again in any case. At the end converters/hazards.json and the documentation are written, of what has been
tried so far.
"""

import argparse
import os
import sys

from benchmarks.operators import campaign, table
from benchmarks.operators.catalogue import FAMILIES
from benchmarks.operators.variants import OPERATORS
from converters import hazards

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGES = {"operators": "docs/acceleration.md", "hazards": "docs/operators.md"}


def main() -> int:
    assert FAMILIES  # which have registered the operators
    parser = argparse.ArgumentParser(description="Tries each operator that the converters take.")
    parser.add_argument("--only", nargs="+", default=(), metavar="OPERATOR[:TYPE]")
    parser.add_argument("--results", default=os.path.join(ROOT, "build", "operators.jsonl"))
    parser.add_argument("--root", default=ROOT, help="where the table and the documentation are written")
    asked = parser.parse_args()
    unknown = [wanted for wanted in asked.only if wanted.partition(":")[0] not in OPERATORS]
    if unknown:
        parser.error(f"{', '.join(unknown)} is not tried; there are {', '.join(sorted(OPERATORS))}")
    results = os.path.abspath(asked.results)
    os.makedirs(os.path.dirname(results), exist_ok=True)
    left = campaign.run(results, asked.only)
    _write(asked.root, results, left)
    return 0


def _write(root: str, results: str, left: int) -> None:
    """Writes the table and the pages. The figures are those of a whole campaign: there they stay as they are until
    nothing is `left`."""
    lines = list(campaign.read(results))
    file = os.path.join(root, "converters", "hazards.json")
    tried = {(line["op"], line["dtype"]) for line in lines}
    found = table.merged(hazards.from_text(_read(file)), table.found_hazards(lines), tried)
    _replace(file, hazards.to_text(found))
    sections = {"hazards": table.hazards_page(found)}
    if left:
        print(f"{left:,} of the operators' element types are not tried yet: the figures stay as they are")
    else:
        sections["operators"] = table.figures_text(table.figures(lines), found)
    for name, text in sections.items():
        page = os.path.join(root, PAGES[name])
        _replace(page, table.with_section(_read(page), name, text))


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _replace(path: str, text: str) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    sys.exit(main())
