"""What serves stays until something better does: folders are switched, replaced, renamed or damaged, under load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_nothing_is_lost import Load
from tests.server.test_watcher import GRAPH, Folder
from tests.support.server import eventually

TWO, THREE = 2.5, 3.5  # what half_plus_two and half_plus_three make of x = 1


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    top = tmp_path_factory.mktemp("stays")
    (top / "root").mkdir()
    (top / "config.toml").write_text(
        f"""
        [models.linked]
        base_path = "{top}/linked"
        [models.strict]
        signature_changes = "refuse"
        """
    )
    with Folder(
        f"--config={top}/config.toml", model_root=top / "root", settle_seconds=1, incomplete_after_seconds=1
    ) as running:
        running.zoo, running.root = zoo, top / "root"
        yield running


def assert_nothing_was_lost(load: Load) -> None:
    load.end()
    assert load.failures == []
    assert load.resets == []
    assert set(load.answers) == {TWO, THREE}


def wait_until_it_is_seen_to_be_gone(server: Folder, model: str) -> None:
    eventually(lambda: "no numbered version folder" in server.model(model)["reason"], "it is seen to be gone")


def test_a_base_path_that_is_a_link_is_switched_to_the_next_release_without_a_lost_request(server: Folder) -> None:
    top = server.root.parent
    server.drop("half_plus_two", top / "release.1", 1)
    server.drop("half_plus_three", top / "release.2", 2)
    os.symlink(top / "release.1", top / "linked")
    server.wait_for("linked", 1)
    with Load(server, "linked") as load:
        os.symlink(top / "release.2", top / "linked.next")
        os.rename(top / "linked.next", top / "linked")
        server.wait_for("linked", 2)
        load.more(20)
    assert_nothing_was_lost(load)


def test_another_release_with_the_same_version_number_takes_over_behind_a_link(server: Folder) -> None:
    top = server.root.parent
    server.drop("half_plus_two", top / "same.1", 1)
    server.drop("half_plus_three", top / "same.2", 1)
    os.symlink(top / "same.1", server.root / "same")
    server.wait_for("same", 1)
    with Load(server, "same") as load:
        os.symlink(top / "same.2", server.root / ".next")
        os.rename(server.root / ".next", server.root / "same")
        eventually(lambda: server.answer("same") == THREE, "the new files are served")
        load.more(20)
    assert_nothing_was_lost(load)


def test_a_version_that_is_deleted_before_its_successor_is_copied_serves_meanwhile(server: Folder) -> None:
    server.drop("half_plus_two", "copied", 1)
    server.wait_for("copied", 1)
    with Load(server, "copied") as load:
        shutil.rmtree(server.root / "copied" / "1")
        wait_until_it_is_seen_to_be_gone(server, "copied")
        shutil.copytree(server.zoo / "half_plus_three", server.root / "copied" / "2")
        server.wait_for("copied", 2)
        load.more(20)
    assert_nothing_was_lost(load)


def test_a_model_folder_that_is_replaced_by_renames_loses_no_request(server: Folder) -> None:
    root = server.root
    server.drop("half_plus_two", "renamed", 1)
    server.drop("half_plus_three", root / ".new", 2)
    server.wait_for("renamed", 1)
    with Load(server, "renamed") as load:
        os.rename(root / "renamed", root / ".old")
        os.rename(root / ".new", root / "renamed")
        server.wait_for("renamed", 2)
        load.more(20)
    assert_nothing_was_lost(load)


def test_a_version_that_is_deleted_and_copied_anew_is_served_anew_without_a_lost_request(server: Folder) -> None:
    folder = server.drop("half_plus_two", "again", 1)
    server.wait_for("again", 1)
    with Load(server, "again") as load:
        shutil.rmtree(folder)
        wait_until_it_is_seen_to_be_gone(server, "again")
        shutil.copytree(server.zoo / "half_plus_three", folder)
        eventually(lambda: server.answer("again") == THREE, "the new files are served")
        load.more(20)
    assert_nothing_was_lost(load)


def test_a_damaged_graph_is_handed_to_the_loader_whose_error_is_the_reason(server: Folder) -> None:
    server.drop("half_plus_two", "damaged", 1)
    server.wait_for("damaged", 1)
    broken = server.drop("half_plus_three", "damaged", ".hidden")
    graph = (broken / GRAPH).read_bytes()
    (broken / GRAPH).write_bytes(graph[: len(graph) // 2] + b"\xff" * 64 + graph[len(graph) // 2 + 64 :])
    os.rename(broken, broken.parent / "2")
    reason = server.wait_for("damaged", 2, "failed")
    assert "it is tried again when its files change" in reason
    assert "cannot load" in reason
    assert GRAPH in reason
    assert server.answer("damaged") == TWO
    (broken.parent / "2" / GRAPH).write_bytes(graph)
    server.wait_for("damaged", 2)
    assert server.answer("damaged") == THREE


def test_a_version_whose_files_never_come_has_failed(server: Folder) -> None:
    (server.root / "empty" / "1").mkdir(parents=True)
    assert "saved_model.pb" in server.wait_for("empty", 1, "failed")
    server.drop("half_plus_two", "empty", 2)
    server.wait_for("empty", 2)


def test_changed_signatures_are_shown_and_refused_where_that_is_asked_for(server: Folder) -> None:
    for model in ("warned", "strict"):
        server.drop("half_plus_two", model, 1)
        server.wait_for(model, 1)
        server.drop("multi_io", model, 2)
    reason = server.wait_for("strict", 2, "failed")
    assert "its signatures differ from those of version 1" in reason
    assert "signature_changes" in reason
    assert server.answer("strict") == TWO
    server.wait_for("warned", 2)
    versions: dict[str, Any] = {v["version"]: v for v in server.model("warned")["versions"]}
    (remark,) = versions["2"]["remarks"]
    assert remark in reason
    assert remark in server.log()
