"""`make zoo`: serves every model of the zoo and writes docs/models.md.

    python -m tests.models [--models NAME …] [--plain]

With --models or --plain the table is printed, not written. The first time, tools of several GB are installed below
build/zoo.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.models.building import ROOT
from tests.models.catalogue import GROUPS, MODELS, ZOO, folder_of, made
from tests.models.serving import Outcome, serve, write_answers
from tests.models.table import Row, render

_AT_ONCE = 12  # models in one server: a small one takes about 100 MB of its own
_HERE = Path(__file__).parent
_TABLE = ROOT / "docs" / "models.md"

_started = time.monotonic()


def _say(text: str) -> None:
    print(f"{time.monotonic() - _started:6.0f} s  {text}", flush=True)


def _python(environment: str) -> str:
    """The Python of an environment that has the packages of its lock. "" is this one."""
    if not environment:
        return sys.executable
    folder, lock = ZOO / environment, _HERE / f"{environment}.lock"
    python, stamp = folder / "bin" / "python", folder / "installed.lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        _say(f"installing {lock.name} into {folder.relative_to(ROOT)} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-qq", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--requirement", lock], check=True)
        shutil.copyfile(lock, stamp)
    return str(python)


def _make(rows: dict[str, Row]) -> dict[str, Path]:
    """The folders of the models; a row says why one is missing."""
    folders: dict[str, Path] = {}
    for module, group in GROUPS.items():
        names = [name for name in group.models if name in rows]
        if names:
            _say(f"making {len(names)} models: {group.title}")
            for name, found in made(module, names, _python(group.environment)).items():
                if isinstance(found, Path):
                    folders[name] = found
                else:
                    rows[name].missing = f"could not be made: {found}"
                    rows[name].faults.append(rows[name].missing)
    return folders


def _parts(names: Iterable[str]) -> Iterator[Sequence[str]]:
    left = list(names)
    while left:
        yield left[:_AT_ONCE]
        left = left[_AT_ONCE:]


def _serve_all(rows: dict[str, Row], folders: dict[str, Path], accelerated: bool) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for module, group in GROUPS.items():
        names = [name for name in group.models if name in folders and not rows[name].missing]
        if accelerated:
            names = [name for name in names if group.models[name].can_be_accelerated]
        answers = _answers(module)
        for part in _parts(names):
            work = ZOO / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            _say(f"serving {len(part)} models{' accelerated' if accelerated else ''}: {group.title}")
            mode = "auto" if accelerated else "off"
            found = serve(part, folders, answers, work, _say, mode, cache_dir=ZOO / "cache")
            for name, outcome in found.items():
                for fault in outcome.faults:
                    _say(f"WRONG {name}: {fault}")
            outcomes |= found
    return outcomes


def _answers(module: str) -> Path:
    """Where the judges' answers for the models of `module` are kept."""
    return ZOO / "answers" / folder_of(module).name


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models", description="Serves every model of the zoo.")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), metavar="NAME", help="only these")
    parser.add_argument("--plain", action="store_true", help="without acceleration")
    asked = parser.parse_args()
    chosen = set(asked.models or MODELS)
    rows = {name: Row(model) for name, model in MODELS.items() if name in chosen}
    folders = _make(rows)
    for module, group in GROUPS.items():
        found = {name: folders[name] for name in group.models if name in folders}
        if found:
            _say(f"asking the frameworks themselves: {group.title}")
            for name, why in write_answers(found, _answers(module)).items():
                rows[name].missing = why
                rows[name].faults.append(why)
    for name, outcome in _serve_all(rows, folders, accelerated=False).items():
        rows[name].plain = outcome
    if not asked.plain:
        for name, outcome in _serve_all(rows, folders, accelerated=True).items():
            rows[name].accelerated = outcome
    table = render(rows)
    if asked.models or asked.plain:
        print(table)
    else:
        _TABLE.write_text(table, encoding="utf-8")
        _say(f"wrote {_TABLE.relative_to(ROOT)}")
    wrong = [
        name for name, row in rows.items() if row.faults or any(o and o.faults for o in (row.plain, row.accelerated))
    ]
    _say(f"{len(rows)} models; wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
