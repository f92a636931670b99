"""When a version folder has settled, in virtual time: `NOW` is monotonic, `WALL` the wall clock of the same moment."""

from __future__ import annotations

import pytest

from appliance.core.observed import Observed
from appliance.source.settle import Fingerprint, Scan, Settler

NOW, WALL = 1000.0, 1_800_000_000.0


def scan(versions: dict[int, Fingerprint | None] | None = None, device: int = 1) -> Scan:
    versions = versions or {}
    return Scan(device, versions, {number: f"/models/a/{number}" for number in versions})


def look(
    settler: Settler, after: float, digest: str | None, age: float = 0.0, version: int = 1, skew: float = 0.0
) -> Observed:
    """A look at one version, `after` seconds from the start; its newest ctime was `age` seconds before that look."""
    fingerprint = None if digest is None else Fingerprint(digest, WALL + after + skew - age)
    return settler.observe(scan({version: fingerprint}), NOW + after, WALL + after)[version]


def test_what_was_there_before_the_first_look_is_judged_by_its_ctimes() -> None:
    settler = Settler(2.0)
    assert look(settler, 0, "a", age=5).settled
    assert settler.due is None


def test_a_young_folder_at_the_first_look_waits_only_for_the_rest_of_its_time() -> None:
    settler = Settler(2.0)
    seen = look(settler, 0, "a", age=0.5)
    assert not seen.settled
    assert seen.reason == "its files changed 0.5 s ago; waiting until they rest for 2 s"
    assert settler.due == pytest.approx(NOW + 1.5)
    assert look(settler, 1.5, "a", age=2).settled


def test_a_folder_that_appears_later_is_judged_by_what_we_see_not_by_its_ctime() -> None:
    settler = Settler(2.0)
    assert settler.observe(scan(), NOW, WALL) == {}
    assert not look(settler, 1, "a", age=3600).settled
    assert settler.due == NOW + 3
    assert not look(settler, 2.9, "a", age=3600).settled
    assert look(settler, 3, "a", age=3600).settled
    assert settler.due is None


def test_a_change_restarts_the_wait() -> None:
    settler = Settler(2.0)
    look(settler, 0, "a")
    assert not look(settler, 1.9, "b", age=3600).settled
    assert settler.due == pytest.approx(NOW + 3.9)
    assert not look(settler, 3.8, "b").settled
    assert look(settler, 3.9, "b").settled


def test_a_settled_folder_that_changes_waits_again() -> None:
    settler = Settler(2.0)
    assert look(settler, 0, "a", age=10).settled
    assert not look(settler, 10, "b").settled


def test_a_folder_that_went_and_came_back_waits_again_though_it_looks_the_same() -> None:
    settler = Settler(2.0)
    assert look(settler, 0, "a", age=10).settled
    settler.observe(scan(), NOW + 1, WALL + 1)
    assert not look(settler, 2, "a", age=12).settled


def test_that_a_folder_is_gone_must_settle_too() -> None:
    settler = Settler(2.0)
    assert look(settler, 0, "a", age=10).settled
    assert settler.observe(scan(), NOW + 1, WALL + 1) == {1: Observed("/models/a/1", None, settled=False)}
    assert settler.due == NOW + 3
    assert list(settler.observe(scan(), NOW + 2.9, WALL + 2.9)) == [1]
    assert settler.observe(scan(), NOW + 3, WALL + 3) == {}
    assert settler.due is None
    assert settler.observe(scan(), NOW + 4, WALL + 4) == {}


def test_a_folder_that_is_back_is_looked_at_although_it_is_loaded_until_it_has_settled() -> None:
    settler = Settler(2.0)
    look(settler, 0, None)
    assert settler.to_fingerprint == frozenset()
    settler.observe(scan(), NOW + 1, WALL + 1)
    assert settler.to_fingerprint == {1}
    look(settler, 2, "b")
    assert settler.to_fingerprint == {1}
    assert look(settler, 4, "b").settled
    assert settler.to_fingerprint == frozenset()


def test_another_folder_under_a_number_that_is_loaded_is_looked_at_at_once_until_it_has_settled() -> None:
    settler = Settler(2.0)

    def see(after: float, inode: int, fingerprint: Fingerprint | None) -> Observed:
        seen = Scan(1, {1: fingerprint}, {1: "/models/a/1"}, inodes={1: inode})
        return settler.observe(seen, NOW + after, WALL + after)[1]

    assert see(0, 7, None).settled
    assert settler.to_fingerprint == frozenset()
    see(1, 8, None)
    assert settler.to_fingerprint == {1}
    assert settler.due == NOW + 1
    assert not see(1, 8, Fingerprint("b", WALL)).settled
    assert see(3, 8, Fingerprint("b", WALL)).settled
    assert settler.to_fingerprint == frozenset()


def test_without_settle_seconds_a_folder_is_gone_at_once() -> None:
    settler = Settler(0.0)
    look(settler, 0, "a")
    assert settler.observe(scan(), NOW + 1, WALL + 1) == {}


def test_a_ctime_in_the_future_waits_from_the_first_look() -> None:
    settler = Settler(2.0)
    seen = look(settler, 0, "a", skew=3600)
    assert not seen.settled
    assert "0.0 s ago" in seen.reason
    assert settler.due == NOW + 2
    assert look(settler, 2, "a", skew=3600).settled


