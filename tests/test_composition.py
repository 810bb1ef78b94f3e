"""Mini-batches: each request once, none empty, the fullest near the mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.composition import compose


@given(st.lists(st.integers(1, 130), min_size=1, max_size=16), st.data())
@settings(deadline=None, max_examples=20)
def test_composition(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    batches = compose(sizes, count)
    assert len(batches) == count
    assert sorted(r for members in batches for r in members) == list(range(len(sizes)))
    assert all(batches)
    fullest = max(sum(sizes[r] for r in members) for members in batches)
    assert fullest <= sum(sizes) / count + max(sizes)


@given(st.integers(1, 200), st.data())
@settings(deadline=None, max_examples=40)
def test_equal_requests_are_dealt_evenly(requests: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, requests))
    lengths = [len(members) for members in compose([7] * requests, count)]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("sizes", "count", "best"),
    [
        ([3, 3, 2, 2, 2], 2, 6),  # longest first reaches only 7
        ([7, 6, 5, 4, 4, 4], 3, 11),
        ([9, 9, 8, 7, 7, 6, 6, 5, 3], 4, 15),
    ],
)
def test_levelled_where_longest_first_is_not(sizes: list[int], count: int, best: int) -> None:
    batches = compose(sizes, count)
    assert max(sum(sizes[r] for r in members) for members in batches) == best
    assert sorted(r for members in batches for r in members) == list(range(len(sizes)))


def test_the_order_of_requests_does_not_change_the_loads() -> None:
    sizes = [40, 3, 17, 17, 25, 8, 8, 31]
    loads = [
        sorted(sum(order[r] for r in members) for members in compose(order, 3))
        for order in (sizes, sizes[::-1], sorted(sizes))
    ]
    assert loads[0] == loads[1] == loads[2]


def test_many_different_sizes_are_level_without_the_solver() -> None:
    sizes = [*range(1, 31), 100]  # more sizes than the solver is asked to level
    batches = compose(sizes, 4)
    assert max(sum(sizes[r] for r in members) for members in batches) <= -(-sum(sizes) // 4) + 1
