"""What is dropped into a folder goes live when it is whole, and only then; and what is lost by accident stays live."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, eventually

RETRIES = 2


class Folder(Server):
    """A server over model folders, with words for what tests do to them."""

    zoo: Path
    root: Path  # its --model_root, as this process sees it

    def drop(self, source: str, base: Path | str, version: int | str = 1) -> Path:
        """Drops a model of the zoo whole, by an atomic rename. `base` is under the root, unless it is absolute."""
        folder = self.root / base
        folder.mkdir(parents=True, exist_ok=True)
        incoming = folder / f".incoming-{version}"
        shutil.copytree(self.zoo / source, incoming)
        os.rename(incoming, folder / str(version))
        return folder / str(version)

    def states(self, model: str) -> dict[int, str]:
        """The phases of the versions, without those that ended: whether an old one was ever loaded is a race."""
        return {version: phase for version, (phase, _) in self.versions(model).items() if phase != "ended"}

    def wait_for_states(self, model: str, **wanted: str) -> None:
        """Waits until exactly the wanted versions, as v1="available", are listed so."""
        expected = {int(name[1:]): phase for name, phase in wanted.items()}
        eventually(lambda: self.states(model) == expected, f"{model} is {expected}")

    def model(self, name: str) -> dict[str, Any]:
        """What GET /v1/models says of one model, {} where it is not listed."""
        found: list[dict[str, Any]] = [m for m in self.get("/v1/models")[1]["models"] if m["name"] == name]
        return found[0] if found else {}

    def answer(self, model: str, path: str = "") -> Any:
        """What the model makes of x = 1: 2.5 for half_plus_two, 3.5 for half_plus_three. None where it has none."""
        status, body = self.predict(model, {"instances": [1.0]}, path)
        return body["predictions"][0] if status == 200 else None

    def looks(self, servable: str) -> int:
        """How often the version was looked into and found incomplete: its folder had come to rest each time."""
        return self.log().count(f"{servable}: settling: incomplete")

    def next_look(self, servable: str, change: Callable[[], object]) -> None:
        """Makes a change, and waits until the server has looked into the settled folder and found it incomplete."""
        before = self.looks(servable)
        change()
        eventually(lambda: self.looks(servable) > before, f"{servable} is looked into, and found incomplete")


def pieces(source: Path, order: list[str]) -> list[tuple[str, bytes]]:
    """The files of a model in three pieces each (two where they are small), in `order`."""
    found = []
    for name in order:
        data = (source / name).read_bytes()
        cuts = (
            [0, len(data) // 3, len(data) * 2 // 3, len(data)] if len(data) > 1000 else [0, len(data) // 2, len(data)]
        )
        found += [(name, data[start:end]) for start, end in itertools.pairwise(cuts)]
    return found


def append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(data)


GRAPH, INDEX, SHARD = "saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    top = tmp_path_factory.mktemp("watched")
    (top / "root").mkdir()
    (top / "config.toml").write_text(
        f"""
        [models.every]
        version_policy = "all"
        [models.two]
        version_policy = "latest:2"
        [models.picked]
        version_policy = "specific:1,3"
        [models.elsewhere]
        base_path = "{top}/elsewhere"
        [models.linked]
        base_path = "{top}/linked"
        [models.vanishing]
        base_path = "{top}/vanishing"
        [models.file_latest]
        version_policy = "latest"
        """
    )
    (top / "models.config").write_text(
        f"""
        model_config_list {{
          config {{ name: "file_all" base_path: "{top}/file_all" model_version_policy {{ all {{}} }} }}
          config {{
            name: "file_picked" base_path: "{top}/file_picked"
            model_version_policy {{ specific {{ versions: 2 versions: 4 }} }}
          }}
          config {{ name: "file_two" base_path: "{top}/file_two"
            model_version_policy {{ latest {{ num_versions: 2 }} }} }}
          config {{ name: "file_latest" base_path: "{top}/file_two" model_version_policy {{ all {{}} }} }}
        }}
        """
    )
    with Folder(
        f"--config={top}/config.toml",
        model_root=top / "root",
        model_config_file=top / "models.config",
        load_retry_interval_micros=50_000,
        max_num_load_retries=RETRIES,
    ) as running:
        running.zoo, running.root = zoo, top / "root"
        yield running


# -- a folder that is being written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [[GRAPH, INDEX, SHARD], [SHARD, INDEX, GRAPH]], ids=["graph first", "variables first"]
)
def test_a_copy_with_pauses_is_never_live_in_part_and_never_failed(
    server: Folder, zoo: Path, order: list[str], request: pytest.FixtureRequest
) -> None:
    model = f"copied_{request.node.callspec.id.split()[0]}"
    server.drop("half_plus_two", model, 1)
    server.wait_for(model, 1)
    target = server.root / model / "2"
    *first, (name, rest) = pieces(zoo / "half_plus_three", order)
    for path, data in first:
        server.next_look(f"{model}/2", lambda path=path, data=data: append(target / path, data))  # type: ignore[misc]
        assert server.answer(model) == 2.5
        states = server.states(model)
        assert states.keys() == {1, 2}
        assert states[1] == "available"
        assert states[2] in ("settling", "loading")  # a worker may be looking whether it is complete
    append(target / name, rest)
    server.wait_for(model, 2)
    assert server.answer(model) == 3.5
    assert f"{model}/2: failed" not in server.log()


def test_files_under_temporary_names_are_no_model_until_they_are_renamed(server: Folder, zoo: Path) -> None:
    """As rsync -a writes: under .NAME.XXXXXX, with the source's mtime, then renamed."""
    target = server.root / "rsynced" / "1"
    (target / "variables").mkdir(parents=True)

    def arrive(name: str) -> None:
        written = target / name
        temporary = written.parent / f".{written.name}.Xy3abC"
        shutil.copy(zoo / "half_plus_two" / name, temporary)
        os.utime(temporary, (1_000_000_000, 1_000_000_000))
        server.next_look("rsynced/1", lambda: os.rename(temporary, written))

    server.next_look("rsynced/1", lambda: append(target / f".{GRAPH}.Xy3abC", b"\0" * 100))
    os.unlink(target / f".{GRAPH}.Xy3abC")
    arrive(GRAPH)
    arrive(INDEX)
    temporary = target / "variables" / ".variables.data-00000-of-00001.Xy3abC"
    server.next_look("rsynced/1", lambda: shutil.copy(zoo / "half_plus_two" / SHARD, temporary))
    assert "variables.data-00000-of-00001 is missing" in server.versions("rsynced")[1][1]
    os.utime(temporary, (1_000_000_000, 1_000_000_000))
    os.rename(temporary, target / SHARD)
    server.wait_for("rsynced", 1)
    assert server.answer("rsynced") == 2.5
    assert "rsynced/1: failed" not in server.log()


