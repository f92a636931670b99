"""docs/models.md: what became of each model of the zoo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.models.catalogue import GROUPS
from tests.models.model import Model
from tests.models.serving import Outcome

_FORMS = {"onnx": "ONNX", "tflite": "TF-Lite"}
_LOADERS = {"onnx": "ONNX Runtime", "lite": "LiteRT"}
_MOST_REASON = 480

_HEAD = """\
# Models

What `make zoo` found, with one small model for each way of exporting that TensorFlow's and Keras's documentation show,
models that other tools made, and models that others published. Each is dropped into a running server; its answers over
REST and gRPC, at batch 1 and 3, are compared with the framework's own in another process: TensorFlow's
(`tf.saved_model.load`, or a session where only that loads it), ONNX Runtime's, LiteRT's. They have to be equal to 1e-5
as the model is, and to 1e-4 in its accelerated form.

- **Loader**: what loads the version. `session` is TensorFlow Serving's own way; where that leaves variables without a
  value, they get those of their copies, or the model is loaded by its object graph, as `tf.saved_model.load` does.
- **Accelerated by**: the forms that were proven to give the same answers; which of them serves depends on what is
  faster on the machine. ONNX and TF-Lite models are served as they are.

`make zoo` writes this file; the models are in `tests/models/`. One way is not here any more: Estimators, which
TensorFlow 2.16 removed. What they exported are graphs of TensorFlow 1 with `parse_example`.
"""


@dataclass(slots=True)
class Row:
    """What is known of a model: `missing` says why it could not be made, or its framework gave no answer."""

    model: Model
    missing: str = ""
    plain: Outcome | None = None
    accelerated: Outcome | None = None
    faults: list[str] = field(default_factory=list)


def render(rows: Mapping[str, Row]) -> str:
    parts = [_HEAD]
    served = [
        row for row in rows.values() if row.plain is not None and row.plain.phase == "available" and not _wrong(row)
    ]
    parts.append(f"{len(served)} of {len(rows)} models are served.\n")
    for group in GROUPS.values():
        found = [rows[name] for name in group.models if name in rows]
        if found:
            lines = ["| model | how it was exported | loader | accelerated by | remarks |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in found]
            parts.append(f"## {group.title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _wrong(row: Row) -> list[str]:
    outcomes = [outcome for outcome in (row.plain, row.accelerated) if outcome is not None]
    return [*row.faults, *(fault for outcome in outcomes for fault in outcome.faults)]


def _cells(row: Row) -> list[str]:
    model, plain = row.model, row.plain
    cells = [f"`{model.name}`", model.how]
    if row.missing or plain is None:
        return [*cells, "not tried", "", _plain(row.missing)]
    if wrong := _wrong(row):
        return [*cells, "**wrong**", "", _plain(wrong[0])]
    if model.refused:
        return [*cells, "refused", "", f"{_plain(plain.reason)}"]
    return [*cells, loader_of(model, plain), _accelerated(row), model.remark]


def loader_of(model: Model, outcome: Outcome) -> str:
    """What loaded the version, as the remarks of its status tell. What is no SavedModel is run by its own runtime."""
    remarks = " ".join(outcome.entry.get("remarks", ()))
    if "loaded by its object graph" in remarks:
        return "object graph"
    if "got those of their copies" in remarks:
        return "session, variables repaired"
    return _LOADERS.get(model.judge, "session")


def _accelerated(row: Row) -> str:
    if row.model.judge in _LOADERS:
        return ""
    if row.accelerated is None:
        return "not tried"
    report = row.accelerated.acceleration
    proven = [
        _FORMS[candidate["form"]]
        for candidate in report.get("candidates", ())
        if candidate["proofs"] and all(proof["verdict"] == "proven" for proof in candidate["proofs"])
    ]
    return ", ".join(proven) or f"nothing: {_why(report)}"


def _why(report: Mapping[str, object]) -> str:
    """Why no form is proven, in words that do not change from run to run."""
    candidates = report.get("candidates", ())
    assert isinstance(candidates, list | tuple)
    for candidate in candidates:
        for attempt in candidate["attempts"]:
            if attempt["unsupported_ops"]:
                operators = ", ".join(f"`{op}`" for op in sorted(attempt["unsupported_ops"])[:3])
                return f"no converter has {operators}"
        for proof in candidate["proofs"]:
            if proof["verdict"] != "proven":
                return f"its answers are {proof['verdict']}"
    return _plain(str(report.get("reason", "")))


def _plain(text: str) -> str:
    """One short line that is the same on every machine: no paths, no attempts, no numbers of a run."""
    text = re.sub(r"\s*\(attempt \d+ of \d+.*?\)$", "", text.strip(), flags=re.DOTALL).splitlines()[0] if text else ""
    text = text.removesuffix(" (it is tried again when its files change)")
    text = re.sub(r"^cannot load \S+: ", "", text)
    text = re.sub(r"(/[\w.+-]+){2,}", "…", text)
    text = re.sub(r" in binary running on \S+", "", text).replace("|", "\\|")
    return text if len(text) <= _MOST_REASON else text[: _MOST_REASON - 2].rstrip() + " …"
