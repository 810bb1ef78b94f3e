"""Curves: exact at their points, linear between, held at both ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.curve import Curve


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(kind="assumed", source="test", points=list(points))


def test_a_curve_hits_its_points_and_is_linear_between() -> None:
    c = curve((64, 10.0), (128, 30.0), (512, 20.0))
    assert [c.at(x) for x in (64, 128, 512)] == [10.0, 30.0, 20.0]
    assert c.at(96) == pytest.approx(20.0)
    assert c.at(320) == pytest.approx(25.0)


def test_a_curve_is_held_at_both_ends_and_says_so() -> None:
    c = curve((64, 10.0), (128, 30.0))
    assert (c.at(0), c.at(1e9)) == (10.0, 30.0)
    assert [c.covers(x) for x in (63.9, 64, 100, 128, 128.1)] == [False, True, True, True, False]


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 100)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    st.floats(0, 1100),
)
@settings(deadline=None, max_examples=60)
def test_a_curve_stays_between_its_neighbours(points: list[tuple[int, int]], size: float) -> None:
    points.sort()
    rate = curve(*((float(x), float(y)) for x, y in points)).at(size)
    below = [y for x, y in points if x <= size][-1:] or [points[0][1]]
    above = [y for x, y in points if x >= size][:1] or [points[-1][1]]
    assert min(below + above) - 1e-9 <= rate <= max(below + above) + 1e-9