def test_a_missing_shard_is_named_and_its_arrival_makes_the_model_live(server: Folder, zoo: Path) -> None:
    base = server.root / "shard"
    shutil.copytree(zoo / "half_plus_two", base / ".incoming")
    os.unlink(base / ".incoming" / SHARD)
    server.next_look("shard/1", lambda: os.rename(base / ".incoming", base / "1"))
    phase, reason = server.versions("shard")[1]
    assert (phase, reason) == ("settling", f"incomplete: {SHARD} is missing")
    status, body = server.get("/v1/models/shard")
    assert status == 200
    assert body["model_version_status"][0]["state"] == "START"
    assert SHARD in body["model_version_status"][0]["status"]["error_message"]
    shutil.copy(zoo / "half_plus_two" / SHARD, base / "1" / SHARD)
    server.wait_for("shard", 1)


def test_a_missing_asset_is_named_and_its_arrival_makes_the_model_live(server: Folder, zoo: Path) -> None:
    base = server.root / "asset"
    shutil.copytree(zoo / "assets_vocab", base / ".incoming")
    os.unlink(base / ".incoming" / "assets" / "vocab.txt")
    server.next_look("asset/1", lambda: os.rename(base / ".incoming", base / "1"))
    assert "assets/vocab.txt is missing" in server.versions("asset")[1][1]
    shutil.copy(zoo / "assets_vocab" / "assets" / "vocab.txt", base / "1" / "assets" / "vocab.txt")
    server.wait_for("asset", 1)
    assert server.predict("asset", {"instances": ["beta", "delta"]}) == (200, {"predictions": [1, -1]})


