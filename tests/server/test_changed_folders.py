"""What a deployer does by mistake in the model folders: nobody gets other answers, or none, without a word."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.test_watcher import Folder
from tests.support.server import eventually

TWO, THREE = 2.5, 3.5  # what half_plus_two and half_plus_three make of x = 1
WEIGHTS = "variables/variables.data-00000-of-00001"


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    root = tmp_path_factory.mktemp("changed") / "root"
    root.mkdir()
    with Folder(model_root=root, settle_seconds=1, incomplete_after_seconds=1, acceleration="off") as running:
        running.zoo, running.root = zoo, root
        yield running


def kill_the_worker_of(server: Folder, others: set[int]) -> None:
    (worker,) = set(server.pids("ds-worker")) - others
    os.kill(worker, signal.SIGKILL)


def remarks(server: Folder, model: str) -> str:
    (version,) = server.model(model)["versions"]
    return " ".join(version["remarks"])


def test_files_that_are_overwritten_are_told_of_and_loaded_after_a_crash_with_a_warning(server: Folder) -> None:
    others = set(server.pids("ds-worker"))
    folder = server.drop("half_plus_two", "over", 1)
    server.wait_for("over", 1)
    os.utime(folder / WEIGHTS)
    (folder / "notes.txt").write_text("no part of the model")
    shutil.copytree(server.zoo / "half_plus_three", folder, dirs_exist_ok=True)
    eventually(lambda: "its files have been changed since it was loaded" in remarks(server, "over"), "it is remarked")
    assert server.answer("over") == TWO
    status, body = server.http("GET", "/metrics")[:2]
    assert status == 200
    assert b'dropserve_changed_versions{model="over",version="1"} 1' in body
    kill_the_worker_of(server, others)
    eventually(lambda: server.answer("over") == THREE, "the changed files are served")
    assert "its files have changed since it was loaded: they count as those of a new version" in server.log()
    assert remarks(server, "over") == ""


def test_a_file_that_is_cut_off_is_no_outage_after_a_crash_if_an_older_version_is_there(server: Folder) -> None:
    others = set(server.pids("ds-worker"))
    server.drop("half_plus_two", "cut", 1)
    folder = server.drop("half_plus_three", "cut", 2)
    server.wait_for("cut", 2)
    eventually(lambda: len(set(server.pids("ds-worker")) - others) == 1, "no other version has a worker")
    os.truncate(folder / WEIGHTS, 1)
    kill_the_worker_of(server, others)
    eventually(lambda: server.answer("cut") == TWO, "the older version serves")
    assert "its files were changed after it had served" in server.wait_for("cut", 2, "failed")
    shutil.copyfile(server.zoo / "half_plus_three" / WEIGHTS, folder / WEIGHTS)
    eventually(lambda: server.answer("cut") == THREE, "the version is back")


def test_folders_whose_names_are_not_utf_8_are_refused_with_a_remark(server: Folder) -> None:
    model = os.fsencode(server.root) + b"/odd\xff"
    os.mkdir(model)
    os.mkdir(model + b"/1")
    server.drop("half_plus_two", "named", 1)
    os.mkdir(os.fsencode(server.root) + b"/named/2\xff")
    server.wait_for("named", 1)
    expected = f"{server.root}/odd\\xff is ignored: its name is not UTF-8; rename the folder"
    eventually(lambda: server.model("odd\\xff").get("reason") == expected, "the model is listed with the reason")
    remark = f"{server.root}/named/2\\xff is ignored: its name is not UTF-8"
    eventually(lambda: server.model("named")["reason"] == remark, "the model remarks on the version")
    assert expected in server.log().replace("\\\\", "\\")
    os.rename(model, model.replace(b"\xff", b"est"))
    eventually(lambda: not server.model("odd\\xff"), "it is gone once it has another name")
