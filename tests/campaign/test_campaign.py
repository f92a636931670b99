"""The bounded core of the campaign: every part of `make campaign`, small, with a fixed seed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.drops import drop_mutated_models
from tests.campaign.faults import break_processes
from tests.campaign.fuzz import fuzz_parsers
from tests.campaign.hostile import beside_hostile
from tests.campaign.in_process import input_of
from tests.campaign.leaks import come_and_go
from tests.campaign.overload import overload
from tests.campaign.parsers import PLANTED, TARGETS
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer, serving
from tests.campaign.swaps import swap_versions
from tests.campaign.wire import fuzz_sockets

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


@pytest.fixture(scope="module")
def server() -> Iterator[CampaignServer]:
    with serving("stays", hang_seconds=2, incomplete_after_seconds=1) as running:
        yield running


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "report.jsonl")


def test_mutated_requests_harm_no_process(server: CampaignServer, report: Report) -> None:
    assert fuzz_sockets(report, server, "stays", SEED, 400) == 400
    assert report.findings == []


def test_mutated_models_harm_no_other(server: CampaignServer, report: Report) -> None:
    assert drop_mutated_models(report, server, "stays", SEED, 8) == 8
    assert report.findings == []


def test_versions_that_are_swapped_lose_no_request(server: CampaignServer, report: Report) -> None:
    assert swap_versions(report, server, 4)["swaps"] == 4
    assert report.findings == []


def test_models_that_come_and_go_leave_nothing_behind(server: CampaignServer, report: Report) -> None:
    come_and_go(report, server, 8)
    assert report.findings == []


def test_more_than_the_server_can_answer_is_answered_in_part(server: CampaignServer, report: Report) -> None:
    assert overload(report, server, "stays", SEED, 3.0)["answers"] > 0
    assert report.findings == []


def test_a_hostile_model_costs_no_request_of_another(server: CampaignServer, report: Report) -> None:
    figures = beside_hostile(report, server, "stays", 0.5, math.inf, ("exhaust", "hangs_at_load"))
    assert figures.keys() > {"exhaust_p99_ms", "hangs_at_load_p99_ms"}
    assert report.findings == []


def test_broken_processes_are_replaced_and_no_answer_is_wrong(server: CampaignServer, report: Report) -> None:
    assert break_processes(report, server, 3, 600.0, "stays", 4)["faults"] == 4
    assert report.findings == []