def test_a_shard_that_grows_behind_a_linked_folder_is_noticed(server: Folder, zoo: Path, tmp_path: Path) -> None:
    target = server.root / "linked_variables" / "1"
    target.mkdir(parents=True)
    real = tmp_path / "variables"
    real.mkdir()
    data = (zoo / "half_plus_two" / SHARD).read_bytes()
    shutil.copy(zoo / "half_plus_two" / INDEX, real)
    append(real / Path(SHARD).name, data[:3])
    os.symlink(real, target / "variables")
    server.next_look("linked_variables/1", lambda: shutil.copy(zoo / "half_plus_two" / GRAPH, target))
    append(real / Path(SHARD).name, data[3:])
    server.wait_for("linked_variables", 1)


def test_a_version_that_is_a_link_goes_live_and_a_switched_link_brings_the_next(server: Folder, tmp_path: Path) -> None:
    server.drop("half_plus_two", tmp_path / "releases", 7)
    server.drop("half_plus_three", tmp_path / "releases", 8)
    base = server.root / "released"
    base.mkdir()
    os.symlink(tmp_path / "releases" / "7", base / ".next")
    os.rename(base / ".next", base / "1")
    server.wait_for("released", 1)
    os.symlink(tmp_path / "releases" / "8", base / ".next")
    os.rename(base / ".next", base / "2")
    server.wait_for("released", 2)
    assert server.answer("released") == 3.5


def test_a_base_path_that_is_a_link_can_be_switched(server: Folder) -> None:
    top = server.root.parent
    server.drop("half_plus_two", top / "linked.1", 1)
    server.drop("half_plus_three", top / "linked.2", 2)
    os.symlink(top / "linked.1", top / "linked")
    server.wait_for("linked", 1)
    os.symlink(top / "linked.2", top / "linked.next")
    os.rename(top / "linked.next", top / "linked")
    server.wait_for("linked", 2)
    server.wait_for_states("linked", v2="available")
    assert server.answer("linked") == 3.5


# -- what is broken ----------------------------------------------------------------------------------------------


def test_a_corrupt_graph_says_so_and_its_replacement_goes_live(server: Folder, zoo: Path) -> None:
    target = server.drop("half_plus_two", "garbled", ".hidden")
    (target / GRAPH).write_bytes(os.urandom(20_000))
    os.rename(target, target.parent / "1")
    target = target.parent / "1"
    eventually(lambda: GRAPH in server.versions("garbled").get(1, ("", ""))[1], "the reason names the file")
    assert server.answer("garbled") is None
    shutil.copy(zoo / "half_plus_two" / GRAPH, target / GRAPH)
    server.wait_for("garbled", 1)
    assert server.answer("garbled") == 2.5


def break_variables(folder: Path) -> None:
    """Changes a variable's bytes, but no size: only the checksum tells."""
    data = bytearray((folder / SHARD).read_bytes())
    data[0] ^= 0xFF
    (folder / SHARD).write_bytes(data)


def test_a_version_that_cannot_be_loaded_is_retried_then_given_up_and_its_replacement_goes_live(
    server: Folder, zoo: Path
) -> None:
    server.drop("half_plus_two", "broken", 1)
    server.wait_for("broken", 1)
    incoming = server.drop("half_plus_three", "broken", ".hidden")
    break_variables(incoming)
    os.rename(incoming, incoming.parent / "2")

    def given_up() -> bool:
        phase, reason = server.versions("broken").get(2, ("", ""))
        return phase == "failed" and f"given up after {RETRIES + 1} attempts" in reason

    eventually(given_up, "the version has failed for good, and says so")
    assert server.log().count("broken/2: loading") == RETRIES + 1
    assert server.answer("broken") == 2.5, "the old version serves on"
    status, body = server.get("/v1/models/broken/versions/2")
    assert status == 200
    (found,) = body["model_version_status"]
    assert found["state"] == "END"
    assert found["status"]["error_code"] != "OK"
    shutil.copy(zoo / "half_plus_three" / SHARD, incoming.parent / "2" / SHARD)
    server.wait_for("broken", 2)
    assert server.answer("broken") == 3.5


def test_broken_models_delay_no_other(server: Folder) -> None:
    """More of them than load at once, each retried."""
    for index in range(8):
        incoming = server.drop("half_plus_two", f"wreck_{index}", ".hidden")
        break_variables(incoming)
        os.rename(incoming, incoming.parent / "1")
    server.drop("half_plus_two", "beside", 1)
    server.wait_for("beside", 1)
    for index in range(8):
        server.wait_for(f"wreck_{index}", 1, "failed")
        shutil.rmtree(server.root / f"wreck_{index}")