def test_a_jump_of_the_wall_clock_between_looks_changes_nothing() -> None:
    settler = Settler(2.0)
    look(settler, 0, "a")
    fingerprint = Fingerprint("a", WALL)
    assert not settler.observe(scan({1: fingerprint}), NOW + 1, WALL + 100_000)[1].settled
    assert settler.observe(scan({1: fingerprint}), NOW + 2, WALL - 100_000)[1].settled


def test_without_settle_seconds_everything_has_settled_at_once() -> None:
    settler = Settler(0.0)
    assert look(settler, 0, "a").settled
    assert look(settler, 1, "b", skew=10).settled
    assert settler.due is None


def test_a_version_that_is_not_fingerprinted_is_settled_and_has_no_digest() -> None:
    settler = Settler(2.0)
    assert look(settler, 0, None) == Observed("/models/a/1", None, settled=True)
    assert settler.due is None


def test_the_next_due_time_is_that_of_the_version_that_may_settle_first() -> None:
    settler = Settler(2.0)
    settler.observe(scan(), NOW, WALL)
    first, second = Fingerprint("a", WALL), Fingerprint("b", WALL)
    settler.observe(scan({1: first}), NOW + 1, WALL + 1)
    settler.observe(scan({1: first, 2: second}), NOW + 2, WALL + 2)
    assert settler.due == NOW + 3
    observed = settler.observe(scan({1: first, 2: second}), NOW + 3, WALL + 3)
    assert [observed[1].settled, observed[2].settled] == [True, False]
    assert settler.due == NOW + 4


def test_versions_settle_each_for_itself() -> None:
    settler = Settler(2.0)
    old, new = Fingerprint("a", WALL - 100), Fingerprint("b", WALL)
    observed = settler.observe(scan({1: old, 2: new}), NOW, WALL)
    assert [observed[1].settled, observed[2].settled] == [True, False]


def test_an_empty_folder_on_another_device_is_a_lost_mount() -> None:
    settler = Settler(2.0)
    look(settler, 0, "a")
    assert settler.lost_mount(scan(device=2))
    assert settler.lost_mount(scan(device=2))  # however often it is looked at


@pytest.mark.parametrize(
    ("seen", "now"),
    [
        pytest.param(scan({1: None}), scan(), id="an empty folder on the same device is a deletion"),
        pytest.param(scan({1: None}), scan({1: None}, device=2), id="another device with versions is a new mount"),
        pytest.param(scan(), scan(device=2), id="nothing was there"),
    ],
)
def test_these_are_no_lost_mounts(seen: Scan, now: Scan) -> None:
    settler = Settler(2.0)
    settler.observe(seen, NOW, WALL)
    assert not settler.lost_mount(now)


def test_before_the_first_look_nothing_is_a_lost_mount() -> None:
    assert not Settler(2.0).lost_mount(scan())


def test_a_mount_that_comes_back_is_followed_on() -> None:
    settler = Settler(2.0)
    look(settler, 0, "a", age=10)
    assert settler.lost_mount(scan(device=2))
    assert look(settler, 5, "a", age=15).settled  # the same files: nothing waits


# -- the files of loaded versions -------------------------------------------------------------------------------


def test_files_of_a_loaded_version_that_change_are_those_of_the_same_folder() -> None:
    settler = Settler(2.0)
    one, loaded = frozenset({1}), Fingerprint("a", WALL - 10)
    assert not settler.observe(scan({1: loaded}), NOW, WALL)[1].in_place
    seen = settler.observe(scan({1: loaded}), NOW + 1, WALL + 1, one)[1]
    assert (seen.in_place, seen.settled) == (True, True)
    changed = Fingerprint("b", WALL + 2)
    seen = settler.observe(scan({1: changed}), NOW + 2, WALL + 2, one)[1]
    assert (seen.in_place, seen.settled, settler.due) == (True, False, NOW + 4)
    seen = settler.observe(scan({1: changed}), NOW + 4, WALL + 4, one)[1]
    assert (seen.in_place, seen.settled, seen.digest) == (True, True, "b")


def test_a_folder_that_takes_the_place_of_a_loaded_version_s_is_another() -> None:
    settler = Settler(2.0)
    one, paths = frozenset({1}), {1: "/models/a/1"}
    settler.observe(Scan(1, {1: Fingerprint("a", WALL - 10)}, paths, inodes={1: 7}), NOW, WALL)
    replaced = Scan(1, {1: Fingerprint("b", WALL)}, paths, inodes={1: 8})
    assert not settler.observe(replaced, NOW + 1, WALL + 1, one)[1].in_place


def test_a_folder_of_a_loaded_version_that_went_and_came_back_is_another() -> None:
    settler = Settler(2.0)
    settler.observe(scan({1: Fingerprint("a", WALL - 10)}), NOW, WALL)
    settler.observe(scan(), NOW + 1, WALL + 1, frozenset({1}))
    assert not settler.observe(scan({1: Fingerprint("b", WALL)}), NOW + 2, WALL + 2, frozenset({1}))[1].in_place
