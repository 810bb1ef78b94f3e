"""Tables: exact at their points, affine in time between them, held at both ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.curve import Points, Slice, Surface


def curve(*points: tuple[float, float]) -> Points:
    return Points(points=list(points))


def test_a_curve_hits_its_points() -> None:
    c = curve((64, 10e3), (128, 30e3), (512, 20e3))
    assert [c.at(x) for x in (64, 128, 512)] == [10e3, 30e3, 20e3]


@given(st.floats(1e-6, 1), st.floats(1e-7, 1e-4), st.floats(8, 4096))
@settings(deadline=None, max_examples=60)
def test_time_is_affine_between_points(fixed: float, each: float, size: float) -> None:
    """Whatever takes a fixed time and one for each unit is interpolated exactly, and so is what is left out."""

    def rate(n: float) -> float:
        return 1e3 * n / (fixed + each * n)

    sizes = [8.0, 64.0, 512.0, 4096.0]
    c = curve(*((n, max(rate(n), 1e3)) for n in sizes))
    if rate(8.0) > 1e3:
        assert c.at(size) == pytest.approx(rate(size), rel=1e-9)
        assert c.left_out == pytest.approx([0.0, 0.0], abs=1e-9)


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


def test_a_surface_hits_its_tables_and_time_is_affine_between_them() -> None:
    s = surface((1, [(8, 10e3), (16, 20e3)]), (100, [(8, 30e3), (16, 40e3)]))
    assert [s.at(8, 1), s.at(16, 1), s.at(8, 100), s.at(16, 100)] == [10e3, 20e3, 30e3, 40e3]
    share = (1 - 1 / 10) / (1 - 1 / 100)  # of the way from 1 to 100, in 1 / second
    assert s.at(8, 10) == pytest.approx(1 / ((1 - share) / 10e3 + share / 30e3))
    assert (s.at(8, 0.5), s.at(8, 1e6)) == (10e3, 30e3)
    assert s.sizes == [8, 16] and s.best == 40e3
    assert [s.covers(x) for x in (7, 8, 16, 17)] == [False, True, True, False]


def test_leaving_out_counts_points_and_whole_tables() -> None:
    flat = [(8.0, 10e3), (16.0, 10e3), (32.0, 10e3)]
    s = surface((1, flat), (2, [(8, 10e3), (16, 20e3), (32, 10e3)]), (4, flat))
    # One inner point in each table, and the three points of the table between two others.
    assert sorted(s.left_out) == pytest.approx([-0.5, -0.5, 0.0, 0.0, 0.0, 0.0])


def test_bounds_may_count_on_no_table_beyond_the_second_size() -> None:
    s = surface((1, [(8, 10e3)]), (100, [(8, 30e3)]))
    assert s.best_within(1) == 10e3
    assert s.best_within(10) == s.at(8, 10) < 30e3
    assert s.best_within(1e9, size=8) == 30e3
    assert s.best_within(1e9) == 30e3


def test_bounds_may_count_on_no_rate_beyond_either_size() -> None:
    s = surface((1, [(8, 10e3), (16, 5e3)]), (100, [(8, 30e3), (16, 40e3)]))
    assert s.best_up_to(16, 1) == 10e3 == s.at(8, 1)  # a shorter one is faster
    assert s.best_up_to(12, 100) == s.at(12, 100) < 40e3
    assert s.best_up_to(1e9, 1e9) == 40e3


def test_slices_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        surface((2, [(1, 1e3)]), (1, [(1, 1e3)]))