@pytest.mark.parametrize("trap", ["loop", "pipe", "dangling", "loop itself"])
def test_a_version_folder_with_a_trap_in_it_holds_up_no_other_version(server: Folder, trap: str) -> None:
    model = f"trapped_{trap.replace(' ', '_')}"
    server.drop("half_plus_two", model, 1)
    server.wait_for(model, 1)
    trapped = server.drop("half_plus_three", model, ".hidden")
    if trap == "loop":
        os.symlink("self", trapped / "self")
        os.symlink("..", trapped / "up")
        os.unlink(trapped / GRAPH)
        os.symlink(GRAPH, trapped / GRAPH)
    elif trap == "pipe":
        os.unlink(trapped / GRAPH)
        os.mkfifo(trapped / GRAPH)
    elif trap == "dangling":
        os.unlink(trapped / GRAPH)
        os.symlink("nowhere", trapped / GRAPH)
    else:
        shutil.rmtree(trapped)
        os.symlink("2", trapped)
    os.rename(trapped, trapped.parent / "2")

    def explained() -> str:
        return server.versions(model).get(2, ("", ""))[1] or server.model(model)["reason"]

    eventually(explained, "the status says what is wrong with version 2")
    assert server.states(model)[1] == "available"
    server.drop("half_plus_three", model, 3)
    server.wait_for(model, 3)
    assert server.answer(model) == 3.5


def test_a_folder_with_a_number_beyond_64_bits_is_ignored_and_said_to_be(server: Folder) -> None:
    server.drop("half_plus_two", "numbers", "99999999999999999999")
    server.drop("half_plus_two", "numbers", "9" * 200)
    server.drop("half_plus_two", "numbers", "-1")
    server.drop("half_plus_two", "numbers", 2**63 - 1)
    server.wait_for("numbers", 2**63 - 1)
    assert server.states("numbers") == {2**63 - 1: "available"}
    assert "99999999999999999999 is ignored" in server.model("numbers")["reason"]


def test_a_version_folder_may_have_leading_zeros(server: Folder) -> None:
    server.drop("half_plus_two", "zeros", 1)
    server.wait_for("zeros", 1)
    server.drop("half_plus_three", "zeros", "00000123")
    server.wait_for("zeros", 123)
    assert server.answer("zeros", "/versions/123") == 3.5
    assert server.answer("zeros", "/versions/00000123") == 3.5


def test_a_model_without_a_version_folder_is_told_what_to_do(server: Folder) -> None:
    incoming = server.drop("half_plus_two", ".", ".flat")
    os.rename(incoming, server.root / "flat")
    eventually(lambda: "move it to" in server.model("flat").get("reason", ""), "the status says where to move it")


def test_a_version_folder_with_something_else_in_it_is_told_what_to_do(server: Folder) -> None:
    base = server.root / "other"
    (base / "1").mkdir(parents=True)
    (base / "1" / "classifier.onnx").write_bytes(b"graph")
    eventually(
        lambda: "rename it to model.onnx" in server.versions("other").get(1, ("", ""))[1],
        "the status says how to make a model of it",
    )


# -- what goes ---------------------------------------------------------------------------------------------------


def test_a_deleted_version_falls_back_to_the_newest_that_remains_without_a_gap(server: Folder) -> None:
    server.drop("half_plus_two", "falling", 1)
    server.drop("half_plus_two", "falling", 2)
    server.drop("half_plus_three", "falling", 3)
    server.wait_for_states("falling", v3="available")
    shutil.rmtree(server.root / "falling" / "3")

    def fallen() -> bool:
        answer = server.answer("falling")
        assert answer in (2.5, 3.5), "some version always serves"
        return server.states("falling") == {2: "available"}

    eventually(fallen, "version 2 has taken over")
    assert server.answer("falling") == 2.5


def test_a_deleted_model_folder_unloads_the_model_and_its_return_loads_it_again(server: Folder) -> None:
    server.drop("half_plus_two", "leaving", 1)
    server.wait_for("leaving", 1)
    before = len(server.pids("ds-worker"))
    shutil.rmtree(server.root / "leaving")
    eventually(lambda: not server.model("leaving"), "the model is forgotten")
    status, listed = server.get("/v1/models/leaving")
    assert (status, [version["state"] for version in listed["model_version_status"]]) == (200, ["END"])
    assert server.answer("leaving") is None
    assert len(server.pids("ds-worker")) == before - 1
    server.drop("half_plus_three", "leaving", 1)
    server.wait_for("leaving", 1)
    assert server.answer("leaving") == 3.5


