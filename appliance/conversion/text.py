"""A job's report as text for people."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from converters.report import Demotion, FormReport, Report, Searched, SignatureProof, Timing, Verdict

__all__ = ["Live", "demotion_text", "live_text", "report_text"]

_MAX_BEYOND = 4
_MAX_HAZARDS = 5


class Live(msgspec.Struct, frozen=True):
    """What TensorFlow has verified in service of what a form has answered, in requests; `unjudged` has the reasons.

    `held_up` says why nothing is verified now, "" if something is.
    """

    equal: int = 0
    different: int = 0
    unjudged: Mapping[str, int] = msgspec.field(default_factory=dict)
    held_up: str = ""

    def text(self) -> str:
        """Return how many were equal."""
        return f"equal on {self.equal:,} of {self.equal + self.different:,} live requests"


def live_text(report: Report, live: Live) -> str:
    """Return what the form of `report` was proven on, and what came of it in service."""
    form = next((form for form in report.forms if form.name == report.form), None)
    cases = 0 if form is None else sum(proof.cases + proof.edges for proof in form.proofs)
    lines = [f"proven on {cases:,} cases, then {live.text()}"]
    lines += [f"  {count:,} were not judged: {why}" for why, count in live.unjudged.items()]
    if live.held_up:
        lines.append(f"  nothing is verified now: {live.held_up}")
    return "\n".join(lines)


def report_text(report: Report) -> str:
    """Return the report as a table for people."""
    lines = [f"{report.chosen}: {report.reason}", ""]
    batches = list(dict.fromkeys((t.signature, t.batch) for t in report.tensorflow))
    shown = batches[:4]
    rows = [
        ["FORM", "CONVERTED", "PROVEN", "WORST DIFFERENCE", *(f"{name} x{batch}" for name, batch in shown), "SPEED-UP"],
        ["tensorflow", "-", "-", "-", *_times(report.tensorflow, shown), "1.00"],
    ]
    for form in report.forms:
        converted = ", ".join(form.entry_points) or "no"
        proven = sum(proof.verdict is Verdict.PROVEN for proof in form.proofs)
        speedup = f"{form.speedup:.2f}" if form.speedup else "-"
        times = _times(form.timings, shown)
        of_all = f"{proven} of {len(report.signatures)}"
        rows.append([form.name, converted, of_all, _worst(form), *times, speedup])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    for form in report.forms:
        lines.append(f"{form.name}: {form.reason}")
        if form.unsupported_ops:
            lines.append(f"  operators that it does not know: {', '.join(form.unsupported_ops)}")
        if form.hazards and form.proofs:
            more = len(form.hazards) - _MAX_HAZARDS
            known = "; ".join(form.hazards[:_MAX_HAZARDS]) + (f"; and {more} more" if more > 0 else "")
            lines.append(f"  known of operators in the model, should such values come about inside: {known}")
        for proof in form.proofs:
            lines.append(f"  {_proof_line(proof)}")
            if proof.searched.inputs:
                lines.append(f"    {_search_line(proof.searched)}")
            if proof.verdict is Verdict.PROVEN and (left_out := proof.domain.left_out()):
                lines.append(f"    TensorFlow answers {left_out}")
                lines += [f"      {why}" for why in proof.beyond[:_MAX_BEYOND]]
    lines += [f"{demotion.form} was given up: {demotion_text(demotion)}" for demotion in report.demotions]
    if report.disturbed:
        lines.append(
            f"other processes took {report.others:.0%} of the processors while this was measured: it is measured again "
            "when the server is started again, or by dropserve accelerate"
        )
    where = "from the cache" if report.from_cache else f"in {report.seconds:.1f} s"
    lines.append(f"{where}; on {report.machine}; {', '.join(f'{n} {v}' for n, v in report.versions.items())}")
    return "\n".join(lines) + "\n"


def demotion_text(demotion: Demotion) -> str:
    """Return why and when a form was given up, and how to have it tried again."""
    remove = f"remove {demotion.file} and start the server again" if demotion.file else "start the server again"
    return f"{demotion.why} ({demotion.at}; to try it again, {remove})"


def _times(timings: tuple[Timing, ...], shown: list[tuple[str, int]]) -> list[str]:
    found = {(t.signature, t.batch): f"{t.milliseconds:.3f} ms" for t in timings}
    return [found.get(key, "-") for key in shown]


def _worst(form: FormReport) -> str:
    found = [o.relative for proof in form.proofs for o in proof.outputs if o.relative is not None]
    return f"{max(found):.1e}" if found else "-"


def _proof_line(proof: SignatureProof) -> str:
    cases = f"{proof.cases} cases" + (f", {proof.recorded} of them recorded" if proof.recorded else "")
    refused = f", {proof.refused} refused by TensorFlow and replaced" if proof.refused else ""
    said = f": {proof.reason}" if proof.reason else ""
    edges = f" and {proof.edges} out of the usual" if proof.edges else ""
    return f"{proof.signature!r} {proof.verdict} on {cases}{edges}{refused}{said}"


def _search_line(searched: Searched) -> str:
    at_worst = f": at worst {searched.of_allowed:.2g} of what is allowed, on {searched.worst}" if searched.worst else ""
    explained = f"; {searched.explained} times, roundings were the difference" if searched.explained else ""
    return f"searched {searched.inputs:,} other inputs in {searched.seconds:.1f} s{at_worst}{explained}"
