"""The bounded core of the campaign: every part of `make campaign`, small, with a fixed seed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.campaign.fuzz import fuzz_parsers
from tests.campaign.in_process import input_of
from tests.campaign.parsers import PLANTED, TARGETS
from tests.campaign.report import Report

SEED = 1
CASES = Path(__file__).with_name("cases")


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_or_refuses_what_is_nearly_right(name: str) -> None:
    target = TARGETS[name]
    if name != "warm-up":  # whose mutation makes a file of a seed
        for seed in target.seeds():
            target.parse(seed)
    for number in range(150):
        with contextlib.suppress(*target.refusals):
            target.parse(input_of(target, SEED, number))


@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda case: case.name)
def test_what_once_was_a_finding_is_none_any_more(case: Path) -> None:
    target = TARGETS[case.name.rpartition("-")[0]]
    with contextlib.suppress(*target.refusals):
        target.parse(case.read_bytes())


def test_a_run_is_decided_by_its_seed() -> None:
    target = TARGETS["json-predict"]
    first = [input_of(target, 1, number) for number in range(20)]
    assert first == [input_of(target, 1, number) for number in range(20)]
    assert first != [input_of(target, 2, number) for number in range(20)]


def test_what_ends_holds_up_or_passes_a_parser_is_a_finding(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.jsonl")
    assert fuzz_parsers(report, 14, 8, ["planted"]) == 8
    given = [input_of(PLANTED, 14, number) for number in range(8)]
    assert len(report.findings) == sum(given.count(kind) for kind in (b"wrong", b"ends", b"slow"))
    for said in ("KeyError", "SIGABRT", "processor time"):
        assert any(said in finding for finding in report.findings)