def test_a_base_path_that_vanishes_unloads_nothing_and_the_status_says_so(server: Folder) -> None:
    base = server.root.parent / "vanishing"
    server.drop("half_plus_two", base, 1)
    server.wait_for("vanishing", 1)
    away = base.with_name("vanishing.away")
    os.rename(base, away)
    eventually(lambda: "nothing is unloaded" in server.model("vanishing")["reason"], "the loss is in the status")
    assert str(base) in server.model("vanishing")["reason"]
    assert server.answer("vanishing") == 2.5
    os.rename(away, base)
    eventually(lambda: not server.model("vanishing")["reason"], "the return is in the status")
    assert server.states("vanishing") == {1: "available"}
    server.drop("half_plus_three", base, 2)
    server.wait_for("vanishing", 2)
    assert server.answer("vanishing") == 3.5


# -- policies ----------------------------------------------------------------------------------------------------


def test_version_policies_of_toml_tables_hold_for_models_under_the_root(server: Folder) -> None:
    for model in ("every", "two", "picked"):
        for version in (1, 2, 3):
            server.drop("half_plus_two" if version < 3 else "half_plus_three", model, version)
    server.wait_for_states("every", v1="available", v2="available", v3="available")
    server.wait_for_states("two", v2="available", v3="available")
    server.wait_for_states("picked", v1="available", v3="available")
    assert server.answer("every", "/versions/1") == 2.5
    assert server.answer("every") == 3.5
    server.drop("half_plus_two", "two", 4)
    server.wait_for_states("two", v3="available", v4="available")
    shutil.rmtree(server.root / "every" / "2")
    server.wait_for_states("every", v1="available", v3="available")


def test_version_policies_of_a_model_config_file_hold_and_a_toml_table_goes_before_them(server: Folder) -> None:
    top = server.root.parent
    for model in ("file_all", "file_picked", "file_two"):
        for version in (2, 3, 4):
            server.drop("half_plus_two", top / model, version)
    server.wait_for_states("file_all", v2="available", v3="available", v4="available")
    server.wait_for_states("file_picked", v2="available", v4="available")
    server.wait_for_states("file_two", v3="available", v4="available")
    server.wait_for_states("file_latest", v4="available")


def test_a_base_path_beside_the_root_is_served_and_never_taken_for_a_vanished_sub_folder(server: Folder) -> None:
    server.drop("half_plus_two", server.root.parent / "elsewhere", 1)
    server.wait_for("elsewhere", 1)
    server.drop("half_plus_two", "another", 1)  # the root is listed after `elsewhere` was found
    server.wait_for("another", 1)
    assert server.states("elsewhere") == {1: "available"}


# -- readiness ---------------------------------------------------------------------------------------------------


def test_an_empty_root_holds_readiness_until_each_model_was_tried_and_a_failed_one_holds_it_no_longer(
    zoo: Path, tmp_path: Path
) -> None:
    with Folder(model_root=tmp_path, ready_timeout_seconds=86400) as running:
        running.zoo, running.root = zoo, tmp_path
        assert running.get("/readyz")[0] == 503
        assert running.get("/healthz")[0] == 200
        incoming = running.drop("half_plus_two", "broken", ".hidden")
        break_variables(incoming)
        os.rename(incoming, incoming.parent / "1")
        eventually(lambda: running.get("/readyz")[0] == 200, "ready once the model has failed its first attempt")
        assert running.states("broken") == {1: "failed"}


def test_an_empty_or_missing_path_holds_readiness_no_longer_than_the_timeout(tmp_path: Path) -> None:
    with Server(model_root=tmp_path / "missing", ready_timeout_seconds=0.1) as running:
        eventually(lambda: running.get("/readyz")[0] == 200, "ready by the timeout")


# -- mounts, and file systems that hang ---------------------------------------------------------------------------

# In namespaces of its own the server has no inotify, and tests mount and unmount under it without harming anyone.
NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")
NO_INOTIFY = "echo 0 > /proc/sys/user/max_inotify_instances"


