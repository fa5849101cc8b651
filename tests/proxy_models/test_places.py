"""How many places a pack has: what the waiting need, in fixed numbers where work is captured per number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.places import FIXED_PLACES, LEAST_TAKEN, places_for

counts = st.integers(0, 200)
limits = st.integers(1, 100)


@given(counts, counts, limits)
def test_a_pack_on_a_cpu_has_as_many_places_as_it_can_fill(present: int, waiting: int, limit: int) -> None:
    places = places_for(present, waiting, limit, fixed=False)
    assert places == max(present, min(limit, present + waiting))


@given(counts, limits, st.data())
def test_fixed_places_hold_everybody_present_and_few_are_vacant(waiting: int, limit: int, data: st.DataObject) -> None:
    largest = max(size for size in FIXED_PLACES if size <= limit)
    present = data.draw(st.integers(0, largest))
    places = places_for(present, waiting, limit, fixed=True)
    if not present + waiting:
        assert places == 0
        return
    assert places in FIXED_PLACES
    assert present <= places <= limit
    taken = min(places, present + waiting)
    assert taken >= LEAST_TAKEN * places or present > places / 2, "a smaller number of places would do"
    assert places_for(taken, present + waiting - taken, limit, fixed=True) == places, "joining changes nothing"


@given(st.integers(0, 200), limits, st.lists(st.integers(1, 9), min_size=30, max_size=30))
def test_a_pack_never_grows(members: int, limit: int, leaving: list[int]) -> None:
    """Whoever leaves and in whatever numbers: places are taken first, given up when they are not, and never wanted back."""
    present, waiting, before = 0, members, 10**9
    for some in leaving:
        places = places_for(present, waiting, limit, fixed=True)
        assert places <= before
        before = places
        joining = min(waiting, places - present)
        present, waiting = present + joining, waiting - joining
        present = max(0, present - some)


@pytest.mark.parametrize(
    ("members", "places"), [(64, 64), (100, 64), (50, 64), (40, 32), (36, 32), (33, 32), (24, 32), (23, 16), (7, 8), (5, 4), (3, 4), (1, 1)]
)
def test_rounds_of_fixed_places(members: int, places: int) -> None:
    assert places_for(0, members, 64, fixed=True) == places


def test_a_limit_that_is_no_fixed_number_is_rounded_down() -> None:
    assert [places_for(0, 40, limit, fixed=True) for limit in (1, 3, 10, 63, 64, 500)] == [1, 2, 8, 32, 32, 32]
