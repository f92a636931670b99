"""Which versions are wanted and which may go: literal snapshots, and one property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.version_policy import All, Latest, Specific, VersionPolicy, aspired_versions, surplus_versions

VERSIONS = st.frozensets(st.integers(0, 2**63 - 1) | st.integers(0, 5), max_size=6)
POLICIES = (
    st.builds(Latest, st.integers(1, 4))
    | st.just(All())
    | st.builds(Specific, VERSIONS.filter(lambda versions: versions))
)


@pytest.mark.parametrize(
    ("policy", "present", "aspired"),
    [
        (Latest(), [], []),
        (Latest(), [1], [1]),
        (Latest(), [1, 2, 10], [10]),
        (Latest(), [0], [0]),
        (Latest(2), [3, 1, 2], [2, 3]),
        (Latest(5), [1, 2], [1, 2]),
        (Latest(), [2**63 - 1, 9], [2**63 - 1]),
        (All(), [], []),
        (All(), [3, 1], [1, 3]),
        (Specific(frozenset({2})), [1, 2, 3], [2]),
        (Specific(frozenset({2, 7})), [1, 2, 3], [2]),
        (Specific(frozenset({7})), [1, 2, 3], []),
    ],
)
def test_a_policy_wants_these_of_the_versions_there_are(
    policy: VersionPolicy, present: list[int], aspired: list[int]
) -> None:
    assert aspired_versions(policy, present) == frozenset(aspired)


@pytest.mark.parametrize(
    ("aspired", "loaded", "surplus"),
    [
        ([], [], []),
        ([2], [], []),
        ([2], [1], []),  # the new version is not loaded: the old one stays
        ([2], [1, 2], [1]),
        ([2], [2], []),
        ([2, 3], [1, 2], []),  # not all are loaded: nothing goes yet
        ([2, 3], [1, 2, 3], [1]),
        ([], [1, 2], [1, 2]),  # nothing is wanted: everything goes
        ([1], [1, 2, 3], [2, 3]),  # to an older version, likewise
    ],
)
def test_a_loaded_version_goes_once_all_that_are_wanted_are_loaded(
    aspired: list[int], loaded: list[int], surplus: list[int]
) -> None:
    assert surplus_versions(aspired, loaded) == frozenset(surplus)


@given(POLICIES, VERSIONS, VERSIONS)
def test_what_goes_never_takes_availability_to_zero_while_something_is_wanted(
    policy: VersionPolicy, present: frozenset[int], loaded: frozenset[int]
) -> None:
    aspired = aspired_versions(policy, present)
    surplus = surplus_versions(aspired, loaded)
    assert aspired <= present
    assert surplus <= loaded - aspired
    if aspired and loaded:
        assert loaded - surplus


@given(POLICIES, VERSIONS, VERSIONS)
def test_a_rollout_of_single_steps_always_serves_and_ends_with_what_is_wanted(
    policy: VersionPolicy, present: frozenset[int], loaded: frozenset[int]
) -> None:
    aspired = aspired_versions(policy, present)
    for version in sorted(aspired - loaded):
        loaded -= surplus_versions(aspired, loaded)
        loaded |= {version}
    loaded -= surplus_versions(aspired, loaded)
    assert loaded == aspired
