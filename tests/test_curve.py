"""Curves: exact at their points, linear between, held at both ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.curve import Curve, Slice, Surface


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(kind="assumed", source="test", points=list(points))


def test_a_curve_hits_its_points_and_is_linear_between() -> None:
    c = curve((64, 10e3), (128, 30e3), (512, 20e3))
    assert [c.at(x) for x in (64, 128, 512)] == [10e3, 30e3, 20e3]
    assert c.at(96) == pytest.approx(20e3)
    assert c.at(320) == pytest.approx(25e3)


def test_a_curve_is_held_at_both_ends_and_says_so() -> None:
    c = curve((64, 10e3), (128, 30e3))
    assert (c.at(0), c.at(1e9)) == (10e3, 30e3)
    assert [c.covers(x) for x in (63.9, 64, 100, 128, 128.1)] == [False, True, True, True, False]


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.integers(1000, 100_000)), min_size=1, max_size=6, unique_by=lambda p: p[0]
    ),
    st.floats(0, 1100),
)
@settings(deadline=None, max_examples=60)
def test_a_curve_stays_between_its_neighbours(points: list[tuple[int, int]], size: float) -> None:
    points.sort()
    rate = curve(*((float(x), float(y)) for x, y in points)).at(size)
    below = [y for x, y in points if x <= size][-1:] or [points[0][1]]
    above = [y for x, y in points if x >= size][:1] or [points[-1][1]]
    assert min(below + above) - 1e-9 <= rate <= max(below + above) + 1e-9


def surface(*slices: tuple[float, list[tuple[float, float]]]) -> Surface:
    return Surface(kind="assumed", source="test", slices=[Slice(second=s, points=points) for s, points in slices])


def test_a_surface_hits_its_tables_and_is_logarithmic_between() -> None:
    s = surface((1, [(8, 10e3), (16, 20e3)]), (100, [(8, 30e3), (16, 40e3)]))
    assert [s.at(8, 1), s.at(16, 1), s.at(8, 100), s.at(12, 100)] == [10e3, 20e3, 30e3, 35e3]
    assert s.at(8, 10) == pytest.approx(20e3)  # half way from 1 to 100
    assert (s.at(8, 0.5), s.at(8, 1e6)) == (10e3, 30e3)
    assert s.sizes == [8, 16] and s.best == 40e3
    assert [s.covers(x) for x in (7, 8, 16, 17)] == [False, True, True, False]


def test_bounds_may_count_on_no_table_beyond_the_second_size() -> None:
    s = surface((1, [(8, 10e3)]), (100, [(8, 30e3)]))
    assert s.best_within(1) == 10e3
    assert s.best_within(10) == pytest.approx(20e3)
    assert s.best_within(1e9) == 30e3


def test_slices_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        surface((2, [(1, 1e3)]), (1, [(1, 1e3)]))