def namespaces_work() -> bool:
    try:
        check = [*NAMESPACES, "sh", "-ec", f"{NO_INOTIFY}; mount -t tmpfs none /mnt; umount /mnt"]
        return subprocess.run(check, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False


class Isolated(Folder):
    """A server in mount and user namespaces of its own, without inotify."""

    prefix: tuple[str, ...] = (*NAMESPACES, "sh", "-ec", f'{NO_INOTIFY}; mount -t tmpfs none "$0"; exec "$@"')

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self.process.pid), "--user", "--mount", "--preserve-credentials", *command]

    def mount(self, *arguments: str) -> None:
        subprocess.run(self.inside(*arguments), check=True, timeout=30)

    def path(self, path: Path) -> Path:
        """`path` of the server's namespace, as this process reaches it."""
        return Path(f"/proc/{self.process.pid}/root{path}")


@pytest.fixture(scope="module")
def isolated(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isolated]:
    if not namespaces_work():
        pytest.skip("this machine permits no user namespaces with mounts (unshare --user --mount)")
    top = tmp_path_factory.mktemp("isolated")
    mounted = top / "mounted"
    mounted.mkdir()
    (top / "root").mkdir()
    (top / "config.toml").write_text(f'[models.mounted]\nbase_path = "{mounted}"\n')
    Isolated.prefix = (*Isolated.prefix[:7], str(mounted))
    with Isolated(f"--config={top}/config.toml", model_root=top / "root") as running:
        running.zoo, running.root = zoo, top / "root"
        yield running


def test_the_rescan_alone_finds_models_versions_and_deletions(isolated: Isolated) -> None:
    isolated.drop("half_plus_two", "unhinted", 1)
    isolated.wait_for("unhinted", 1)
    assert "no file events for" in isolated.log()
    isolated.drop("half_plus_three", "unhinted", 2)
    isolated.wait_for_states("unhinted", v2="available")
    shutil.rmtree(isolated.root / "unhinted" / "2")
    isolated.wait_for_states("unhinted", v1="available")
    shutil.rmtree(isolated.root / "unhinted")
    eventually(lambda: not isolated.model("unhinted"), "the model is forgotten")


def test_a_lost_mount_unloads_nothing_and_the_status_says_so(isolated: Isolated) -> None:
    base = isolated.root.parent / "mounted"
    isolated.drop("half_plus_two", isolated.path(base), 1)
    isolated.wait_for("mounted", 1)
    isolated.mount("umount", "-l", str(base))
    eventually(lambda: "lost mount" in isolated.model("mounted")["reason"], "the loss is in the status")
    assert isolated.states("mounted") == {1: "available"}
    assert isolated.answer("mounted") == 2.5
    isolated.mount("mount", "-t", "tmpfs", "none", str(base))
    isolated.drop("half_plus_three", isolated.path(base), 2)
    isolated.wait_for("mounted", 2)
    assert isolated.answer("mounted") == 3.5
    assert not isolated.model("mounted")["reason"]


# Mounts a FUSE file system and never answers for it: whoever asks it for anything hangs, as with a dead NFS server.
HUNG = """
import ctypes, os, sys
descriptor = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"hung", os.fsencode(sys.argv[1]), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
sys.stdin.read()
"""


def test_a_file_system_that_hangs_delays_no_other_model_and_the_status_says_so(isolated: Isolated) -> None:
    for name in ("hung", "lively"):
        isolated.drop("half_plus_two", name, 1)
        isolated.wait_for(name, 1)
    (isolated.root / "fresh_hung").mkdir()
    helpers = []
    try:
        for name in ("hung", "fresh_hung"):
            command = isolated.inside(sys.executable, "-c", HUNG, str(isolated.root / name))
            helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            helpers.append(helper)
            assert helper.stdout is not None
            assert helper.stderr is not None
            if helper.stdout.readline() != b"mounted\n":
                pytest.skip(f"no FUSE on this machine: {helper.stderr.read().decode().strip()}")
        os.symlink(isolated.root / "hung" / "inside", isolated.root / "link_into_it")
        isolated.drop("half_plus_three", "lively", 2)
        isolated.wait_for("lively", 2)
        isolated.drop("half_plus_two", "newcomer", 1)
        isolated.wait_for("newcomer", 1)
        assert isolated.answer("hung") == 2.5, "it serves on"
        eventually(lambda: "has not answered" in isolated.model("hung")["reason"], "the status says that it hangs")
        assert isolated.stop() == 0, "a scan that hangs does not keep the server from ending"
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()
